# SPDX-License-Identifier: GPL-2.0-only
"""The columns of a row, and how calls become columns.  Must not do I/O."""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.calls import Calls, Flows, is_template
from ipttrace.trace.decode.headers import decode
from ipttrace.trace.rules import Rulesets
from ipttrace.trace.store.names import FullNames

# Copied from the entry record.
_ENTRY: Final = (
    "call",
    "parent",
    "skb",
    "sk",
    "ct",
    "netns",
    "len",
    "mark",
    "in_ifindex",
    "out_ifindex",
    "ct_status",
    "ct_mark",
    "ct_zone",
    "ct_orig_sport",
    "ct_orig_dport",
    "ct_reply_sport",
    "ct_reply_dport",
    "family",
    "hook",
    "flags",
    "ct_info",
    "ct_proto",
    "depth",
    "ct_orig_src",
    "ct_orig_dst",
    "ct_reply_src",
    "ct_reply_dst",
    "pid",
    "tid",
    "cpu",
    "protocol",
    "vlan_tci",
    "caplen",
    "mac",
    "mac_len",
    "tables",
    "trace_id",
    "ct_flags",
    "packet",
)
# Names in the entry record, stored as ids of Names.
_NAMES: Final = ("table", "comm", "in", "out")
_PORTS: Final = ("physin", "physout")  # likewise; few packets are bridged
# Column → field of the exit record.
_EXIT: Final = {
    "cost": "cost",
    "verdict": "verdict",
    "mark_after": "mark",
    "ct_status_after": "ct_status",
    "ct_info_after": "ct_info",
    "rules_due": "rules",
    "exit_flags": "flags",
}
# Decoded from the packet: fields of Headers with the same names.
_HEADERS: Final = (
    "version",
    "known",
    "proto",
    "src",
    "dst",
    "sport",
    "dport",
    "tcp_flags",
    "icmp_type",
    "icmp_code",
    "sub",
    "extra",
    "frag_id",
    "frag_off",
    "l4",
)

# The columns of the store: dtype, and shape of an element.
SCHEMA: Final[dict[str, tuple[str, tuple[int, ...]]]] = {
    "time": ("i8", ()),  # ns since the epoch
    "journey": ("u8", ()),
    "flow": ("u8", ()),
    "call": ("u8", ()),
    "parent": ("u8", ()),  # 0: none
    "skb": ("u8", ()),
    "sk": ("u8", ()),
    "ct": ("u8", ()),
    "host": ("u1", ()),  # number of the trace, if several share the store
    "engine": ("u1", ()),  # index into ENGINES
    "ruleset": ("u4", ()),  # generation of the rules when the packet came; 0: unknown
    "netns": ("u4", ()),
    "len": ("u4", ()),  # 0 if flags has F_NO_LEN
    "mark": ("u4", ()),
    "in_ifindex": ("u4", ()),
    "out_ifindex": ("u4", ()),
    "ct_status": ("u4", ()),
    "ct_mark": ("u4", ()),
    "ct_zone": ("u2", ()),
    "ct_orig_sport": ("u2", ()),
    "ct_orig_dport": ("u2", ()),
    "ct_reply_sport": ("u2", ()),
    "ct_reply_dport": ("u2", ()),
    "family": ("u1", ()),  # NFPROTO_*
    "hook": ("u1", ()),
    "flags": ("u1", ()),  # record.F_*, without F_CONNTRACK if it was a template
    "ct_info": ("u1", ()),
    "ct_proto": ("u1", ()),
    "depth": ("u1", ()),
    "ct_orig_src": ("u1", (16,)),
    "ct_orig_dst": ("u1", (16,)),
    "ct_reply_src": ("u1", (16,)),
    "ct_reply_dst": ("u1", (16,)),
    "pid": ("u4", ()),
    "tid": ("u4", ()),
    "cpu": ("u2", ()),
    "protocol": ("u2", ()),  # ethertype
    "vlan_tci": ("u2", ()),
    "caplen": ("u2", ()),
    "mac": ("u1", (16,)),
    "mac_len": ("u1", ()),
    "tables": ("u1", ()),  # nftables: NFPROTO_* of the table; 0: legacy
    "trace_id": ("u4", ()),  # nftables' id of the packet; 0: none
    "ct_flags": ("u1", ()),  # record.CT_*, without CT_STATE if it was a template
    "table": ("u4", ()),  # ids of Names, from here on
    "comm": ("u4", ()),
    "in": ("u4", ()),
    "out": ("u4", ()),
    "physin": ("u4", ()),
    "physout": ("u4", ()),
    "chain": ("u4", ()),  # of the deciding rule; 0: unknown
    "rulenum": ("u4", ()),
    "match": ("u1", ()),
    "partial": ("?", ()),
    "cost": ("u8", ()),
    "verdict": ("u4", ()),  # as returned, not masked
    "mark_after": ("u4", ()),
    "ct_status_after": ("u4", ()),
    "ct_info_after": ("u1", ()),
    "rules_due": ("u2", ()),
    "exit_flags": ("u1", ()),
    "version": ("u1", ()),  # from here on: see decode.headers.Headers
    "known": ("u1", ()),
    "proto": ("i2", ()),
    "src": ("u1", (16,)),
    "dst": ("u1", (16,)),
    "sport": ("u2", ()),
    "dport": ("u2", ()),
    "tcp_flags": ("u2", ()),
    "icmp_type": ("u1", ()),
    "icmp_code": ("u1", ()),
    "sub": ("u2", ()),
    "extra": ("u4", ()),
    "frag_id": ("u4", ()),
    "frag_off": ("u2", ()),
    "l4": ("u1", ()),
    "packet": ("u1", (128,)),  # from the network header
    "what": ("u1", ()),  # index into record.STATIONS; 0: a call
    "reason": ("u4", ()),  # this and the next, ids of Names: why and where it was dropped
    "place": ("u4", ()),
    "aside": ("u4", ()),  # number of Asides
    "owner_pid": ("u4", ()),  # from here on: see trace.sockets.owners; 0: unknown
    "owner_comm": ("u4", ()),  # this and the next, ids of Names
    "container": ("u4", ()),
}
STATION_COLUMNS: Final = ("what", "reason", "place", "aside")  # 0 in rows of calls
OWNER_COLUMNS: Final = ("owner_pid", "owner_comm", "container")


