# SPDX-License-Identifier: GPL-2.0-only
"""The live screen: a source's stream as rows that a person can follow.

Live, remote and recorded are the same here: a `Source` gives bytes, `Intake`
makes frames of them in a thread of its own, and this app feeds the frames to
the trace and draws, all on the app's thread.  Frames come in as at most one
replaceable message a tick of 50 ms; feeding stops after `BUDGET` seconds and
goes on after keys have had their turn, so a flood or a long recording never
makes the screen deaf.  Why no lock and no second writer: see `intake`.

Must not touch the kernel or parse bytes, and must not write to stdout or
stderr: the summary goes to the caller as `run()`'s value.
"""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from pathlib import Path
from time import monotonic
from typing import Any, ClassVar, Final

from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Footer, Static

from ipttrace.stream.frames import StreamError
from ipttrace.trace.lens import Everything
from ipttrace.trace.session import Trace
from ipttrace.trace.text import clean
from ipttrace.tui import situation as at
from ipttrace.tui.help import Help
from ipttrace.tui.intake import Intake
from ipttrace.tui.messages import Arrived, ColumnsChanged, ViewChanged
from ipttrace.tui.situation import Situation
from ipttrace.tui.source import Source
from ipttrace.tui.widgets.empty import Empty
from ipttrace.tui.widgets.rows import Rows
from ipttrace.tui.widgets.status import Bar, about_pieces, status_pieces
from ipttrace.tui.widgets.titles import Titles

FRAME: Final = 0.05  # s between two pictures
BUDGET: Final = 0.015  # s of feeding before keys get their turn
BREATH: Final = 0.001  # s of that turn
STATUS: Final = 0.25  # s between two looks at the counters
GRACE: Final = 2.0  # s that a live source gets to send its last counts

Summary = dict[str, Any]


