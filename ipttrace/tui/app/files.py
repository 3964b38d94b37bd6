# SPDX-License-Identifier: GPL-2.0-only
"""What keys do that makes files: exports, recordings, pictures of the screen.

A part of `TraceApp`, in a file of its own.  Must not feed or draw.
"""

from __future__ import annotations

import os
import time
from typing import ClassVar, Final

import numpy as np
from textual import work
from textual.binding import Binding, BindingType
from textual.widgets import ProgressBar
from textual.worker import get_current_worker

from ipttrace.text import clean
from ipttrace.tui.app.base import Base
from ipttrace.tui.messages import ExportEnded, Exporting
from ipttrace.tui.widgets.export_dialog import Choice, ExportDialog, Wish
from ipttrace.tui.widgets.prompt import Ask
from ipttrace.view.export import Export, ExportError
from ipttrace.view.labels import Labels

MARKED, VIEW, ALL = range(3)
_PORTION: Final = 1 << 16


def named(ending: str) -> str:
    """A name for a new file, with the time in it."""
    return f"ipttrace-{time.strftime('%Y%m%d-%H%M%S')}.{ending}"


class Files(Base):
    """Actions of the app."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("e", "export", "Export", tooltip="rows to a file: csv, jsonl, pcapng or text"),
        Binding("R", "record", "record the stream to a file from here on; again: end", show=False),
        Binding("S", "picture", "a picture of the screen (SVG) into this folder", show=False),
    ]

    # Export.

    _progress_bar: ProgressBar | None = None

    def action_export(self) -> None:
        if self.exporting:
            self.say("an export is going on: Esc stops it", error=True)
            return
        lens = self.looking.lens
        choices = [
            Choice("marked rows", len(self.view.marks)),
            Choice("this view", lens.end - lens.first),
            Choice("everything held", len(self.store)),
        ]
        chosen = MARKED if choices[MARKED].rows else VIEW if self.looking.filters.text else ALL
        self.push_screen(ExportDialog(choices, chosen, named("csv")), self._export_wished)

    def _export_wished(self, wish: Wish | None) -> None:
        if wish is None:
            return
        lens = self.looking.lens
        if wish.what == MARKED:
            selection = [np.array(sorted(self.view.marks), np.int64)]
        elif wish.what == VIEW:
            selection = [
                lens.seqs(at, min(at + _PORTION, lens.end))
                for at in range(lens.first, lens.end, _PORTION)
            ]
        else:
            selection = [np.arange(self.store.first, self.store.end, dtype=np.int64)]
        self.exporting = True
        self._export(
            Export(
                self.store,
                selection,
                wish.format,
                wish.path,
                names=Labels(self.hosts(), self.places()),
                about=self._about_all(),
                overwrite=wish.overwrite,
            )
        )

    def _about_all(self) -> dict[str, object]:
        """The HELLO of the one host, or what of it is true of all."""
        if len(self.lines) == 1:
            return self.trace.hello
        filters = {line.expr for line in self.lines}
        expr = filters.pop() if len(filters) == 1 else ""
        return {"host": ", ".join(self.hosts()), "expr": expr}

    @work(thread=True, group="export", exclusive=True, exit_on_error=False)
    def _export(self, export: Export) -> None:
        worker = get_current_worker()

        def progress(done: int, total: int) -> None:
            self.post_message(Exporting(done, total))

        try:
            whole = export.run(progress, lambda: worker.is_cancelled)
        except ExportError as error:
            self.post_message(ExportEnded(str(error), error=True))
        except Exception as bug:  # the screen must say it and stay
            self.post_message(ExportEnded(f"the export failed: {bug}", error=True))
        else:
            text = export.outcome if whole else "the export was stopped: nothing is kept"
            self.post_message(ExportEnded(text))

    def on_exporting(self, message: Exporting) -> None:
        if self._progress_bar is None:
            # Only while it is needed: one that waits redraws itself all the time.
            self._progress_bar = ProgressBar(message.total, id="progress", show_eta=False)
            self.screen_stack[0].mount(self._progress_bar, before="#status")
        self._progress_bar.update(progress=message.done)

    def on_export_ended(self, message: ExportEnded) -> None:
        self.exporting = False
        if self._progress_bar is not None:
            self._progress_bar.remove()
            self._progress_bar = None
        self.say(message.text, error=message.error)

    def stop_export(self) -> bool:
        """Stop an export that goes on; False when there is none."""
        if self.exporting:
            self.workers.cancel_group(self, "export")
        return self.exporting

    # A recording while watching.

    def action_record(self) -> None:
        recording = [line for line in self.lines if line.tap.open]
        if recording:
            for line in recording:
                line.end_recording()
            if not any(line.word for line in recording):
                self.say("the recording was ended: " + ", ".join(one.recorded for one in recording))
            self.look()
            return
        if self.over or not any(line.trace.hello for line in self.lines):
            self.say("nothing comes that could be recorded: e exports what is held", error=True)
            return
        self.prompt.ask(
            Ask("record to", self._record, initial=named("iptr"), check=self._recordable)
        )

    def _recordable(self, text: str) -> tuple[str, int] | None:
        if not text:
            return "name a file", 0
        for line in self.lines:
            if os.path.lexists(os.path.expanduser(self._record_path(text, line.trace.host))):
                return "there is such a file already: name another", 0
        return None

    def _record_path(self, text: str, number: int) -> str:
        """One file a host: a stream has one description."""
        if len(self.lines) == 1:
            return text
        root, ending = os.path.splitext(text)
        return f"{root}-{number + 1}{ending}"

    def _record(self, text: str) -> None:
        begun = []
        for line in self.lines:
            if line.over or not line.trace.hello:
                continue
            path = self._record_path(text, line.trace.host)
            try:
                line.record(os.path.expanduser(path))
            except (OSError, ValueError) as error:  # a path with a NUL in it is a ValueError
                self.say(f"{clean(path)}: {getattr(error, 'strerror', None) or error}", error=True)
                return
            begun.append(clean(path))
        self.say(f"recording to {', '.join(begun)}: R ends it")

    # A picture.

    def action_picture(self) -> None:
        path = named("svg")
        try:
            self.save_screenshot(path, path=os.getcwd())
        except OSError as error:
            self.say(f"no picture was written: {error.strerror}", error=True)
        else:
            self.say(f"a picture of the screen: {path}")
