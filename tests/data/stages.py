# SPDX-License-Identifier: GPL-2.0-only
"""Records of stages of sockets, and traces that are fed with them."""

from __future__ import annotations

import io
import json
from ipaddress import ip_address
from typing import Any, cast

import numpy as np

from ipttrace.stream import record
from ipttrace.stream.frames import Frame, Kind
from ipttrace.stream.messages import Process
from ipttrace.stream.writer import Writer
from tests.data import messages
from tests.data.records import MONO, Array, entry, joined, leave, rule, tcp, v4
from tests.data.stations import WALL

SERVER, CLIENT = ("10.0.0.1", 80), ("10.0.0.2", 40000)
HANDSHAKE = (record.SYN_TAKEN, record.SYN_ACK_SENT, record.ESTABLISHED, record.ACCEPTED)


def stage(
    what: int,
    at: int = 0,
    *,
    local: tuple[str, int] = SERVER,
    remote: tuple[str, int] | None = CLIENT,
    **fields: Any,
) -> Array:
    """A socket record, shape (1,), `at` ns into the trace."""
    made = np.zeros(1, record.SOCKET_DTYPE)
    given: dict[str, Any] = {"protocol": 6, "netns": 7, "family": 10 if ":" in local[0] else 2}
    for name, end in (("local", local), ("remote", remote)):
        if end is not None:
            put(made, name, end[0])
            made[f"{name}_port"] = end[1]
    for name, value in ({"stage": what, "time": MONO + at} | given | fields).items():
        made[name] = value
    return made


def put(made: Array, name: str, address: str) -> None:
    """Sets an address."""
    packed = ip_address(address).packed
    made[name][0, : len(packed)] = np.frombuffer(packed, np.uint8)


def frame(*records: Array) -> Frame:
    """A SOCKET frame."""
    return Frame(Kind.SOCKET, np.concatenate(records).astype(record.SOCKET_DTYPE).tobytes())


def processes(**by_number: Any) -> Frame:
    """A PROCESSES frame; numbers are written `_1`."""
    named = {number.removeprefix("_"): about for number, about in by_number.items()}
    return Frame(Kind.PROCESSES, json.dumps({"processes": named}).encode())


HOST, BOX = 4026531840, 4026532456
CONTAINER = "5e1f" + "0" * 60


def stream(**hello: Any) -> bytes:
    """A complete stream of a host: packets to a container, and connections with their stages.

    Some go well, one finds a full accept queue, and one is answered by nobody.
    """
    sink = io.BytesIO()
    writer = Writer(sink)
    clock = {"mono": MONO, "wall": WALL}
    netns = {str(HOST): "host", str(BOX): "web"}
    about = {"sockets": True, "netns": netns, "clock": clock, "engine": "bpf"}
    writer.hello(messages.hello(**about | hello))
    inside = {"comm": "nginx", "exe": "/usr/sbin/nginx", "runtime": "docker", "pids": [4711, 7]}
    process = inside | {"pid": 4711, "uid": 101, "container": CONTAINER}
    writer.processes({"processes": {"1": cast(Process, process)}})
    server, called = ("172.17.0.2", 80), ("192.0.2.7", 8080)
    client = ("10.1.0.2", 40004)
    box: dict[str, Any] = {"netns": BOX, "owner": 1}
    queue: dict[str, Any] = {"flags": record.SK_F_QUEUE, "queue_most": 3}
    of_nginx: dict[str, Any] = {"pid": 4711, "tid": 4711, "comm": b"nginx", "levels": 2}
    of_nginx["flags"] = record.SK_F_PROCESS | record.SK_F_QUEUE
    listener: dict[str, Any] = {"sk": 0x100, **box}
    made = [stage(record.LISTENING, 0, local=("0.0.0.0", 80), remote=None, **queue | listener)]

    def handshake(port: int, at: int) -> None:
        ends: dict[str, Any] = {"local": server, "remote": (client[0], port), "listener": 0x100}
        syn = stage(record.SYN_TAKEN, at, **ends, **box, flags=record.SK_F_ORIGINAL)
        put(syn, "orig_dst", called[0])
        syn["orig_dport"] = called[1]
        child = {**ends, **box, "sk": 0x200 + port, "request": 0x300 + port}
        made.extend([syn, stage(record.SYN_ACK_SENT, at + 31_000, **ends, **box)])
        made.append(stage(record.ESTABLISHED, at + 1_250_000, **child, **queue, queue=1))
        made.append(stage(record.ACCEPTED, at + 1_300_000, **child | queue | of_nginx))
        read = child | of_nginx | {"flags": record.SK_F_PROCESS}
        made.append(stage(record.FIRST_READ, at + 1_900_000, **read))

    handshake(client[1], 1_000_000)
    handshake(client[1] + 1, 5_000_000)
    # The accept queue is full: the same SYN three times.
    for number in range(3):
        full: dict[str, Any] = {
            "flags": record.SK_F_QUEUE | record.SK_F_ACCEPT_FULL,
            "queue": 4,
            "queue_most": 3,
        }
        ends: dict[str, Any] = {"local": server, "remote": (client[0], 40_009), "listener": 0x100}
        at = 20_000_000 + 1_000_000_000 * number
        made.append(stage(record.SYN_DROPPED, at, **ends, **box | full))
    # A process of this host, which nobody answers.
    curl: dict[str, Any] = {"pid": 815, "tid": 815, "comm": b"curl", "netns": HOST, "levels": 1}
    own: dict[str, Any] = {"local": ("10.1.0.1", 51_000), "remote": ("192.0.2.99", 443)}
    flags = record.SK_F_PROCESS
    made.append(stage(record.CONNECTING, 30_000_000, **own, **curl, sk=9, flags=flags))
    own["netns"] = HOST
    made.append(stage(record.REFUSED, 33_000_000, **own, sk=9, error=111))
    writer.records(record.SOCKET, joined(*made))
    entries, rules, exits = [], [], []
    for number, (hook, end) in enumerate(((0, called), (1, server))):
        packet = v4(6, client[0], end[0], tcp(client[1], end[1], 2))
        first = record.F_FIRST if not number else 0
        given: dict[str, Any] = {
            "hook": hook,
            "flags": first,
            "netns": BOX,
            "source": record.SOURCE_BPF,
        }
        given["table"] = (b"nat", b"filter")[number]
        entries.append(entry(1 + number, 900_000 + 50_000 * number, packet, skb=0x1000, **given))
        rules.append(rule(1 + number, 0, (b"PREROUTING", b"INPUT")[number], 1))
        exits.append(leave(1 + number, 1, 1, 910_000 + 50_000 * number, skb=0x1000))
    for kind, some in ((record.ENTRY, entries), (record.RULE, rules), (record.EXIT, exits)):
        writer.records(kind, joined(*some))
    counted = {"due": len(made), "delivered": len(made), "lost": 0, "missed": 0, "refused": 0}
    writer.end(messages.end(due=[2, 2, 2], delivered=[2, 2, 2], calls=2, sockets=counted))
    return sink.getvalue()