class TraceApp(App[Summary]):
    """The screen over one source.  `run()` returns the summary.

    That is `Trace.summary()` and `error`: the line that says why the stream
    broke, or None.
    """

    CSS_PATH = Path(__file__).with_name("app.tcss")  # absolute: a subclass may live elsewhere
    TITLE = "ipttrace"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "space,p",
            "pause",
            "Pause",
            key_display="Space",
            tooltip="freeze the picture, or go on; rows keep coming in",
        ),
        Binding("f", "follow", "Follow", tooltip="follow the newest row, or stay here"),
        Binding(
            "question_mark,f1", "help", "Help", key_display="?", tooltip="keys, columns, words"
        ),
        Binding(
            "escape", "put_away", "Put away", show=False, tooltip="put away the agent's warning"
        ),
        Binding("q", "quit", "Quit", tooltip="disarm, clean up and leave"),
        Binding(
            "ctrl+c,ctrl+q",
            "quit",
            "Quit",
            show=False,
            priority=True,
            tooltip="the same; again: at once",
        ),
    ]

    def __init__(
        self,
        source: Source,
        *,
        title: str,
        capacity: int = 1_000_000,
        trace: Trace | None = None,
        grace: float = GRACE,
    ) -> None:
        """`title` is for a person; `capacity` is rows held before the oldest go."""
        super().__init__()
        self.trace = Trace(capacity) if trace is None else trace
        self._source = source
        self._title = clean(title)
        self._grace = grace
        self._intake = Intake(source, lambda: self.post_message(Arrived()))
        self._error: str | None = None
        self._over = False
        self._stopping = False
        self._left = False
        self._stale = False  # fed since the last picture
        self._drawn = 0.0
        self._noticed = ("", False)
        self._read_notes = 0
        self._named: dict[int, str] = {}
        self._progress: deque[str] = deque(maxlen=10)
        self._samples: deque[tuple[float, int]] = deque(maxlen=9)

    # Life.

    def compose(self) -> ComposeResult:
        yield Bar(id="about")
        # In the place of the line above, so that nothing below it moves.
        yield Static(id="notice", markup=False)
        yield Titles(id="titles")
        yield Rows(Everything(self.trace.store), id="rows")
        yield Empty(id="empty")
        yield Bar(id="status")
        yield Footer(show_command_palette=False)

    def on_mount(self) -> None:
        # Not by query later on: that asks the screen on top, which may be help.
        self.rows = self.query_one(Rows)
        self._about = self.query_one("#about", Bar)
        self._status = self.query_one("#status", Bar)
        self._titles = self.query_one(Titles)
        self._empty = self.query_one(Empty)
        self._notice_line = self.query_one("#notice", Static)
        self._notice_line.display = self._empty.display = False
        self.rows.focus()
        self._draw()
        if not self.is_headless:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.add_signal_handler(number, self._leave, 128 + number)
        self.set_interval(STATUS, self._look)
        self._intake.start()

    def on_unmount(self) -> None:
        # Also the way out after a crash of the screen: nothing may stay armed.
        self._intake.close()

    async def action_quit(self) -> None:
        """Leave; a live source first gets the time to send its last counts."""
        if self._stopping or self._over or not self._source.stop():
            self._leave()
            return
        self._stopping = True
        self._look()
        self.set_timer(self._grace, self._leave)

    def _leave(self, code: int = 0) -> None:
        if self._left:
            return
        self._left = True
        self._intake.close()
        until = monotonic() + 1.0
        while self._source.live and monotonic() < until and self._feed_one():
            pass
        if self.trace.ended is None:
            self.trace.finish()
        self.exit({**self.trace.summary(), "error": self._error}, return_code=code)

    # The stream.

    def on_arrived(self) -> None:
        self._feed()

    def _feed_one(self) -> bool:
        """Feed one frame; False when there is none, or the stream has ended or is broken."""
        if self._done or (frame := self._intake.take()) is None:
            return False
        try:
            self.trace.feed(frame)
        except StreamError as error:
            self._error = clean(str(error))
        if self._done:
            # A serial line would stay open for ever.
            self._intake.close()
        self._stale = True
        return True

    @property
    def _done(self) -> bool:
        return self._error is not None or self.trace.ended is not None

    def _feed(self) -> None:
        if self._left:
            return
        until = monotonic() + BUDGET
        while self._feed_one():
            if monotonic() >= until:
                break
        over = self._done or self._intake.drained
        due = self._drawn + FRAME - monotonic()
        if over or (self._stale and due <= 0):
            self._draw()
        if over:
            self._end()
        elif self._intake.waiting:
            self.set_timer(BREATH, self._feed)
        elif self._stale:
            self.set_timer(max(due, BREATH), self._feed)
        elif self._intake.arm():
            self.set_timer(BREATH, self._feed)

    def _end(self) -> None:
        if self._over:
            return
        self._over = True
        if not self._done and self._intake.error is not None:
            self._error = clean(self._intake.error)
        # Without an END frame the rows that still waited for one come now.
        if self.trace.ended is None and self.trace.finish():
            self._draw()
        self._look()
        if self._stopping:
            self._leave()

    # The picture.

    def _draw(self) -> None:
        self._drawn = monotonic()
        self._stale = False
        if (names := at.netns_names(self.trace.hello)) != self._named:
            self._named = names
            self.rows.name_netns(names)
        empty = self.trace.store.end == 0
        if self._empty.display != empty:
            # Not by a class: in the first moments Textual may miss its change.
            self._empty.display = empty
            self.rows.display = self._titles.display = not empty
            if not empty:
                self.rows.focus()
        self.rows.pull()
        if empty:
            self._look()

    def _look(self) -> None:
        """Bring the bars, the notice and the empty screen up to date."""
        if self._left:
            return
        now = self._situation()
        view = self.rows
        self._about.show(about_pieces(now, self._title))
        self._status.show(status_pieces(now, view.paused, view.follow, view.newer))
        self._notice(now)
        if now.rows == 0:
            progress = clean(self._source.progress)
            if progress and progress not in self._progress:
                self._progress.append(progress)
            self._empty.show(now, tuple(self._progress), self._notes()[-6:])

    def _situation(self) -> Situation:
        trace = self.trace
        hello = trace.hello
        counts = trace.summary()
        rows = counts["rows"]
        return Situation(
            state=at.state_of(
                hello,
                trace.books,
                live=self._source.live,
                over=self._over,
                error=self._error,
                stopping=self._stopping,
            ),
            reason=self._reason(),
            live=self._source.live,
            filter=at.text_of(hello.get("expr")),
            engine=trace.engine if hello else "",
            host=at.text_of(hello.get("host")),
            kernel=at.text_of(hello.get("kernel")),
            rows=rows,
            rate=self._rate(rows),
            lost=counts["lost"],
            missed=counts["missed"],
        )

    def _rate(self, rows: int) -> float | None:
        """Rows/s over the last two seconds."""
        if self._over:
            return None
        now = monotonic()
        if not self._samples or now - self._samples[-1][0] >= STATUS * 0.8:
            self._samples.append((now, rows))
        since, before = self._samples[0]
        return (rows - before) / (now - since) if now - since >= STATUS else 0.0

    def _reason(self) -> str:
        if self._error is not None:
            return f"{self._error}; the rows before it are kept"
        if not self._over:
            return ""
        if self.trace.ended is None:
            if self._source.live:
                return "The agent went away without its last counts; nothing stays armed"
            return "The recording has no end: it was cut off"
        return at.text_of(self.trace.ended.get("reason"))

    def _notes(self) -> list[str]:
        return [text for _, text in self.trace.notes]

    def _notice(self, now: Situation) -> None:
        """The one line for what must not be overlooked."""
        error = self._error is not None
        text = ""
        if self._over and (error or self.trace.ended is None):
            text = now.reason
        elif self.rows.gone:
            text = (
                f"{self.rows.gone:,} rows of this picture are no longer held"
                " (the lines shown stay until you move); Space goes on"
            )
        elif self.rows.slid:
            text = "The rows you were reading are no longer held; Space freezes the picture"
        else:
            for level, note in self.trace.notes[self._read_notes :]:
                if level in ("warn", "error"):
                    text, error = note, level == "error"
        if (text, error) != self._noticed:  # an update costs a layout
            self._noticed = text, error
            self._notice_line.display = bool(text)
            self._about.display = not text
            self._notice_line.set_class(error, "-error")
            self._notice_line.update(Content(text))

    # Keys and what the widgets say.

    def action_pause(self) -> None:
        self.rows.toggle_pause()

    def action_follow(self) -> None:
        self.rows.toggle_follow()

    def action_put_away(self) -> None:
        self._read_notes = len(self.trace.notes)
        self._look()

    def action_help(self) -> None:
        self.push_screen(Help([*self.BINDINGS, *Rows.BINDINGS]))

    def on_view_changed(self, message: ViewChanged) -> None:
        self._look()

    def on_columns_changed(self, message: ColumnsChanged) -> None:
        self._titles.show(self.rows.columns)
