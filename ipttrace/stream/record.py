# SPDX-License-Identifier: GPL-2.0-only
"""The records as numpy dtypes: a mirror of ``bpf/record.h``.

The only place in Python that knows offsets.  A test compiles the header and compares
every field.  Must not do I/O or import anything of ipttrace.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import numpy.typing as npt

RECORD_VERSION: Final = 7

ENTRY: Final = 0
RULE: Final = 1
EXIT: Final = 2
STATION: Final = 3
SOCKET: Final = 4
KINDS: Final = ("entry", "rule", "exit")  # of a call
ALL_KINDS: Final = (*KINDS, "station", "socket")

F_FIRST: Final = 0x01
F_FOLLOWED: Final = 0x02
F_CONNTRACK: Final = 0x04
F_SOFTIRQ: Final = 0x08
F_NO_MARK: Final = 0x10
F_NO_LEN: Final = 0x20

CT_INVALID: Final = 0x01
CT_STATE: Final = 0x02
CT_NO_MARK: Final = 0x04

EXIT_F_ALIVE: Final = 0x01
EXIT_F_CHANGED: Final = 0x02
EXIT_F_NO_VERDICT: Final = 0x04

SOURCE_KERNEL: Final = 0
SOURCE_NFT: Final = 1
SOURCE_NFLOG: Final = 2
SOURCE_BPF: Final = 3

# By enum ipttrace_what; "" is a call.
STATIONS: Final = (
    "",
    "dropped",
    "received",
    "routed",
    "forwarded",
    "queued",
    "sent",
    "delivered",
)
DROPPED: Final = 1

STATION_F_ROUTE: Final = 0x01
STATION_F_NEIGHBOUR: Final = 0x02
STATION_F_TRACED: Final = 0x04
STATION_F_MATCHED: Final = 0x08

# By enum ipttrace_stage.
STAGES: Final = (
    "",
    "listening",
    "bound",
    "connecting",
    "connected",
    "SYN taken",
    "SYN dropped",
    "SYN-ACK sent",
    "ACK dropped",
    "established",
    "accepted",
    "first read",
    "refused",
    "reset",
    "abandoned",
    "closed",
    "denied",
)
(
    _,
    LISTENING,
    BOUND,
    CONNECTING,
    CONNECTED,
    SYN_TAKEN,
    SYN_DROPPED,
    SYN_ACK_SENT,
    ACK_DROPPED,
    ESTABLISHED,
    ACCEPTED,
    FIRST_READ,
    REFUSED,
    RESET,
    ABANDONED,
    CLOSED,
    DENIED,
) = range(len(STAGES))

SK_F_PROCESS: Final = 0x0001
SK_F_ORIGINAL: Final = 0x0002
SK_F_TRANSLATED: Final = 0x0004
SK_F_COOKIE: Final = 0x0008
SK_F_ACCEPT_FULL: Final = 0x0010
SK_F_SYN_FULL: Final = 0x0020
SK_F_DENIED: Final = 0x0040
SK_F_SENT: Final = 0x0080
SK_F_QUEUE: Final = 0x0100
SK_F_AGAIN: Final = 0x0200
SK_F_LISTENER: Final = 0x0400
SK_F_FASTOPEN: Final = 0x0800
SK_F_MPTCP: Final = 0x1000
SK_F_REQUESTS: Final = 0x2000

MATCHES: Final = ("rule", "return", "policy")
MATCH_RULE: Final = 0
MATCH_RETURN: Final = 1
MATCH_POLICY: Final = 2

Records = npt.NDArray[np.void]

ENTRY_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("call", "<u8"),
        ("time", "<u8"),
        ("skb", "<u8"),
        ("parent", "<u8"),
        ("sk", "<u8"),
        ("ct", "<u8"),
        ("netns", "<u4"),
        ("len", "<u4"),
        ("mark", "<u4"),
        ("in_ifindex", "<u4"),
        ("out_ifindex", "<u4"),
        ("ct_status", "<u4"),
        ("ct_mark", "<u4"),
        ("ct_zone", "<u2"),
        ("ct_orig_sport", ">u2"),
        ("ct_orig_dport", ">u2"),
        ("ct_reply_sport", ">u2"),
        ("ct_reply_dport", ">u2"),
        ("family", "u1"),
        ("hook", "u1"),
        ("flags", "u1"),
        ("ct_info", "u1"),
        ("ct_proto", "u1"),
        ("depth", "u1"),
        ("ct_orig_src", "u1", (16,)),
        ("ct_orig_dst", "u1", (16,)),
        ("ct_reply_src", "u1", (16,)),
        ("ct_reply_dst", "u1", (16,)),
        ("table", "S32"),
        ("ruleset", "<u4"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("cpu", "<u2"),
        ("protocol", ">u2"),
        ("vlan_tci", "<u2"),
        ("caplen", "<u2"),
        ("mac", "u1", (16,)),
        ("mac_len", "u1"),
        ("source", "u1"),
        ("tables", "u1"),
        ("ct_flags", "u1"),
        ("trace_id", "<u4"),
        ("comm", "S16"),
        ("in", "S16"),
        ("out", "S16"),
        ("packet", "u1", (128,)),
        ("physin", "S16"),
        ("physout", "S16"),
        ("physin_ifindex", "<u4"),
        ("physout_ifindex", "<u4"),
        ("nft_before", "u1"),
        ("nft_behind", "u1"),
        ("reserved", "u1", (6,)),
    ]
)

RULE_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("call", "<u8"),
        ("time", "<u8"),
        ("rulenum", "<u4"),
        ("seq", "<u2"),
        ("match", "u1"),
        ("reserved0", "u1"),
        ("table", "S32"),
        ("chain", "S32"),
    ]
)

EXIT_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("call", "<u8"),
        ("time", "<u8"),
        ("skb", "<u8"),
        ("cost", "<u8"),
        ("verdict", "<u4"),
        ("mark", "<u4"),
        ("rules", "<u2"),
        ("flags", "u1"),
        ("ct_info", "u1"),
        ("ct_status", "<u4"),
    ]
)

STATION_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        *((name, ENTRY_DTYPE[name]) for name in ENTRY_DTYPE.names or ()),
        ("place", "<u8"),
        ("stack", "<u8"),
        ("reason", "<u4"),
        ("route_table", "<u4"),
        ("gateway", "u1", (16,)),
        ("gateway_family", "u1"),
        ("route_type", "u1"),
        ("neighbour_state", "u1"),
        ("what", "u1"),
        ("station_flags", "u1"),
        ("padding", "u1", (3,)),
        ("owner", "<u8"),
    ]
)

PID_LEVELS: Final = 4

SOCKET_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("time", "<u8"),
        ("sk", "<u8"),
        ("listener", "<u8"),
        ("request", "<u8"),
        ("cgroup", "<u8"),
        ("owner", "<u8"),
        ("netns", "<u4"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("uid", "<u4"),
        ("pids", "<u4", (PID_LEVELS,)),
        ("tids", "<u4", (PID_LEVELS,)),
        ("queue", "<u4"),
        ("queue_most", "<u4"),
        ("requests", "<u4"),
        ("error", "<u4"),
        ("local", "u1", (16,)),
        ("remote", "u1", (16,)),
        ("orig_dst", "u1", (16,)),
        ("reply_src", "u1", (16,)),
        ("local_port", ">u2"),
        ("remote_port", ">u2"),
        ("orig_dport", ">u2"),
        ("reply_sport", ">u2"),
        ("comm", "S16"),
        ("cpu", "<u2"),
        ("flags", "<u2"),
        ("family", "u1"),
        ("protocol", "u1"),
        ("stage", "u1"),
        ("levels", "u1"),
    ]
)

NAME_LEN: Final = 32

DTYPES: Final[tuple[np.dtype[np.void], ...]] = (ENTRY_DTYPE, RULE_DTYPE, EXIT_DTYPE)
ALL_DTYPES: Final = (*DTYPES, STATION_DTYPE, SOCKET_DTYPE)

Layout = dict[str, Any]

# Of another version's layout.
_MOST_BYTES: Final = 4096  # of a record
_MOST_FIELDS: Final = 256
_MOST_NAME: Final = 64  # characters
_BASE: Final = re.compile("[<>|]?(?:[ui][1248]|S[1-9][0-9]{0,3})")


def layout() -> Layout:
    """Returns this version's record layout as plain data, for HELLO.

    ``{"version": 1, "kinds": {kind: {"size": bytes, "fields":
    [[name, dtype string, offset, length of the subarray or 1], …]}}}``
    """
    kinds = {}
    for kind, dtype in zip(ALL_KINDS, ALL_DTYPES, strict=True):
        fields = []
        for name in dtype.names or ():
            sub, offset = dtype.fields[name][:2]  # type: ignore[index]
            base, shape = sub.subdtype or (sub, ())
            fields.append([name, base.str, offset, int(shape[0]) if shape else 1])
        kinds[kind] = {"size": dtype.itemsize, "fields": fields}
    return {"version": RECORD_VERSION, "kinds": kinds}


def dtypes_of(described: Layout) -> tuple[np.dtype[np.void], ...]:
    """The dtypes of a stream with this layout in its HELLO.

    Of ALL_KINDS; streams of earlier versions lack stations and sockets.  Raises ValueError for
    anything that `layout` could not have written: unknown types, fields outside the record,
    wrong sizes, records without call and time.
    """
    found = []
    for kind, own in zip(ALL_KINDS, ALL_DTYPES, strict=True):
        try:
            if kind not in KINDS and kind not in described["kinds"]:
                found.append(own)
                continue
            entry = described["kinds"][kind]
            size, fields = entry["size"], entry["fields"]
            if type(size) is not int or not 0 < size <= _MOST_BYTES:
                raise ValueError(f"{kind} records of {size} bytes")
            if not isinstance(fields, list) or not 0 < len(fields) <= _MOST_FIELDS:
                raise ValueError(f"the fields of {kind} records")
            names, formats, offsets = [], [], []
            for field in fields:
                name, base, offset, count = field
                _check_field(kind, name, base, (offset, count, size))
                names.append(name)
                formats.append((np.dtype(base), (count,)) if count != 1 else np.dtype(base))
                offsets.append(offset)
            dtype = np.dtype(
                {"names": names, "formats": formats, "offsets": offsets, "itemsize": size}
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"the layout of {kind} records is not valid: {error}") from error
        _check_meaning(kind, dtype, own)
        found.append(dtype)
    return tuple(found)


def _check_field(kind: str, name: object, base: object, place: tuple[object, ...]) -> None:
    """Raises ValueError unless this is a field of a record; `place`: offset, count, size."""
    if not isinstance(name, str) or not 0 < len(name) <= _MOST_NAME:
        raise ValueError(f"the name of a field of {kind}: {name!r}")
    if not isinstance(base, str) or not _BASE.fullmatch(base):
        raise ValueError(f"field {name!r} of {kind} has type {base!r}")
    offset, count, size = place
    if type(offset) is int and type(count) is int and type(size) is int:
        inside = 0 <= offset <= size and 0 < count <= size
        if inside and offset + count * np.dtype(base).itemsize <= size:
            return
    raise ValueError(f"field {name!r} of {kind} is not inside the record")


def _check_meaning(kind: str, dtype: np.dtype[np.void], own: np.dtype[np.void]) -> None:
    """Raises ValueError if fields of this version's records are missing or cannot be converted."""
    for name in ("call", "time") if "call" in (own.names or ()) else ("time",):
        if name not in (dtype.names or ()) or dtype[name] != own[name]:
            raise ValueError(f"{kind} records without a field {name!r} of 8 bytes")
    for name in dtype.names or ():
        if name in (own.names or ()) and (dtype[name].base.kind == "S") != (
            own[name].base.kind == "S"
        ):
            raise ValueError(f"field {name!r} of {kind} has type {dtype[name].base.str!r}")


def convert(records: Records, dtype: np.dtype[np.void]) -> Records:
    """`records` of another version's layout as `dtype`, field by field by name.

    Fields that the other version lacks are zero; longer text is cut.
    """
    if records.dtype == dtype:
        return records
    out = np.zeros(len(records), dtype)
    for name in dtype.names or ():
        if name in (records.dtype.names or ()) and records.dtype[name].shape == dtype[name].shape:
            out[name] = records[name]
    return out
