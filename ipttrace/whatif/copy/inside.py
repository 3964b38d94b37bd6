# SPDX-License-Identifier: GPL-2.0-only
"""The first process of the copy's namespaces: builds the copy, then obeys one line at a time.

A line is a JSON object with `op`; the answer is one too, with `error` if it failed:

``connection``  makes a conntrack entry, if possible by sending the packets that make it
``forget``      removes all conntrack entries
``trace``       starts the agent, whose stream and control line are descriptors
``send``        sends packets; what left the copy, and the counters that have grown
``source``      the address from which the copy sends to another
``run``         a program in the copy: status, output, errors
``load``        more rules
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from ipttrace import namespaces
from ipttrace.whatif.copy import commands, confined, conntrack, counters, network, restore
from ipttrace.whatif.copy.wires import Wires
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.packet.spec import Connection, Ends
from ipttrace.whatif.snapshot.model import Ruleset, Snapshot

_NULL_MAC: Final = "00:00:00:00:00:00"


@dataclass(frozen=True, slots=True)
class Descriptors:
    """What the processes of the copy have from outside."""

    line: int  # a socket, for orders and answers
    stream: int  # of the agent
    control: int  # likewise


class Inside:
    """The copy, from within."""

    def __init__(self, snapshot: Snapshot, ends: Descriptors) -> None:
        """Builds the copy.  Raises WhatIfError, OSError."""
        self._ends = ends
        self._mtu = {one.name: one.mtu for one in snapshot.devices}
        confined.name_network(network.OUTSIDE)
        network.quiet_outside()
        self._wires = Wires()
        confined.new_network()
        confined.name_network("copy")
        self.notes, self.outer = network.build(snapshot)
        self._wires.enter()
        self.notes += restore.load(snapshot.rulesets)
        self._table: conntrack.Table | None = None

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """Carries out an order.  Raises WhatIfError, OSError."""
        does: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "connection": self._connection,
            "forget": self._forget,
            "trace": self._trace,
            "send": self._send,
            "source": self._source,
            "run": self._run,
            "load": self._load,
        }
        return does[order["op"]](order)

    def _trace(self, _order: dict[str, Any]) -> dict[str, Any]:
        if os.fork() == 0:
            _exit_after(lambda: _agent(self._ends))
        os.close(self._ends.stream)
        os.close(self._ends.control)
        return {}

    def _forget(self, _order: dict[str, Any]) -> dict[str, Any]:
        """Removes the connections that earlier packets made."""
        if self._table is None:
            self._table = conntrack.Table()
        self._table.forget()
        return {}

    def _send(self, order: dict[str, Any]) -> dict[str, Any]:
        self._wires.settle()
        self._wires.seen()
        before = counters.read()
        refused = [self._transmit(one) for one in order["packets"]]
        self._wires.settle()
        seen = [[one.device, one.frame.hex()] for one in self._wires.seen()]
        grown = counters.changes(before, counters.read())
        return {"seen": seen, "counters": grown, "refused": [text for text in refused if text]}

    def _transmit(self, one: dict[str, Any]) -> str:
        data = bytes.fromhex(one["data"])
        device = one.get("device", "")
        if not device:
            return self._transmit_own(data, one.get("mark", 0))
        mtu = self._mtu.get(device, 1500)
        head = 18 if one.get("tagged") else 14
        if len(data) > mtu + head and head == 14 and one.get("segment"):
            self._wires.send_large(device, data, mtu)
        else:
            self._wires.send_in(device, data)
        return ""

    def _transmit_own(self, data: bytes, mark: int) -> str:
        """Sends a packet of the host; one that a socket would have cut is sent in one piece."""
        large = len(data) > min([*self._mtu.values(), network.LARGEST])
        if not large:
            return self._wires.send_out(data, mark)
        # The tables see it whole; it is cut behind them.
        network.set_mtu(dict.fromkeys(self.outer, network.LARGEST))
        try:
            return self._wires.send_out(data, mark)
        finally:
            network.set_mtu({name: self._mtu[name] for name in self.outer})

    def _source(self, order: dict[str, Any]) -> dict[str, Any]:
        version = 6 if ":" in order["to"] else 4
        return {"address": network.source_for(order["to"], version)}

    def _run(self, order: dict[str, Any]) -> dict[str, Any]:
        done = commands.run(order["argv"], order.get("text", ""))
        return {"status": done.status, "output": done.output, "errors": done.errors}

    def _load(self, order: dict[str, Any]) -> dict[str, Any]:
        restore.load_one(Ruleset(order["kind"], order["text"], order.get("source", "")))
        return {}

    def _connection(self, order: dict[str, Any]) -> dict[str, Any]:
        """Sends the first packet of a connection; makes its entry itself if that does not."""
        if self._table is None:
            self._table = conntrack.Table()
        table = self._table
        wanted = Connection(
            tuple(order["original"]),
            tuple(order["reply"]) if order["reply"] else None,
            order["proto"],
            order["mark"],
            order["zone"],
        )
        if order["state"] == "related":
            table.create_related(wanted)
            return {"made": "entry"}
        for one in self._openers(order):
            self._transmit(one)
        self._wires.settle()
        self._wires.seen()
        reply = table.reply_of(wanted)
        if reply is not None:
            if wanted.reply is None or _fits(reply, wanted.reply):
                table.confirm(wanted, replied=True)
                return {"made": "packets"}
            table.delete(wanted)
        table.create(wanted, replied=True)
        return {"made": "entry"}

    def _openers(self, order: dict[str, Any]) -> list[dict[str, Any]]:
        opener = order.get("opener")
        if not opener:
            return []
        if "device" in opener:
            return [opener]
        source = order["original"][0]
        device = network.device_to(source, 6 if ":" in source else 4)
        if not device:
            return [opener]
        return [frame(opener["data"], device, order["macs"].get(device, _NULL_MAC))]


def _fits(reply: Ends, wanted: Ends) -> bool:
    """Whether an entry's reply direction is the wanted one; without ports, by its addresses."""
    if None in (reply[1], reply[3]):
        return (reply[0], reply[2]) == (wanted[0], wanted[2])
    return reply == wanted


