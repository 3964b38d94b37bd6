# SPDX-License-Identifier: GPL-2.0-only
"""From a stream to lines on stdout, to a copy of the stream, or both.

The run ends with the summary in any case: if the reader of stdout goes away
(`| head`), at Ctrl-C, if the stream is damaged or the agent dies.  Must not touch the
kernel.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from ipttrace.cli import interrupts, outcome
from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import Frame, Kind, StreamError, joined
from ipttrace.text import clean
from ipttrace.trace.arrays import Array
from ipttrace.trace.session import Trace
from ipttrace.view.output import Output
from ipttrace.view.writer import OutputError, Writer, summary

if TYPE_CHECKING:
    from ipttrace.trace.query import Query
    from ipttrace.trace.query.until import Until
    from ipttrace.trace.store import Picked
    from ipttrace.view.sockets import StageView

_PORTION: Final = 1 << 20  # bytes read at a time
# Rows formatted at a time: bounds memory, and the delay of the first line.
_BATCH: Final = 5000
# What ends no batch.
_BEGINNING: Final = (Kind.ENTRY, Kind.RULE)
# s between two looks at what an agent sends: a batch costs as much as a hundred rows, and
# the delay is invisible.  What comes after a pause is written at once.
_GATHER: Final = 0.05
# s without a byte after which an agent that was asked to stop is given up.
_GRACE: Final = 10.0
# Lines on stderr: a forged stream could have notes without end.
_MOST_NOTES: Final = 1000


class _Stream(Protocol):
    def fileno(self) -> int: ...


class _Sink(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Pump:
    """Reads one stream to its end, or until the user ends it."""

    def __init__(
        self,
        output: Output | None,
        *,
        count: int | None = None,
        query: Query | None = None,
        until: Query | None = None,
        copy: _Sink | None = None,
        stop: Callable[[], None] | None = None,
        names: dict[int, str] | None = None,
        file: str = "",
        written: Callable[[Picked], object] | None = None,
        before_summary: Callable[[], object] | None = None,
        stages: StageView | None = None,
    ) -> None:
        """`output`: what rows become; None writes no rows.

        `query`: the rows to write; `count`: how many of them; `until`: the first row
        that matches is the last one.  `copy` receives the stream as it is; `stop` asks
        the agent to finish.  `names` is filled with the names of the network
        namespaces, by inode, when the stream begins.  `file`: the name of the recording,
        for error lines; "": the stream is an agent's.  `written` is called with rows that
        are written, `before_summary` before the line that ends the run.  `stages`: what stages
        of sockets become; then they are what is counted, and no rows are written.
        """
        self.trace = Trace(capacity=4 * 65536)
        self.interrupted = False
        self.rows = 0  # written; without an output, all
        self.errors: list[str] = []
        self._output = output
        self._count = count
        self._query = query
        self._until_query = until
        self._until: Until | None = None
        self._copy = copy
        self._stop = stop
        self._names = names
        self._prefix = f"{file}: " if file else ""
        self._written = written
        self._before_summary = before_summary
        self._stages = stages
        self._decoder = Decoder()
        self._writer = Writer()
        self._held: list[Frame] = []  # records of a live stream, to be fed together
        self._held_size = 0  # bytes
        self._fed = 0.0  # when a live stream's records were last fed
        self._begun = False  # the output has its header
        self._next = 0  # the first row not yet examined
        self._stopping = False
        self._deadline = 0.0
        self._notes_seen = 0
        self._notes_printed = 0
        # The agent sent nothing: it has printed the reason on stderr.
        self._silent = False

    @property
    def _prints(self) -> bool:
        return self._output is not None or self._stages is not None

    def run(self, stream: _Stream) -> int:
        """Reads to the end, prints errors and the summary, returns the exit status."""
        before = signal.signal(signal.SIGINT, self._on_interrupt)
        term = signal.signal(signal.SIGTERM, self._on_interrupt)
        interrupts.release()
        try:
            try:
                self._read(stream.fileno())
            except StreamError as error:
                self.errors.append(f"{self._prefix}{error}")
                self.trace.finish()
                self._write_rows()
            if self._output is not None and self._begun:
                self._write(self._output.end())
        except (OutputError, outcome.Failed) as error:
            self.errors.append(str(error))
            self._finish()
        except OSError as error:
            self.errors.append(f"{self._prefix}cannot read the stream: {error.strerror}")
            self._finish()
        finally:
            signal.signal(signal.SIGINT, before)
            signal.signal(signal.SIGTERM, term)
        return self._close()

    def _read(self, fd: int) -> None:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        received = False
        while True:
            if not poll.poll(self._patience()):
                if self._held:
                    self._feed_held(complete=False)
                    continue
                if self._stopping and time.monotonic() > self._deadline:
                    self.errors.append("the agent does not respond: its last counts are missing")
                    return
                if not self._stopping and self._prints:
                    if self._writer.reader_gone():
                        self._finish()
                    self._write(b"" if self._output is None else self._output.pause())
                continue
            data = os.read(fd, _PORTION)
            if not data:
                self._feed_held(complete=False)
                break
            received = True
            if self._copy is not None:
                self._copy.write(data)
            self._hold(data)
            # Counted from here: a backlog may take long to arrive, and to be written.
            self._deadline = time.monotonic() + _GRACE
        if self.trace.ended is None and self.trace.hello:
            self.trace.finish()
            self._write_rows()
        if self._stop is not None and not received:
            self._silent = True
        else:
            self._decoder.finish()

    def _patience(self) -> float:
        """Returns the ms to wait for bytes until there is something else to do."""
        if not self._held:
            return 200
        return max(self._fed + _GATHER - time.monotonic(), 0) * 1000

    def _hold(self, data: bytes) -> None:
        """Feeds the frames in `data`, or holds them until there are more."""
        try:
            frames = self._decoder.feed(data)
        except StreamError:
            self._feed_held(complete=False)
            raise
        self._held += frames
        self._held_size += len(data)
        if (
            self._stop is None
            or self._stopping
            or self._held_size > _PORTION
            or not all(frame.is_records for frame in frames)
            or not self._patience()
        ):
            self._feed_held()

    def _feed_held(self, *, complete: bool = True) -> None:
        """Feeds what is held; `complete`: without the beginning of a batch at its end."""
        held, self._held, self._held_size = self._held, [], 0
        self._fed = time.monotonic()
        if self._stop is not None:
            if complete:
                ends = [at for at, frame in enumerate(held, 1) if frame.kind not in _BEGINNING]
                held, self._held = held[: max(ends, default=0)], held[max(ends, default=0) :]
                self._held_size = sum(len(frame.payload) for frame in self._held)
            held = joined(held)
        for frame in held:
            self._feed(frame)
        self._print_notes()

    def _feed(self, frame: Frame) -> None:
        for part in frame.portions(_BATCH):
            self.trace.feed(part)
            if frame.kind == Kind.HELLO:
                self._on_hello()
            elif frame.kind == Kind.NAMES:
                self._learn_names(frame.json.get("netns"))
            elif frame.kind == Kind.BOOKS:
                self._on_books()
            # After each portion: the store must not evict a row that was not written.
            self._write_rows()
            self._write_stages()

    def _learn_names(self, named: object) -> None:
        held = self.trace.hello.get("netns")
        if self._names is not None and isinstance(named, dict) and isinstance(held, dict):
            # An inode has at most ten digits; the stream is untrusted.
            new = {k: v for k, v in named.items() if k in held and re.fullmatch("[0-9]{1,10}", k)}
            inodes = {int(k): v for k, v in new.items()}
            self._names.update({inode: clean(str(name)) for inode, name in inodes.items()})

    def _on_hello(self) -> None:
        self._learn_names(self.trace.hello.get("netns"))
        if self._until_query is not None and self._until is None:
            from ipttrace.trace.query.until import Until

            self._until = Until(self._until_query, netns=self._names, hosts=(self._host(),))
        if self._prints and not self._begun:
            self._begun = True
            if self._output is not None:
                self._write(self._output.begin(self.trace.hello))
            if self._stages is not None:
                self._write(self._stages.header().encode())

    def _on_books(self) -> None:
        # The budget is used up (a note says so), and nothing here can arm it again.
        if self._stop is not None and self.trace.books.get("state") == "disarmed":
            self._finish()

    def _host(self) -> str:
        return clean(str(self.trace.hello.get("host", "")))

    def _write_rows(self) -> None:
        store = self.trace.store
        end = self._end_row()
        while self._next < end:
            first = max(self._next, store.first)
            last = min(first + _BATCH, end)
            seqs = self._matching(first, last)
            if self._count is not None:
                seqs = seqs[: self._count - self.rows]
            if self._output is not None and len(seqs) and not self._writer.closed:
                self._write(self._output.rows(store, seqs)[0])
            if self._written is not None:
                for picked in store.picked(seqs):
                    self._written(picked)
            self._next = last
            if self._stages is None:
                self.rows += len(seqs)
            if self._count is not None and self.rows >= self._count:
                self._finish()
                self._next = store.end
                return
        self._next = store.end

    def _write_stages(self) -> None:
        """Takes the stages of sockets that are new, and writes them if that is asked for."""
        found = self.trace.sockets.take()
        if self._stages is None or not found:
            return
        if self._count is not None:
            found = found[: self._count - self.rows]
        if not self._writer.closed:
            self._write(self._stages.lines(found).encode("utf-8", "backslashreplace"))
        self.rows += len(found)
        if self._count is not None and self.rows >= self._count:
            self._finish()

    def _end_row(self) -> int:
        """Returns the end of the rows to write; ends the run at a row that matches --until."""
        store = self.trace.store
        found = None if self._until is None else self._until.feed(store)
        if found is None:
            return store.end
        self._finish()
        # A copy of the stream contains all rows.
        return store.end if self._output is None else found + 1

    def _matching(self, first: int, last: int) -> Sequence[int] | Array:
        """Returns the sequence numbers of the rows to write from `first` to `last`."""
        if self._query is None:
            return range(first, last)
        from ipttrace.trace.query import context_of

        store = self.trace.store
        context = context_of(store, netns=self._names, hosts=(self._host(),))
        found = [
            np.flatnonzero(self._query.mask(part, context)) + part.first
            for part in store.parts(first, last)
        ]
        return np.concatenate(found) if found else range(0)

    def _write(self, data: bytes) -> None:
        if data and not self._writer.write(data):
            self._finish()

    def _print_notes(self) -> None:
        for level, text in self.trace.notes_after(self._notes_seen):
            if level != "info" and self._notes_printed <= _MOST_NOTES:
                self._notes_printed += 1
                left_out = self._notes_printed > _MOST_NOTES
                outcome.error("further notes are not printed" if left_out else text)
        self._notes_seen = self.trace.note_count

    def _finish(self) -> None:
        """Asks the agent to finish; what it has still comes, as long as bytes do."""
        if self._stopping:
            return
        self._stopping = True
        self._deadline = time.monotonic() + _GRACE
        if self._stop is not None:
            self._stop()

    def _on_interrupt(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = self.interrupted or number == signal.SIGINT
        self._finish()

    def _close(self) -> int:
        if self.trace.hello:
            # Rows reach the terminal before the summary.
            sys.stdout.flush()
            for error in self.errors:
                outcome.error(error)
            if self._before_summary is not None:
                self._before_summary()
            print(summary({**self.trace.summary(), "rows": self.rows}), file=sys.stderr)
        elif not self.interrupted:
            for error in self.errors:
                outcome.error(error)
        if self.errors or (self._silent and not self.interrupted):
            return outcome.FAILED
        return outcome.INTERRUPTED if self.interrupted else outcome.DONE
