# SPDX-License-Identifier: GPL-2.0-only
"""Which stages are of the same connection: those between the same ends, in the same namespace.

Handshakes are few beside packets: stages are looked at one by one.  Must not do I/O.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from ipttrace.netfilter import NFPROTO_IPV6
from ipttrace.stream import record
from ipttrace.text import clean
from ipttrace.trace.arrays import Array
from ipttrace.trace.sockets import frames
from ipttrace.trace.sockets.stage import UDP, End, Process, Stage

_MOST: Final = 1 << 14  # connections that are remembered: beyond, the one not met for longest goes
_MOST_PROCESSES: Final = 1 << 15
_MOST_WAITING: Final = 1 << 14  # stages that are not taken: the oldest go
_COMM: Final = 16  # characters
_BYTES: Final = 600  # of a connection or a process, about

# Of no connection, or with the first packet of one.
_BEGINNINGS: Final = (record.CONNECTING, record.SYN_TAKEN)
_ENDS: Final = (record.CLOSED, record.REFUSED, record.ABANDONED, record.DENIED)
# After which another SYN between the same ends is a repetition.
_BEFORE_DONE: Final = (
    record.SYN_TAKEN,
    record.SYN_DROPPED,
    record.SYN_ACK_SENT,
    record.ACK_DROPPED,
)
_UNNAMED: Final = ("0.0.0.0", "::")
_OF_CLIENT: Final = (record.CONNECTING, record.CONNECTED, record.DENIED)
_OF_SERVER: Final = (*_BEFORE_DONE, record.ESTABLISHED, record.ACCEPTED, record.ABANDONED)

_Key = tuple[int, int, End, End]


@dataclass(slots=True)
class _Connection:
    number: int
    last: int  # stage
    time: int
    counts: dict[int, int]  # by stage
    sk: int = 0
    listener: int = 0
    request: int = 0
    original: End | None = None
    answers: End | None = None
    process: Process | None = None  # that has accepted or connected
    server: bool | None = None


class Sockets:
    """The stages of one stream."""

    def __init__(self) -> None:
        self._waiting: deque[Stage] = deque(maxlen=_MOST_WAITING)
        self._next = 1
        self.begin()

    def begin(self) -> None:
        """Forgets connections and processes: another stream begins."""
        self._connections: OrderedDict[_Key, _Connection] = OrderedDict()
        self._processes: OrderedDict[int, Process] = OrderedDict()

    @property
    def size(self) -> int:
        """About how many bytes are kept of the stream."""
        kept = len(self._connections) + len(self._processes) + len(self._waiting)
        return _BYTES * kept

    def learn(self, frame: Mapping[str, Any]) -> None:
        """Adds a PROCESSES frame.  Raises StreamError."""
        for number, process in frames.processes(frame):
            self._processes[number] = process
            if len(self._processes) > _MOST_PROCESSES:
                self._processes.popitem(last=False)

    def take(self) -> list[Stage]:
        """The stages since the last call, in order of the stream."""
        found = list(self._waiting)
        self._waiting.clear()
        return found

    def feed(self, stages: Array, offset: int) -> list[Stage]:
        """Adds records of record.SOCKET_DTYPE, (n,); returns their stages, in order of time.

        `offset`: of the wall clock from the kernel's, ns.
        """
        made = []
        order = stages["time"].argsort(kind="stable").tolist()
        columns = {name: stages[name].tolist() for name in stages.dtype.names or ()}
        for at in order:
            values = {name: column[at] for name, column in columns.items()}
            made.append(self._stage(values, offset))
        self._waiting.extend(made)
        return made

    def _stage(self, of: dict[str, Any], offset: int) -> Stage:
        family, flags = of["family"], of["flags"]

        def end(address: str, port: str) -> End:
            return frames.end(family, bytes(of[address]), of[port])

        local, remote = end("local", "local_port"), end("remote", "remote_port")
        queued = bool(flags & record.SK_F_QUEUE)
        about = self._processes.get(of["owner"])
        plain = Stage(
            time=of["time"] + offset,
            stage=of["stage"],
            connection=0,
            netns=of["netns"],
            family=6 if family == NFPROTO_IPV6 else 4,
            protocol=of["protocol"],
            flags=flags,
            local=local,
            remote=remote,
            sk=of["sk"],
            listener=of["listener"],
            request=of["request"],
            process=_process(of, about),
            called=bool(flags & record.SK_F_PROCESS),
            original=end("orig_dst", "orig_dport") if flags & record.SK_F_ORIGINAL else None,
            answers=end("reply_src", "reply_sport") if flags & record.SK_F_TRANSLATED else None,
            queue=of["queue"] if queued else None,
            queue_most=of["queue_most"] if queued else None,
            requests=of["requests"] if flags & record.SK_F_REQUESTS else None,
            error=of["error"],
            denial=None if about is None else about.denial,
        )
        if remote[1] == 0 and remote[0] in _UNNAMED:
            return replace(plain, remote=None)
        return self._joined(plain, (of["netns"], of["protocol"], local, remote))

    def _joined(self, stage: Stage, key: _Key) -> Stage:
        connection = self._connections.get(key)
        if connection is None or _is_another(stage, connection):
            connection = _Connection(self._next, 0, 0, {})
            self._next += 1
        self._connections[key] = connection
        self._connections.move_to_end(key)
        if len(self._connections) > _MOST:
            self._connections.popitem(last=False)
        # A SYN that waits has no socket as yet; then its request is the socket's beginning.
        connection.sk = stage.sk or connection.sk
        connection.listener = stage.listener or connection.listener
        connection.request = stage.request or connection.request
        connection.original = stage.original or connection.original
        connection.answers = stage.answers or connection.answers
        if stage.called or connection.process is None:
            connection.process = stage.process
        if connection.server is None:
            connection.server = _is_server(stage)
        repeated = connection.counts.get(stage.stage, 0)
        found = replace(
            stage,
            connection=connection.number,
            sk=connection.sk,
            listener=connection.listener,
            request=connection.request,
            original=connection.original,
            answers=connection.answers,
            process=stage.process or connection.process,
            server=connection.server,
            since=stage.time - connection.time if connection.last else None,
            repeated=repeated,
        )
        # What a guard denies on the server's side ends no connection.
        if stage.denial is None or (stage.denial.call == "connect" and not stage.denial.dry):
            connection.last, connection.time = stage.stage, stage.time
        connection.counts[stage.stage] = repeated + 1
        return found


def _process(of: dict[str, Any], known: Process | None) -> Process | None:
    """Of a record, and what is known of its process."""
    if not of["flags"] & record.SK_F_PROCESS:
        return known if known and (known.pid or known.comm) else None
    levels = min(of["levels"], record.PID_LEVELS)
    known = known or Process()
    return replace(
        known,
        pid=of["pid"],
        tid=of["tid"],
        comm=clean(of["comm"], _COMM),
        uid=of["uid"],
        pids=tuple(of["pids"][:levels]) or known.pids,
        tids=tuple(of["tids"][:levels]),
        denial=None,
    )


def _is_server(stage: Stage) -> bool | None:
    """Whether a stage shows that this end was called, or that it calls; None: neither."""
    if stage.denial is not None:
        received = True if stage.protocol == UDP else None
        return {"connect": False, "accept": True}.get(stage.denial.call, received)
    if stage.stage in _OF_CLIENT:
        return False
    refuses = stage.stage == record.REFUSED and stage.has(record.SK_F_SENT)
    # The first datagram of a peer that this end had not named as its own.
    is_datagram = stage.stage == record.FIRST_READ and stage.protocol == UDP
    return True if stage.stage in _OF_SERVER or refuses or is_datagram else None


def _is_another(stage: Stage, connection: _Connection) -> bool:
    """Whether a stage between the ends of this connection begins another one."""
    if connection.last in _ENDS:
        # The kernel closes a socket before it sends the reset.
        return stage.stage != record.RESET
    if stage.stage not in _BEGINNINGS or stage.has(record.SK_F_AGAIN):
        return False
    if stage.stage == record.CONNECTING:
        return True
    return connection.last not in _BEFORE_DONE