def frame(data: str, device: str, target: str, source: str = "02:00:00:00:00:fe") -> dict[str, Any]:
    """Returns a packet, in hexadecimal digits, as an Ethernet frame into `device`."""
    kind = "86dd" if data[:1] == "6" else "0800"
    head = target.replace(":", "") + source.replace(":", "") + kind
    return {"device": device, "data": head + data}


def _agent(ends: Descriptors) -> int:
    """The agent, a child of the copy's first process."""
    namespaces.die_with(1)
    from ipttrace.capture.agent import main
    from ipttrace.capture.request import Request

    os.close(ends.line)
    return main(Request(engine="netlink", checked=False), ends.stream, ends.control)


def _exit_after(run: Callable[[], int]) -> None:
    status = 1
    try:
        status = run()
    except BaseException as error:
        print(f"ipttrace: the agent of the copy ended: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def main(snapshot: Snapshot, ends: Descriptors) -> int:
    """Builds the copy, reports it on the line, and obeys until the line ends."""
    # The program may end at any time: writing to it is then an error, which is handled.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    with socket.socket(fileno=ends.line) as line, line.makefile("rwb") as file:

        def answer(value: dict[str, Any]) -> None:
            file.write(json.dumps(value).encode("utf-8", "surrogateescape") + b"\n")
            file.flush()

        try:
            namespaces.die_with(0)
            confined.mount_proc()
            inside = Inside(snapshot, ends)
        except (WhatIfError, OSError, namespaces.NamespaceError) as error:
            answer({"error": str(error)})
            return 1
        answer({"notes": inside.notes, "outer": inside.outer})
        for text in file:
            try:
                answer(inside.obey(json.loads(text)))
            except (WhatIfError, OSError, ValueError, KeyError, struct.error) as error:
                answer({"error": str(error)})
    return 0
