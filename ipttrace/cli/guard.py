# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace guard`: denies connect, accept and receive by rules, as long as it runs."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ipttrace.cli import options
from ipttrace.cli.outcome import BAD_USAGE, DONE, INTERRUPTED, BadUsage, Failed, error
from ipttrace.text import escape

if TYPE_CHECKING:
    from ipttrace.guard.rules import RuleError
    from ipttrace.guard.running import Guard

FORMATS: Final = ("text", "jsonl")
_EVERY: Final = 0.05  # s
_FILE_EVERY: Final = 0.25  # s
_LONGEST: Final = 1 << 20  # bytes of a file, or of a line of the control line
_AT_ONCE: Final = 100  # denials that are printed before new rules are looked for
_MOST_HELD: Final = 4 << 20  # bytes of lines for a reader that does not read
_PIECE: Final = 4096  # bytes that a pipe that is writable takes without blocking, PIPE_BUF
_LAST_WAIT: Final = 1.0  # s, for the reader at the end

Signature = tuple[int, ...]


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace guard",
        description="Denies connect, accept and receive by address, port and process, as long as"
        " it runs, and prints what is denied. However it ends, all is allowed again.",
        epilog="rules: deny connect to 192.0.2.7 port 10000; deny accept on port 10000;"
        " deny accept from 198.51.100.0/24; deny receive from 203.0.113.9;"
        " further conditions: tcp, udp, uid, comm, container. The first rule that is met decides.",
    )
    parser.add_argument(
        "rules",
        nargs="+",
        metavar="RULES",
        help="a file of rules, read again when it changes, or rules in words",
    )
    parser.add_argument("--dry-run", action="store_true", help="deny nothing, print what would be")
    parser.add_argument(
        "--force", action="store_true", help="also rules that would cut off this ssh session"
    )
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="output format (default: text)"
    )
    parser.add_argument(
        "--control",
        action="store_true",
        help="read stdin: each line is a new set of rules; the end of it stops",
    )
    parser.add_argument(
        "--duration", type=options.positive, metavar="S", help="stop after S seconds"
    )
    parser.add_argument("--ready-file", type=Path, metavar="F", help="write F once the rules apply")
    return parser


def run(argv: Sequence[str]) -> int:
    """Guards until the end; returns the exit status."""
    parsed = build_parser().parse_args(argv)
    from ipttrace.capture.errors import CaptureError
    from ipttrace.guard.rules import RuleError, parse
    from ipttrace.guard.running import Guard, Refused

    source = _Source(parsed.rules)
    try:
        rules = parse(source.text())
    except RuleError as wrong:
        _print_wrong(wrong, source.name)
        return BAD_USAGE
    if os.geteuid():
        raise Failed("the guard needs root")
    try:
        guard = Guard(rules, dry=parsed.dry_run, force=parsed.force)
    except RuleError as wrong:
        _print_wrong(wrong, source.name)
        return BAD_USAGE
    except Refused as refusal:
        raise BadUsage(str(refusal)) from None
    except CaptureError as failure:
        raise Failed(str(failure)) from None
    try:
        return _Loop(guard, source, parsed).run()
    finally:
        guard.close()


def _print_wrong(wrong: RuleError, name: str) -> None:
    first, *rest = wrong.lines()
    place = f"{name}:{wrong.number}: " if name and wrong.line else ""
    error(place + first)
    for one in rest:
        print(one, file=sys.stderr)