# The columns of steps: one step per rule record.
STEPS: Final = {"chain": "u4", "rulenum": "u4", "match": "u1"}

# Only streams have two engines: each of their records is of one of the two.
ENGINES: Final = ("", "kernel", "netlink", "kernel+netlink", "bpf", "kernel+bpf", "none")
_KERNEL: Final = ENGINES.index("kernel")
NETLINK: Final = ENGINES.index("netlink")
_BPF: Final = ENGINES.index("bpf")


def traces_nftables(engine: str) -> bool:
    """Whether an engine, or both at once, traces nftables: `engine` as in ENGINES."""
    return "netlink" in engine or "bpf" in engine


Columns = dict[str, Array]

_LATEST: Final = np.iinfo(np.int64).max
_LONGEST: Final = np.uint32(np.iinfo(np.uint32).max)  # a packet's length, if it is unknown


def fill(
    calls: Calls,
    names: FullNames,
    flows: Flows,
    rulesets: Rulesets,
    engine: int,
    offset: int,
    host: int = 0,
) -> tuple[Columns, Array, Columns]:
    """Returns the columns of `calls`, the end of each path, and the columns of the steps.

    `engine`: index into ENGINES; `offset`: from the records' clock to ns since the
    epoch; `host`: the number of the trace, 0 to 255.
    """
    entries, exits = calls.entries, calls.exits
    columns: Columns = {name: entries[name] for name in _ENTRY}
    for name in _NAMES:
        columns[name] = names.intern(entries[name])
    for name in _PORTS:
        bridged = entries[f"{name}_ifindex"].any()
        none = np.zeros(len(entries), np.uint32)
        columns[name] = names.intern(entries[name]) if bridged else none
    for name, field in _EXIT.items():
        columns[name] = exits[field]
    endless = entries["flags"] & record.F_NO_LEN != 0
    columns["len"] = np.where(endless, 0, entries["len"])
    lengths = np.where(endless, _LONGEST, entries["len"])
    headers = decode(entries["packet"], entries["caplen"], lengths)
    for name in _HEADERS:
        columns[name] = getattr(headers, name)
    template = is_template(entries)
    for name, bit in (("flags", record.F_CONNTRACK), ("ct_flags", record.CT_STATE)):
        columns[name] = np.where(template, entries[name] & (0xFF ^ bit), entries[name])
    columns["time"] = times = _wall(entries["time"], offset)
    now = int(times.max()) if len(times) else 0
    columns["flow"] = flows.assign(entries, headers, calls.journeys, now)
    # Each host has its own call numbers.
    columns["journey"] = calls.journeys | np.uint64(host << 56)
    kernel = entries["source"] == record.SOURCE_KERNEL
    bpf = entries["source"] == record.SOURCE_BPF
    told = [kernel, bpf]
    columns["engine"] = np.select(told, [min(engine, _KERNEL), _BPF], NETLINK).astype(np.uint8)
    # The netlink engine writes a number per packet, not an address.
    columns["skb"] = np.where(kernel | bpf, columns["skb"], 0)
    columns["host"] = np.full(len(calls), host, np.uint8)
    # The rules changed during the call: the packet met either version.
    changed = exits["flags"] & record.EXIT_F_CHANGED != 0
    columns["ruleset"] = rulesets.renumber(
        np.where(changed, 0, entries["ruleset"]), entries["tables"] != 0
    )
    columns["partial"] = calls.partial
    for name in (*STATION_COLUMNS, *OWNER_COLUMNS):
        columns[name] = np.zeros(len(calls), SCHEMA[name][0])

    steps: Columns = {
        "chain": names.intern(calls.rules["chain"]),
        "rulenum": calls.rules["rulenum"],
        "match": calls.rules["match"],
    }
    ends = np.cumsum(calls.counts)
    for name, dtype in STEPS.items():
        deciding = np.zeros(len(calls), dtype)
        deciding[calls.decided] = steps[name][ends[calls.decided] - 1]
        columns[name] = deciding
    return columns, ends, steps


def _wall(times: Array, offset: int) -> Array:
    """Returns int64 (n,), ns since the epoch, at least 0 and without overflow."""
    small = np.minimum(times, np.uint64(_LATEST // 2)).astype(np.int64)
    small += max(min(offset, _LATEST // 2), -_LATEST // 2)
    return np.maximum(small, 0)
