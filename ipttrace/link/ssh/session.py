# SPDX-License-Identifier: GPL-2.0-only
"""One agent on one host: login, sudo, its lines on stderr, its end."""

from __future__ import annotations

import array
import contextlib
import fcntl
import math
import os
import select
import shlex
import signal
import subprocess
import sys
import termios
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import BinaryIO, Final, cast

from ipttrace.link.base import PATIENCE, Link, LinkError
from ipttrace.link.ssh.command import (
    PROBLEMS,
    PROMPT,
    READY,
    SUDO,
    TAG,
    check_host,
    ssh_command,
)
from ipttrace.text import clean

# s, until the shell there runs the script.  sshd itself gives as long to type a password.
LOGIN_PATIENCE: Final = 120.0
_MAX_BYTES: Final = 1 << 16  # kept of output whose line has not ended
_MAX_LINES: Final = 200  # of stderr that are printed or kept


class SshLink(Link):
    """An agent on `host`.  Until `begin`, ssh and the agent may use the terminal."""

    def __init__(self, host: str, program: Sequence[str], arguments: Sequence[str]) -> None:
        """Starts ssh.  For the arguments see `ssh_command`.  Raises LinkError."""
        check_host(host)
        self.host = clean(host)
        self.needs_sudo = False  # known after `log_in`
        self._program = shlex.join(program)
        try:
            self._process = _popen_without_interrupts(ssh_command(host, program, arguments))
        except OSError as error:
            raise LinkError(f"cannot start ssh: {error.strerror}") from error
        self.control = cast(BinaryIO, self._process.stdin)
        self.stream = cast(BinaryIO, self._process.stdout)
        self._stderr = cast(BinaryIO, self._process.stderr)
        self._reader: threading.Thread | None = None
        self._partial = bytearray()  # the last line of stderr, without its end
        self._prompted = False
        self._quiet = False
        self._lines: deque[str] = deque(maxlen=_MAX_LINES)
        self._count = 0  # lines, ever
        self._count_at_begin = 0
        self._aborted = False
        self._reported = False  # `failure` has returned the reason

    # -- before the stream begins

    def log_in(self) -> None:
        """Waits until the script runs on the host; ssh may ask for a password.

        Raises LinkError if the host cannot be reached or lacks something.
        """
        # The output of a login script precedes the tag, possibly on the same line.
        output = b""
        deadline = time.monotonic() + LOGIN_PATIENCE
        while (at := output.find(TAG)) < 0 or b"\n" not in output[at:]:
            if not self._wait(self._readable, deadline):
                raise self._end_error("ssh ended")
            output = output[-_MAX_BYTES:] + os.read(self.stream.fileno(), 4096)
        state = output[at + len(TAG) :].split(b"\n")[0].strip().decode("ascii", "replace")
        if state not in (READY, SUDO):
            problem = PROBLEMS.get(state, "unexpected answer from the shell there")
            raise LinkError(f"{self.host}: {problem.format(command=clean(self._program, 80))}")
        self.needs_sudo = state == SUDO

    def start_agent(self) -> None:
        """Lets the script become the agent, or sudo first."""
        self._send(b"\n")

    def wants_password(self) -> bool:
        """Waits; returns True if sudo wants a password, False if the stream has begun.

        Raises LinkError if the agent ended before either.
        """
        if not self._wait(lambda: self._prompted or self._readable()):
            raise self._end_error("the agent ended before it traced anything")
        return self._prompted

    def send_password(self, password: str) -> None:
        """Sends sudo's password."""
        self._prompted = False
        self._send(os.fsencode(password) + b"\n")

    def begin(self, *, quiet: bool) -> None:
        """Leaves the stream to the caller.

        From now on lines of stderr are kept if `quiet`, else printed at once.
        """
        self._quiet = quiet
        self._count_at_begin = self._count
        self._reader = threading.Thread(
            target=self._read_all_stderr, name=f"ssh {self.host}", daemon=True
        )
        self._reader.start()

    def _send(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # stderr says why ssh ended
            self.control.write(line)

    def _readable(self) -> bool:
        """Whether stdout has bytes."""
        size = array.array("i", [0])
        fcntl.ioctl(self.stream.fileno(), termios.FIONREAD, size)
        return size[0] > 0

    def _wait(self, condition: Callable[[], bool], deadline: float | None = None) -> bool:
        """Reads stderr until `condition` holds; returns False if stdout ended before.

        Raises LinkError after the deadline, as time.monotonic().
        """
        poll = select.poll()
        poll.register(self.stream, select.POLLIN)
        poll.register(self._stderr, select.POLLIN)
        while not condition():
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            events = dict(poll.poll(None if left is None else math.ceil(1000 * left)))
            if left == 0:
                self.abort()
                raise LinkError(f"{self.host}: no login within {LOGIN_PATIENCE:.0f} s")
            if self._stderr.fileno() in events and not self._read_stderr():
                poll.unregister(self._stderr)
            elif events.get(self.stream.fileno()) and not self._readable():
                self._drain_stderr()
                return condition()
        return True

    def _drain_stderr(self) -> None:
        """Reads stderr to its end; the last lines may arrive after stdout has ended."""
        poll = select.poll()
        poll.register(self._stderr, select.POLLIN)
        while poll.poll(1000 * PATIENCE / 5) and self._read_stderr():
            pass

    def _end_error(self, default: str) -> LinkError:
        """Returns the error for an end before the stream began: the last line, or `default`."""
        self._flush_partial()
        reason = self._lines[-1] if self._lines else default
        return LinkError(f"{self.host}: {reason}", printed=bool(self._lines))

    # -- stderr

    def _read_stderr(self) -> bool:
        """Reads a portion; returns False at the end."""
        try:
            data = os.read(self._stderr.fileno(), 4096)
        except OSError:
            return False
        self._partial += data
        if PROMPT in self._partial:
            self._prompted = True
            self._partial[:] = self._partial.replace(PROMPT, b"\n")
        *lines, rest = self._partial.split(b"\n")
        self._partial[:] = rest[-_MAX_BYTES:]
        for line in lines:
            self._add_line(bytes(line))
        return bool(data)

    def _read_all_stderr(self) -> None:
        while self._read_stderr():
            pass
        self._flush_partial()

    def _flush_partial(self) -> None:
        self._add_line(bytes(self._partial))
        self._partial.clear()

    def _add_line(self, line: bytes) -> None:
        text = clean(line.strip().removeprefix(b"ipttrace: "))
        if not text:
            return
        self._lines.append(text)
        self._count += 1
        if not self._quiet and self._count <= _MAX_LINES:
            self._print(text)

    def _print(self, text: str) -> None:
        print(f"ipttrace: {self.host}: {text}", file=sys.stderr, flush=True)

    @property
    def _new_lines(self) -> int:
        """Lines since the stream began."""
        return self._count - self._count_at_begin

    def print_kept(self, *, alone: bool) -> bool:
        """Prints the kept lines; returns whether there were any.

        Prints nothing if the link is `alone` and `failure` has returned the reason.
        """
        if not self._quiet or (alone and self._reported):
            return False
        kept = list(self._lines)[-self._new_lines :] if self._new_lines else []
        for text in kept:
            self._print(text)
        return bool(kept)

    # -- the end

    def failure(self) -> str | None:
        """Returns, once the stream has ended, why it broke, in one line; None if unknown.

        Waits a little for the exit status.
        """
        try:
            status = self._process.wait(PATIENCE / 5)
        except subprocess.TimeoutExpired:
            return None
        if self._reader is not None:
            self._reader.join(PATIENCE / 5)
        reason = self._lines[-1] if self._new_lines else ""
        # ssh exits with 255 for its own errors, and if a signal killed the agent.
        if status < 0 or (status == 255 and reason):
            reason = f"connection lost: {reason or 'ssh was killed'}"
        self._reported = bool(status and reason)
        return reason if self._reported else None

    def close(self) -> int:
        """Waits for the end; returns the agent's exit status, 1 if the connection broke."""
        self.close_ends()
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.abort()
            try:
                status = self._process.wait(PATIENCE / 5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                status = self._process.wait()
        if self._reader is not None:
            self._reader.join(PATIENCE / 5)
        if status == 255 or status < 0:
            if not self._new_lines and not self._aborted:
                self._add_line(b"ssh was killed" if status < 0 else b"the agent was killed")
            return 1
        return status

    def abort(self) -> None:
        """Ends ssh at once; it restores the terminal's settings."""
        if self._process.poll() is None:
            self._aborted = True
            self._process.terminate()


def _popen_without_interrupts(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """Starts a process that ignores Ctrl-C, so that the agent can still write its last books.

    ssh keeps SIGINT ignored if it is at the exec.  It stays in the terminal's
    foreground process group because it may have to ask for a password.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
    finally:
        signal.signal(signal.SIGINT, before)