class _Source:
    """Where the rules are from: a file, or words."""

    def __init__(self, arguments: Sequence[str]) -> None:
        first = arguments[0].split(None, 1)[:1]
        self.name = ""
        self._words = " ".join(arguments)
        self._path = ""
        if len(arguments) == 1 and first not in (["deny"], ["allow"]):
            self._path = arguments[0]
            self.name = escape(self._path)
            self._signature = self._stat()

    def text(self) -> str:
        """The rules.  Raises BadUsage."""
        if not self.name:
            return self._words
        try:
            with open(self._path, "rb") as file:
                data = file.read(_LONGEST + 1)
        except (OSError, ValueError) as failure:
            reason = getattr(failure, "strerror", None) or "no such file"
            raise BadUsage(
                f"{self.name}: {reason}; rules in words begin with deny or allow"
            ) from None
        if len(data) > _LONGEST:
            raise BadUsage(f"{self.name} is longer than {_LONGEST:,} bytes")
        return data.decode("utf-8", "replace")

    def has_changed(self) -> bool:
        """Whether the file is another one, or has been written, since the last call."""
        if not self.name:
            return False
        before, self._signature = self._signature, self._stat()
        # A file that is gone is being replaced; its rules stay.
        return bool(self._signature) and self._signature != before

    def _stat(self) -> Signature:
        try:
            found = os.stat(self._path)
        except (OSError, ValueError):
            return ()
        return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class _Loop:
    """Prints what is denied, and replaces the rules when they change."""

    def __init__(self, guard: Guard, source: _Source, parsed: argparse.Namespace) -> None:
        self._guard = guard
        self._source = source
        self._parsed = parsed
        self._output = _Output()
        self._reason = 0  # a signal
        self._failure = ""  # of the last refresh

    def run(self) -> int:
        from ipttrace import files
        from ipttrace.guard import words

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._stop)
        if self._guard.limits:
            self._note(self._guard.limits)
        self._note(words.rules_line(self._guard.rules, dry=self._parsed.dry_run))
        if self._parsed.ready_file is not None:
            try:
                files.write(self._parsed.ready_file, b"%d\n" % os.getpid())
            except OSError as failure:
                raise Failed(f"{self._parsed.ready_file}: {failure.strerror}") from None
        try:
            self._until_the_end()
            self._guard.stop()
            while self._print():
                pass
            self._output.flush(_LAST_WAIT)
        except BrokenPipeError:
            # The reader has gone: its way to stop.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        denied, lost = self._guard.counts()
        verb = "would be denied" if self._parsed.dry_run else "denied"
        lost += self._output.unwritten()
        self._note(f"{verb}={denied} lost={lost} replaced={self._guard.replaced}")
        return INTERRUPTED if self._reason == signal.SIGINT else DONE

    def _stop(self, number: int, frame: object) -> None:
        self._reason = self._reason or number

    def _note(self, text: str) -> None:
        print(f"ipttrace: {text}", file=sys.stderr, flush=True)

    def _until_the_end(self) -> None:
        began = time.monotonic()
        file_due = began + _FILE_EVERY
        control = _Control() if self._parsed.control else None
        more = False  # to print
        while not self._reason:
            pause = 0.0 if more else _EVERY
            if control is None:
                time.sleep(pause)
            else:
                lines = control.lines(pause)
                if lines is None:
                    return
                for one in lines:
                    self._replace(one, "")
            more = self._print()
            now = time.monotonic()
            if now >= file_due:
                file_due = now + _FILE_EVERY
                if self._source.has_changed():
                    try:
                        self._replace(self._source.text(), self._source.name)
                    except BadUsage as failure:
                        error(str(failure))
                self._refresh()
            if self._parsed.duration is not None and now - began >= self._parsed.duration:
                return

    def _replace(self, text: str, name: str) -> None:
        """All rules at once; if anything is wrong with them, the old ones stay."""
        from ipttrace.capture.errors import CaptureError
        from ipttrace.guard import words
        from ipttrace.guard.rules import RuleError, parse
        from ipttrace.guard.running import Refused

        try:
            self._guard.replace(parse(text))
        except RuleError as wrong:
            _print_wrong(wrong, name)
        except (Refused, CaptureError) as failure:
            error(str(failure))
        else:
            self._note(words.rules_line(self._guard.rules, dry=self._parsed.dry_run))
            return
        self._note("the previous rules still apply")

    def _refresh(self) -> None:
        from ipttrace.capture.errors import CaptureError
        from ipttrace.guard.rules import RuleError

        failure = ""
        try:
            self._guard.refresh()
        except (RuleError, CaptureError) as wrong:
            failure = str(wrong)
        if failure and failure != self._failure:
            error(failure)
        self._failure = failure

    def _print(self) -> bool:
        """Prints some of what was denied; returns whether there was any."""
        from ipttrace.guard import words

        found: list[dict[str, Any]] = self._guard.take(_AT_ONCE)
        if self._parsed.format == "jsonl":
            lines = [json.dumps(one, ensure_ascii=True) for one in found]
        else:
            lines = [words.line(one) for one in found]
        for one in lines:
            self._output.add(one.encode("utf-8", "backslashreplace") + b"\n")
        self._output.flush(0.0)
        return bool(found)


class _Output:
    """Lines on stdout.  A reader that does not read must not keep the rules from being replaced."""

    def __init__(self) -> None:
        self._held = bytearray()
        self.lost = 0  # lines for which there was no room

    def unwritten(self) -> int:
        """How many lines the reader has not got."""
        return self.lost + self._held.count(b"\n")

    def add(self, line: bytes) -> None:
        """A line to write."""
        if len(self._held) + len(line) > _MOST_HELD:
            self.lost += 1
        else:
            self._held += line

    def flush(self, patience: float) -> None:
        """Writes what the reader takes; waits up to `patience` s for it.  Raises OSError."""
        from ipttrace import ready

        while self._held and ready.writable(1, patience):
            del self._held[: os.write(1, self._held[:_PIECE])]


class _Control:
    """Sets of rules on stdin, one a line."""

    def __init__(self) -> None:
        self._rest = b""

    def lines(self, timeout: float) -> list[str] | None:
        """The lines that have arrived; None: there will be no more."""
        from ipttrace import ready

        if not ready.readable(0, timeout=timeout):
            return []
        data = os.read(0, 1 << 16)
        if not data or len(self._rest) > _LONGEST:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [one.decode("utf-8", "replace") for one in lines if one.strip()]
