# SPDX-License-Identifier: GPL-2.0-only
"""Legacy tables traced in one namespace: their log's lines to calls.

The namespace's log setting is taken while it lasts, and given back.  All but
`take` is for the thread that is inside the namespace.  Must not write a stream.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.calls import UNTOLD, CallMaker, Calls, Numbers
from ipttrace.capture.netlink.journeys import Accept, LegacyJourneys, packet_keys
from ipttrace.capture.netlink.legacy import decode as nflog
from ipttrace.capture.netlink.legacy import tables as nllegacy
from ipttrace.capture.netlink.legacy.logger import LogSetting
from ipttrace.capture.netlink.legacy.tables import LegacyRules, Meaning, meaning
from ipttrace.capture.netlink.nft import decode as nft_trace
from ipttrace.capture.netlink.nft.decode import Place, Places
from ipttrace.capture.netlink.reader import Mailbox
from ipttrace.stream import record

# Fields of an entry that only these lines have; see CallMaker.
_MORE: Final = (
    *("ct", "len", "ct_status", "ct_mark", "ct_zone", "ct_orig_sport", "ct_orig_dport"),
    *("ct_reply_sport", "ct_reply_dport", "ct_info", "ct_proto", "ct_orig_src", "ct_orig_dst"),
    *("ct_reply_src", "ct_reply_dst", "flags"),
)
_NATIVE: Final = record.ENTRY_DTYPE.newbyteorder("=")
_EVENT: Final[Any] = [
    (name, *([nft_trace.EVENT[name].base, nft_trace.EVENT[name].shape]))
    if name != "packet"
    else ("packet", "u1", (nflog.PACKET_LEN,))
    for name in nft_trace.EVENT.names or ()
] + [(name, _NATIVE[name].base, _NATIVE[name].shape) for name in _MORE]
LINE: Final = np.dtype(_EVENT)

# enum ip_conntrack_info
_RELATED: Final = 1
_REPLY: Final = 3
_RELATED_REPLY: Final = 4

_STRETCH: Final = 500_000  # ns without a line
_MOST_KNOWN: Final = 1 << 14


class LegacyTrace:
    """Raises CaptureError, OSError when it cannot be."""

    def __init__(
        self,
        path: str,
        inode: int,
        room: int,
        numbers: Numbers,
        number: Callable[[], int],
        accept: Accept,
        setting: LogSetting,
    ) -> None:
        """As of Space, whose thread is inside the namespace; `setting`: to take it by."""
        self._number = number
        self._places = Places()
        self._decoder = nflog.Decoder()
        self._last = -1  # sequence number of the newest message
        self._gaps = 0
        self.held: deque[Array] = deque()
        self._known: dict[tuple[bytes, bytes, int, int, int, bool], Meaning] = {}
        self.strangers = 0  # lines of packets that nobody traces: of others' logs
        with contextlib.ExitStack() as stack:
            self.box: Mailbox = stack.enter_context(contextlib.closing(nflog.new_mailbox(room)))
            nflog.open(self.box)
            self.rules = stack.enter_context(contextlib.closing(LegacyRules()))
            self.rules.look(now=True)
            self.generation = number()
            stack.callback(setting.give_back, inode)
            setting.take(path, inode)
            self.journeys = LegacyJourneys(numbers, accept)
            self._calls = CallMaker(self._places, numbers, record.SOURCE_NFLOG)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """The log setting is as it was, and the namespace is let go."""
        self._stack.close()

    def look(self, *, now: bool = False) -> bool:
        """Whether the rules have changed since the last look, if it is time for one."""
        if not self.rules.look(now=now):
            return False
        self.generation = self._number()
        self._known.clear()
        return True

    # -- by the engine

    @property
    def lost(self) -> int:
        """Messages that are missing: by their numbers, or as the kernel counted them."""
        return max(self._gaps, self.box.drops())

    def hear(self) -> int:
        """Decodes what was read; returns its bytes."""
        batches = self.box.take()
        size = sum(batch.data.nbytes for batch in batches)
        if batches:
            events = self._decoder.decode(*batches)
            if len(events):
                self._gaps += nflog.lost(self._last, events)
                self._last = int(events["seq"][-1])
                told = events["comment"] != nflog.NO_TRACE
                self.strangers += int((~told).sum())
                if told.any():
                    lines = self._lines(events[told])
                    # Taken out by time, as those of nftables are.
                    cut = np.flatnonzero(np.diff(lines["time"].astype(np.int64)) > _STRETCH) + 1
                    self.held.extend(np.split(lines, cut))
        return size

    def _lines(self, events: Array) -> Array:
        lines = np.zeros(len(events), LINE)
        for name in _MORE:
            if name != "flags":
                lines[name] = events[name]
        lines["flags"] = np.where(events["tracked"], record.F_CONNTRACK, 0)
        lines["time"] = events["time"] + np.arange(len(events), dtype=np.uint64)
        lines["kind"] = events["comment"]
        lines["hook"] = np.minimum(events["hook"], 0xFF)
        lines["iif"], lines["oif"] = events["in_ifindex"], events["out_ifindex"]
        for name in ("family", "mark", "rulenum", "packet", "caplen", "mac", "mac_len"):
            lines[name] = events[name]
        plain = {name: np.ascontiguousarray(events[name]) for name in ("table", "chain")}
        lines["place"] = self._places.numbers(
            np.zeros(len(events), np.uint8),
            *(one.view(np.uint8).reshape(len(events), -1) for one in plain.values()),
        )
        return lines

    def take(self, before: int, flips: Array, now: int) -> Calls:
        """The calls that are finished, of lines read before `before`, the last look at the rules.

        `flips`: where journeys began since the last call.
        """
        ready = []
        while self.held and int(self.held[0]["time"][0]) < before:
            ready.append(self.held.popleft())
        lines = np.concatenate(ready) if ready else np.zeros(0, LINE)
        self._locate(lines)
        told = (lines["flags"] != 0) & (lines["ct_info"] != _RELATED)
        told &= lines["ct_info"] != _RELATED_REPLY
        keys = packet_keys(lines["packet"][:, :128], lines["caplen"], _tuples(lines), told)
        begun = packet_keys(flips["packet"], flips["caplen"])
        asked = self.journeys.assign(lines, keys, flips, begun)
        return self._calls.feed(asked, now)

    def _locate(self, lines: Array) -> None:
        """What each line means, by the rules of its time."""
        if not len(lines):
            return
        # A change is seen only later: since the look before it, either may be meant.
        unsure = lines["time"] < self.rules.changed
        key = np.zeros(len(lines), [("place", "u4"), ("rulenum", "u4"), ("more", "u8")])
        key["place"], key["rulenum"] = lines["place"], lines["rulenum"]
        key["more"] = (
            lines["kind"].astype(np.uint64)
            | lines["family"].astype(np.uint64) << np.uint64(8)
            | unsure.astype(np.uint64) << np.uint64(16)
        )
        _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        found = np.array(
            [
                self._meaning(
                    self._places.all[int(line["place"])],
                    int(line["kind"]),
                    int(line["rulenum"]),
                    int(line["family"]),
                    bool(unsure[at]),
                )
                for at, line in zip(first.tolist(), lines[first], strict=True)
            ],
            np.int64,
        ).reshape(-1, 2)[inverse]
        lines["kind"], lines["verdict"] = found[:, 0], found[:, 1]
        lines["last"] = (found[:, 1] >= 0) & (found[:, 1] != UNTOLD)
        lines["last"] |= lines["kind"] == nft_trace.POLICY
        lines["ruleset"] = np.where(unsure, 0, self.generation)
        tables = [place.table.decode("utf-8", "replace") for place in self._places.all]
        for table in set(tables):
            of = np.array([one == table for one in tables])[lines["place"]]
            for hook in np.unique(lines["hook"][of]).tolist():
                lines["priority"][of & (lines["hook"] == hook)] = nllegacy.priority(table, hook)

    def _meaning(self, place: Place, kind: int, number: int, family: int, unsure: bool) -> Meaning:
        key = (place.table, place.chain, kind, number, family, unsure)
        if key not in self._known:
            names = [name.decode("utf-8", "backslashreplace") for name in place[1:]]
            now = meaning(self.rules.tables, family, names[0], names[1], kind, number)
            if unsure:
                then = meaning(self.rules.earlier, family, names[0], names[1], kind, number)
                now = now if now == then else Meaning(kind, UNTOLD)
            self._known[key] = now
        return self._known[key]


def _tuples(lines: Array) -> Array:
    """uint8, shape (n, 36): what conntrack says of the packet before NAT."""
    found = np.zeros((len(lines), 36), np.uint8)
    reply = lines["ct_info"] >= _REPLY
    for way, rows in (("orig", ~reply), ("reply", reply)):
        found[rows, :16] = lines[f"ct_{way}_src"][rows]
        found[rows, 16:32] = lines[f"ct_{way}_dst"][rows]
        ports = [lines[f"ct_{way}_{side}"][rows].astype(">u2") for side in ("sport", "dport")]
        for at, port in zip((32, 34), ports, strict=True):
            found[rows, at : at + 2] = port.view(np.uint8).reshape(-1, 2)
    icmp = (lines["ct_proto"] == 1) | (lines["ct_proto"] == 58)
    # The identifier stands where a packet has it; type and code are no port.
    found[icmp, 34:36] = found[icmp, 32:34]
    found[icmp, 32:34] = 0
    return found
