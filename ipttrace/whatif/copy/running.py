# SPDX-License-Identifier: GPL-2.0-only
"""Starts and ends a copy.

The program forks a process that gives up its rights and waits; its child, the first process
of the new process namespace, is inside.main(); the agent is a child of that.  Each is killed
when its parent dies, and the namespaces end with them.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn

from ipttrace import namespaces
from ipttrace.text import clean
from ipttrace.whatif.copy import confined, inside
from ipttrace.whatif.copy.commands import Done
from ipttrace.whatif.copy.trace import Tracing
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.spec import Connection
from ipttrace.whatif.snapshot.model import Snapshot

_PATIENCE: Final = 120.0  # s
_MOST_ANSWER: Final = 256 << 20


class Copy:
    """A copy that runs: sends packets, traces them, runs programs in it."""

    def __init__(self, snapshot: Snapshot, line: socket.socket, tracing: Tracing) -> None:
        self.snapshot = snapshot
        self.notes: list[str] = []  # what could not be copied
        self.outer: frozenset[str] = frozenset()  # devices with outer ends
        self._line = line
        self._file = line.makefile("rwb")
        self._tracing = tracing
        self._started = False
        self.ended = False  # it answers no more

    @property
    def names(self) -> dict[int, str]:
        """Names of network namespaces by inode, for rows."""
        known = self.trace.hello.get("netns", {})
        return {int(inode): clean(str(name)) for inode, name in known.items() if name == "copy"}

    @property
    def trace(self) -> Any:
        """The trace of all packets so far: trace.session.Trace."""
        return self._tracing.trace

    @property
    def asked(self) -> bool:
        """Whether a packet was sent before."""
        return self._started

    def wait_built(self) -> None:
        """Returns once the copy has its network and rules.  Raises WhatIfError."""
        found = self._answer()
        self.notes = [clean(text, 300) for text in found["notes"]]
        self.outer = frozenset(found["outer"])

    def ask(self, op: str, **values: Any) -> dict[str, Any]:
        """Has inside.Inside carry out an order.  Raises WhatIfError."""
        self._file.write(
            json.dumps({"op": op, **values}).encode("utf-8", "surrogateescape") + b"\n"
        )
        self._file.flush()
        return self._answer()

    def connect(self, connection: Connection, state: str, opener: dict[str, Any] | None) -> None:
        """Makes the connection exist, untraced.  Raises WhatIfError.

        `opener`: its first packet, as for `send`, or None if it cannot be sent.
        """
        if self._started:
            self._tracing.disarm()
        self.ask(
            "connection",
            original=connection.original,
            reply=connection.reply,
            proto=connection.proto,
            mark=connection.mark,
            zone=connection.zone,
            state=state,
            opener=opener,
            macs={one.name: one.lladdr for one in self.snapshot.devices},
        )

    def send(self, packets: list[dict[str, Any]]) -> tuple[range, dict[str, Any]]:
        """Sends packets, traced: returns their rows in the trace's store, and what left.

        Each is ``{"data": hexadecimal digits, "device": name}``, a frame that comes in through the
        device, or without one an IP packet that this host sends, perhaps with a "mark".
        Raises WhatIfError.
        """
        if not self._started:
            self._started = True
            self.ask("trace")
            self._tracing.begin()
        self._tracing.arm()
        first = self.trace.store.end
        found = self.ask("send", packets=packets)
        self._tracing.disarm()
        return range(first, self.trace.store.end), found

    def run(self, argv: list[str], text: str = "") -> Done:
        """Runs a program in the copy, for example iptables.  Raises WhatIfError."""
        found = self.ask("run", argv=argv, text=text)
        return Done(found["status"], found["output"], found["errors"])

    def _answer(self) -> dict[str, Any]:
        try:
            line = self._file.readline(_MOST_ANSWER)
            self.ended = not line
            found: dict[str, Any] = json.loads(line) if line else {"error": "the copy ended"}
        except TimeoutError:
            self.ended = True
            raise WhatIfError(f"the copy does not answer within {_PATIENCE:.0f} s") from None
        except (OSError, ValueError):
            self.ended = True
            raise WhatIfError("the copy ended") from None
        if "error" in found:
            raise WhatIfError(clean(str(found["error"]), 400))
        return found

    def close(self) -> None:
        """Closes what leads into the copy."""
        self._tracing.close()
        self._file.close()
        self._line.close()


@contextlib.contextmanager
def running(snapshot: Snapshot) -> Iterator[Copy]:
    """A context manager: a copy of the snapshot, which ends with it.

    Must be entered while this process has one thread.  Raises WhatIfError.
    """
    here, there = socket.socketpair()
    here.settimeout(_PATIENCE)
    stream_read, stream_write = os.pipe()
    control_read, control_write = os.pipe()
    parent = os.getpid()
    for file in (sys.stdout, sys.stderr):
        if file is not None:
            file.flush()
    child = os.fork()
    if child == 0:
        here.close()
        os.close(stream_read)
        os.close(control_write)
        ends = inside.Descriptors(there.detach(), stream_write, control_read)
        _exit_after(lambda: _child(snapshot, ends, parent))
    there.close()
    os.close(stream_write)
    os.close(control_read)
    copy = Copy(snapshot, here, Tracing(stream_read, control_write))
    try:
        copy.wait_built()
        yield copy
    finally:
        copy.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _exit_after(run: Callable[[], int]) -> NoReturn:
    status = 1
    try:
        status = run()
    except BaseException as error:
        print(f"ipttrace: the copy ended early: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def _child(snapshot: Snapshot, ends: inside.Descriptors, parent: int) -> int:
    """The program's child: gives up its rights, and waits for the copy's first process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    namespaces.die_with(parent)
    # Before this process may no longer read the files.
    from ipttrace.capture import agent, hello  # noqa: F401
    from ipttrace.capture.netlink import engine  # noqa: F401
    from ipttrace.capture.rules import netlink_watch  # noqa: F401

    try:
        confined.confine()
    except namespaces.NamespaceError as error:
        os.write(ends.line, json.dumps({"error": str(error)}).encode() + b"\n")
        return 1
    namespaces.die_with(parent)  # the kernel clears it on some changes of credentials
    child = os.fork()
    if child == 0:
        _exit_after(lambda: inside.main(snapshot, ends))
    for fd in (ends.line, ends.stream, ends.control):
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
