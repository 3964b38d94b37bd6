# SPDX-License-Identifier: GPL-2.0-only
"""Starts agents on other hosts over the system's ssh and holds both ends of each.

Whoever is asked for is asked while the terminal is still a terminal: ssh asks
for keys and passwords itself, sudo's password is asked for here, and only when
the sudo there wants one.  It goes there as a line of sudo's stdin, never as an
argument or in an environment.  There is no master connection to leave behind:
each ssh is a child of ours, and when its stdin ends, in whatever way we do,
the agent there ends.  Must not decode the stream.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import getpass
import os
import select
import shlex
import signal
import subprocess
import sys
import termios
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import BinaryIO, Final, Self, cast

from ipttrace.link import PATIENCE, STOP, LinkError
from ipttrace.text import clean

OPTIONS: Final = (
    "-T",  # no terminal: the stream is binary
    "-a",
    "-x",
    # Neither be a master for others nor take up what else is set up for a shell.
    *("-o", "ControlMaster=no"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "RemoteCommand=none"),
    # A link that breaks without a word is noticed within half a minute.
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
)

_WORD: Final = b"ipttrace-link:"
_PROMPT: Final = b"ipttrace-link: sudo asks"
_READY: Final = "ready"
_SUDO: Final = "sudo"
# What the far side lacks, and what to do about it.
_LACKS: Final = {
    "missing": "{command} is not installed there: install it, or name it with --remote-command",
    "no-sudo": "tracing needs root, and there is no sudo there: log in as root (root@…)",
}
# POSIX sh.  No newline, backslash or exclamation mark: the login shell that gets
# this quoted may be any.  It says where it stands, waits for a line, and becomes
# the agent; `read` takes no more than its line.
_SCRIPT: Final = "; ".join(
    (
        'say() { echo "ipttrace-link: $1"; }',
        'p=$(command -v "$1" || PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/opt/ipttrace/bin'
        ' command -v "$1") || { say missing; exit 127; }',
        "shift",
        'if [ "$(id -u)" = 0 ]; then say ready; read -r _ || exit 1; exec "$p" "$@"; fi',
        "command -v sudo >/dev/null || { say no-sudo; exit 126; }",
        "say sudo",
        "read -r _ || exit 1",
        f'exec sudo -S -p "{_PROMPT.decode()}" -- "$p" "$@"',
    )
)
_MOST: Final = 1 << 16  # bytes kept of what a far side says
_TOLD: Final = 200  # lines of it that are passed on


def check_host(host: str) -> None:
    """Raises LinkError unless `host` may be given to ssh as a destination."""
    if not host or host.startswith("-") or not host.isprintable() or " " in host:
        raise LinkError(f"--ssh {clean(host, 80)!r}: this is no host; give HOST or USER@HOST")


def far_command(program: Sequence[str], arguments: Sequence[str]) -> str:
    """The shell command that becomes the agent on the far side.

    `program`: the words of the ipttrace there; `arguments`: those of
    ``ipttrace agent``.
    """
    # The shell there starts in the home folder.
    words = [program[0].removeprefix("~/"), *program[1:], "agent", "--control", *arguments]
    return shlex.join(["exec", "sh", "-c", _SCRIPT, "sh", *words])


class SshLink:
    """An agent on `host`.  Until `started` it may ask and say things on the terminal."""

    def __init__(self, host: str, program: Sequence[str], arguments: Sequence[str]) -> None:
        """Starts ssh.  Raises LinkError."""
        check_host(host)
        self.host = clean(host)
        self._program = shlex.join(program)
        argv = ["ssh", *OPTIONS, "--", host, far_command(program, arguments)]
        try:
            self._process = _deaf_to_interrupts(argv)
        except OSError as error:
            raise LinkError(f"ssh cannot be started: {error.strerror}") from error
        self.control = cast(BinaryIO, self._process.stdin)
        self.stream = cast(BinaryIO, self._process.stdout)
        self._errors = cast(BinaryIO, self._process.stderr)
        self._listener: threading.Thread | None = None
        self._heard = bytearray()  # of stderr, the line that is not whole yet
        self._asked = False
        self._needs_sudo = False
        self._show = True  # what it says, at once
        self._words: deque[str] = deque(maxlen=_TOLD)
        self._ended_by_us = False
        self._told = False  # why it broke, by `broke`
        self._said = 0  # lines, ever
        self._before = 0  # those before the stream began

    # -- while the terminal is a terminal

    def log_in(self) -> None:
        """Waits until the far side's shell runs; ssh may ask for a password.

        Raises LinkError where it cannot be reached or lacks something.
        """
        # What a login script prints comes before the word, on the same line even.
        said = b""
        while (at := said.find(_WORD)) < 0 or b"\n" not in said[at:]:
            if not self._wait(self._incoming):
                raise self._ended("ssh ended")
            said = said[-_MOST:] + os.read(self.stream.fileno(), 4096)
        word = said[at + len(_WORD) :].split(b"\n")[0].strip().decode("ascii", "replace")
        if word not in (_READY, _SUDO):
            lacks = _LACKS.get(word, "what it answers is not understood")
            raise LinkError(f"{self.host}: {lacks.format(command=clean(self._program, 80))}")
        self._needs_sudo = word == _SUDO

    @property
    def needs_sudo(self) -> bool:
        """Whether sudo there may ask for a password."""
        return self._needs_sudo

    def go(self) -> None:
        """The far side becomes the agent, or asks for a password first."""
        self._send(b"\n")

    def asks(self) -> bool:
        """Waits; True: sudo wants a password; False: the stream has begun.

        Raises LinkError where it ended before either.
        """
        if not self._wait(lambda: self._asked or self._incoming()):
            raise self._ended("the agent ended before it traced anything")
        return self._asked

    def answer(self, password: str) -> None:
        """Sudo's password."""
        self._asked = False
        self._send(os.fsencode(password) + b"\n")

    def started(self, *, quiet: bool) -> None:
        """The stream is the caller's from now on.

        What the far side says is kept where `quiet`, else shown at once.
        """
        self._show = not quiet
        self._before = self._said
        self._listener = threading.Thread(target=self._listen, name=f"ssh {self.host}", daemon=True)
        self._listener.start()

    def _send(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # its end says why
            self.control.write(line)

    def _incoming(self) -> bool:
        """Whether stdout has bytes that nobody has read."""
        size = array.array("i", [0])
        fcntl.ioctl(self.stream.fileno(), termios.FIONREAD, size)
        return size[0] > 0

    def _wait(self, came: Callable[[], bool]) -> bool:
        """Hears what it says until `came`; False where stdout has ended before."""
        poll = select.poll()
        poll.register(self.stream, select.POLLIN)
        poll.register(self._errors, select.POLLIN)
        while not came():
            events = dict(poll.poll())
            if self._errors.fileno() in events and not self._hear():
                poll.unregister(self._errors)
            elif events.get(self.stream.fileno()) and not self._incoming():
                self._hear_out()
                return came()
        return True

    def _hear_out(self) -> None:
        """Its last words may still be on their way."""
        poll = select.poll()
        poll.register(self._errors, select.POLLIN)
        while poll.poll(1000 * PATIENCE / 5) and self._hear():
            pass

    def _ended(self, what: str) -> LinkError:
        """The error that says why it is over, where the far side has not said it."""
        self._say_rest()
        said = self._words[-1] if self._words else what
        return LinkError(f"{self.host}: {said}", said=bool(self._words))

    # -- what it says

    def _hear(self) -> bool:
        """Takes in a portion of stderr; False at its end."""
        try:
            data = os.read(self._errors.fileno(), 4096)
        except OSError:
            return False
        self._heard += data
        if _PROMPT in self._heard:
            self._asked = True
            self._heard[:] = self._heard.replace(_PROMPT, b"\n")
        *lines, rest = self._heard.split(b"\n")
        self._heard[:] = rest[-_MOST:]
        for line in lines:
            self._say(bytes(line))
        return bool(data)

    def _say_rest(self) -> None:
        self._say(bytes(self._heard))
        self._heard.clear()

    def _say(self, line: bytes) -> None:
        text = clean(line.strip().removeprefix(b"ipttrace: "))
        if not text:
            return
        self._words.append(text)
        self._said += 1
        if self._show and self._said <= _TOLD:
            print(f"ipttrace: {self.host}: {text}", file=sys.stderr, flush=True)

    def _listen(self) -> None:
        while self._hear():
            pass
        self._say_rest()

    def repeat(self, *, alone: bool) -> bool:
        """Says what was kept; False where that is nothing, or `alone` and told already."""
        if self._show or (alone and self._told):
            return False
        kept = list(self._words)[-(self._said - self._before) :] if self._spoke else []
        for text in kept:
            print(f"ipttrace: {self.host}: {text}", file=sys.stderr)
        return bool(kept)

    # -- its end

    def broke(self) -> str | None:
        """Once the stream has ended: why, in one line, where that is known.  Waits a little."""
        try:
            status = self._process.wait(PATIENCE / 5)
        except subprocess.TimeoutExpired:
            return None
        if self._listener is not None:
            self._listener.join(PATIENCE / 5)
        why = self._words[-1] if self._spoke else ""
        # 255 is ssh's own, and what it makes of an agent that a signal killed.
        if status < 0 or (status == 255 and why):
            why = f"the link broke: {why or 'ssh was killed'}"
        self._told = bool(status and why)
        return why if self._told else None

    @property
    def _spoke(self) -> bool:
        """Whether it said anything since the stream began."""
        return self._said > self._before

    def stop(self) -> None:
        """Asks the agent to end its stream in order."""
        with contextlib.suppress(OSError, ValueError):
            self.control.write(STOP)
            self.control.close()

    def close(self) -> int:
        """Waits for its end; the agent's exit status, 1 where the link broke."""
        for file in (self.control, self.stream):
            with contextlib.suppress(OSError, ValueError):
                file.close()
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.abort()
            status = self._process.wait()
        if self._listener is not None:
            self._listener.join(PATIENCE / 5)
        if status == 255 or status < 0:
            if not self._spoke and not self._ended_by_us:
                self._say(b"ssh was killed" if status < 0 else b"the agent was killed there")
            return 1
        return status

    def abort(self) -> None:
        """Ends it now, asking nobody; ssh gives the terminal back as it was."""
        if self._process.poll() is None:
            self._ended_by_us = True
            self._process.terminate()


class SshLinks:
    """Agents on several hosts; as a context, gone with its end."""

    def __init__(
        self, hosts: Sequence[str], program: Sequence[str], arguments: Sequence[str]
    ) -> None:
        """See `SshLink`.  Raises LinkError, before anything starts, where a host is none."""
        for host in hosts:
            check_host(host)
        twice = [host for number, host in enumerate(hosts) if host in hosts[:number]]
        if twice:
            raise LinkError(f"--ssh {clean(twice[0])}: this host is named twice")
        self._hosts = hosts
        self._program = program
        self._arguments = arguments
        self._links: list[SshLink] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for link in self._links:
            link.abort()
        for link in self._links:
            link.close()

    def __iter__(self) -> Iterator[SshLink]:
        return iter(self._links)

    def start(self, *, quiet: bool) -> list[SshLink]:
        """Brings all agents to where their streams begin; asks what must be asked.

        Raises LinkError where one of them cannot.  `quiet`: see `SshLink.started`.
        """
        for host in self._hosts:
            link = SshLink(host, self._program, self._arguments)
            self._links.append(link)
            link.log_in()
        # Roots last: they trace from then on, and a person takes time to type.
        asking = [link for link in self._links if link.needs_sudo]
        for link in asking:
            link.go()
        passwords = _Passwords()
        answers = [(link, passwords.ask(link.host)) for link in asking if link.asks()]
        for link, password in answers:
            link.answer(password)
        for link in self._links:
            if not link.needs_sudo:
                link.go()
        for link in self._links:
            while link.asks():
                link.answer(passwords.ask(link.host))
        for link in self._links:
            link.started(quiet=quiet)
        return self._links


class _Passwords:
    """Asks for sudo's passwords; one host's is another's only if the person says so."""

    def __init__(self) -> None:
        self._last: tuple[str, str] | None = None  # host and password

    def ask(self, host: str) -> str:
        hint = ""
        if self._last is not None and self._last[0] != host:
            hint = f" (Enter: as for {self._last[0]})"
        password = ask_secret(host, f"sudo password for {host}{hint}: ")
        if not password and hint and self._last is not None:
            password = self._last[1]
        self._last = host, password
        return password


def ask_secret(host: str, prompt: str) -> str:
    """What a person types at the terminal, unseen.  Raises LinkError where there is nobody."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise LinkError(
            f"{host}: sudo asks for a password, and there is no terminal to ask on:"
            " log in as root (root@HOST), or let sudo there run ipttrace without one"
        ) from None
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise LinkError(f"{host}: sudo got no password") from None


def _deaf_to_interrupts(argv: Sequence[str]) -> subprocess.Popen[bytes]:
    """A child that Ctrl-C at the terminal does not end: its last books would be lost.

    What is ignored at the exec stays so; ssh honours it.  It stays in the
    terminal's foreground, for it may have to ask.
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
