# SPDX-License-Identifier: GPL-2.0-only
"""The fields of queries: those of rows, and words for several of them.

Which values are known, and the names of numbers, agree with trace/store/unfold.py.
Must not know the syntax of queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np

from ipttrace.netfilter import DROP, HOOKS, IP_VERSIONS, UNKNOWN_HOOK, VERDICTS
from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.decode import headers as packet
from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.query import kinds, special, values
from ipttrace.trace.query.fragment import FragmentFault
from ipttrace.trace.query.names import Name
from ipttrace.trace.query.unresolved import Unresolved
from ipttrace.trace.rules import FAMILIES, NFT, NO_TABLES
from ipttrace.trace.store import ENGINES, NETLINK, Part


@dataclass(frozen=True, slots=True)
class Field:
    """A field; with more than one kind, a word for several fields."""

    name: str
    kinds: tuple[kinds.Kind, ...]
    help: str


# Other names of fields, to the name used in canonical text.
ALIASES: Final = {"cost_ns": "cost", "ct": "ct_state", "device": "dev", "process": "comm"}

PROTOCOLS: Final = ("TCP", "UDP", "ICMP", "ICMPv6", "GRE", "ESP", "AH", "SCTP", "DCCP", "IGMP")
_ALSO_PROTOCOLS: Final = {"icmp6": "ICMPv6", "ipv6-icmp": "ICMPv6", "udp-lite": "UDPLITE"}
TCP_FLAGS: Final = {ip.tcp_flag_names(1 << bit): 1 << bit for bit in range(9)}
TABLES: Final = ("legacy", "ip", "ip6", "inet", "arp", "bridge", "netdev")
CT_STATES: Final = ("NEW", "ESTABLISHED", "RELATED", "INVALID", "UNTRACKED")
# enum ip_conntrack_info, of which 7 is IP_CT_UNTRACKED.
_CT_TEXTS: Final = ("ESTABLISHED", "RELATED", "NEW", "ESTABLISHED", "RELATED")
_CT_NOTHING: Final = 5
_CT_UNTRACKED: Final = 6
_CT_INVALID: Final = 7
_UNKNOWN: Final = 2  # neither yes nor no


def _tracked(part: Part) -> Array:
    tracked: Array = (part.columns["flags"] & record.F_CONNTRACK) != 0
    return tracked


def _ct_ports(part: Part) -> Array:
    ports: Array = ip.DECODED[part.columns["ct_proto"]] == ip.HAS_PORTS
    return ports & _tracked(part)


def _ct_state(part: Part) -> Array:
    info, flags = part.columns["ct_info"], part.columns["ct_flags"]
    invalid = (flags & np.uint8(record.CT_INVALID)) != 0
    others = np.where(invalid, np.uint8(_CT_INVALID), np.uint8(_CT_NOTHING))
    others = np.where(info == 7, np.uint8(_CT_UNTRACKED), others)
    known = _tracked(part) | ((flags & np.uint8(record.CT_STATE)) != 0)
    return np.where(known, np.minimum(info, np.uint8(_CT_NOTHING)), others)


def _ct_mark(part: Part) -> Array:
    known: Array = (part.columns["ct_flags"] & np.uint8(record.CT_NO_MARK)) == 0
    return known & _tracked(part)


def _decided(part: Part) -> Array:
    decided: Array = part.columns["chain"] != 0
    return decided


def _knows(bit: int) -> kinds.HasValue:
    def known(part: Part) -> Array:
        bits: Array = (part.columns["known"] & np.uint8(bit)) != 0
        return bits

    return known


def _not_zero(column: str) -> kinds.HasValue:
    def known(part: Part) -> Array:
        there: Array = part.columns[column] != 0
        return there

    return known


def _not_netlink(part: Part) -> Array:
    """Rows not from netlink, which does not report CPU, process and cost."""
    here: Array = part.columns["engine"] != NETLINK
    return here


def _without(flag: int) -> kinds.HasValue:
    def known(part: Part) -> Array:
        unset: Array = (part.columns["flags"] & np.uint8(flag)) == 0
        return unset

    return known


def _numbered(part: Part) -> Array:
    numbered: Array = _decided(part) & (part.columns["rulenum"] != 0)
    return numbered


def _has_verdict(part: Part) -> Array:
    ended: Array = (part.columns["exit_flags"] & np.uint8(record.EXIT_F_NO_VERDICT)) == 0
    return ended


def _costed(part: Part) -> Array:
    """Rows whose time was measured: those of stations are moments."""
    measured: Array = _not_netlink(part) & (part.columns["what"] == 0)
    return measured


def _drop(part: Part) -> Array:
    what, verdict = part.columns["what"], part.columns["verdict"] & np.uint32(0xFF)
    died = np.where(what == 0, verdict == DROP, what == record.DROPPED)
    return np.where(_has_verdict(part) | (what != 0), died, np.uint8(_UNKNOWN)).astype(np.uint8)


def _version(part: Part) -> Array:
    return part.columns["version"]


def _partial(part: Part) -> Array:
    return part.columns["partial"].view(np.uint8)


def _named(names: tuple[str, ...], count: int = 256) -> list[str]:
    return [names[at] if at < len(names) else str(at) for at in range(count)]


def _families() -> kinds.Choice:
    texts = [str(IP_VERSIONS.get(at, at)) for at in range(256)]
    # The names 4 and 6 belong to NFPROTO_IPV4 and _IPV6; no row has the numbers 4 and 6.
    texts[4] = texts[6] = ""
    also = {"ipv4": "4", "ip": "4", "ipv6": "6", "ip6": "6"}
    return kinds.Choice(lambda part: part.columns["family"], texts, listed=("4", "6"), also=also)


def _verdict() -> kinds.Choice:
    return kinds.Choice(
        lambda part: part.columns["verdict"] & np.uint32(0xFF),
        _named(VERDICTS),
        listed=VERDICTS,
        known=_has_verdict,
    )


def _hook() -> kinds.Choice:
    texts = _named(HOOKS)
    texts[UNKNOWN_HOOK] = ""
    return kinds.Choice(lambda part: part.columns["hook"], texts, listed=HOOKS)


def _tables() -> kinds.Choice:
    names = {number - NFT: str(name) for name, number in FAMILIES.items() if number > NFT}
    texts = ["legacy", *(names.get(at, str(at)) for at in range(1, 256))]
    texts[NO_TABLES] = ""
    return kinds.Choice(lambda part: part.columns["tables"], texts, listed=TABLES)


def _proto() -> kinds.Choice:
    # The last one is for -1, unknown.
    texts = [*map(ip.proto_name, range(256)), ""]
    also = _ALSO_PROTOCOLS | {str(number): name for number, name in ip.NAMES.items()}
    return kinds.Choice(lambda part: part.columns["proto"], texts, listed=PROTOCOLS, also=also)


class OwnerName(Name):
    """A name that becomes known with a stage of the socket, after the row perhaps."""

    changes = True


class OwnerNumber(kinds.Number):
    """A number likewise."""

    changes = True


@cache
def fields() -> dict[str, Field]:
    """All fields by name, those of rows first, in their order."""
    ports = {
        name: kinds.Number(name, known)
        for name, known in (
            ("sport", _knows(packet.PORTS)),
            ("dport", _knows(packet.PORTS)),
            ("ct_orig_sport", _ct_ports),
            ("ct_orig_dport", _ct_ports),
        )
    }
    ct_version = special.conntrack_versions(_tracked)
    src, dst = special.Address("src", _version), special.Address("dst", _version)
    ct_src = special.Address("ct_orig_src", ct_version)
    ct_dst = special.Address("ct_orig_dst", ct_version)
    into, out = Name("in"), Name("out")
    flags = kinds.Flags(
        [ip.tcp_flag_names(at) for at in range(512)],
        TCP_FLAGS,
        lambda part: part.columns["tcp_flags"] & np.uint16(0x1FF),
        _knows(packet.TCP_FLAGS),
    )
    engine = kinds.Choice(
        lambda part: part.columns["engine"], ENGINES, listed=("kernel", "netlink", "bpf")
    )
    match = kinds.Choice(
        lambda part: part.columns["match"],
        _named(record.MATCHES),
        listed=record.MATCHES,
        known=_decided,
    )
    ct_state = kinds.Choice(_ct_state, (*_CT_TEXTS, "", "UNTRACKED", "INVALID"), listed=CT_STATES)
    also = {"true": "yes", "1": "yes", "false": "no", "0": "no"}
    partial = kinds.Choice(_partial, ("no", "yes"), listed=("yes", "no"), also=also)
    drop = kinds.Choice(_drop, ("no", "yes", ""), listed=("yes", "no"), also=also)
    station = kinds.Choice(
        lambda part: part.columns["what"], _named(record.STATIONS), listed=record.STATIONS[1:]
    )
    owner_pid = OwnerNumber("owner_pid", _not_zero("owner_pid"))
    number, name = kinds.Number, Name
    made: list[tuple[str, tuple[kinds.Kind, ...], str]] = [
        ("time", (kinds.Time(),), "time: 12:30:05, 2026-11-21T12:30, -30s"),
        ("engine", (engine,), "engine that traced it"),
        ("skb", (number("skb", _not_zero("skb")),), "address of the skb, 0x…"),
        ("netns", (special.Netns(),), "network namespace: name or inode"),
        ("cpu", (number("cpu", _not_netlink),), "CPU"),
        ("pid", (number("pid", _not_netlink),), "process that was running"),
        ("comm", (name("comm", _not_netlink),), "name of the process that was running"),
        ("in", (into,), "incoming device"),
        ("out", (out,), "outgoing device"),
        ("family", (_families(),), "4, 6, or netfilter's number of another family"),
        ("hook", (_hook(),), "netfilter hook"),
        ("table", (name("table"),), "table"),
        ("chain", (name("chain"),), "chain of the deciding rule"),
        ("rulenum", (number("rulenum", _numbered),), "number of the deciding rule"),
        ("match", (match,), "what decided: rule, return or policy"),
        ("path", (special.Path(),), "any step: chain or chain:rulenum"),
        ("rule", (special.RuleText(),), "text of the deciding rule"),
        ("verdict", (_verdict(),), "what the table returned: DROP, ACCEPT"),
        (
            "cost",
            (number("cost", _costed, units=values.DURATIONS),),
            "time spent in the table: 50us, 1.5ms",
        ),
        (
            "len",
            (number("len", _without(record.F_NO_LEN), units=values.SIZES),),
            "length of the packet in bytes: 1500, 1.5k",
        ),
        ("proto", (_proto(),), "protocol: name or number"),
        ("src", (src,), "source address or network"),
        ("sport", (ports["sport"],), "source port"),
        ("dst", (dst,), "destination address or network"),
        ("dport", (ports["dport"],), "destination port"),
        ("flags", (flags,), "TCP flags that are set: SYN, SYN,ACK"),
        ("icmp", (kinds.Icmp("icmp_type", _knows(packet.ICMP)),), "ICMP type or type/code"),
        ("frag", (special.Fragment(),), "fragment: id, id:offset"),
        ("mark", (number("mark", _without(record.F_NO_MARK)),), "packet mark: 0x1, mark&0xff=0x10"),
        ("mac_src", (special.Mac(6),), "source hardware address, or a prefix of it"),
        ("mac_dst", (special.Mac(0),), "destination hardware address, or a prefix of it"),
        ("ct_state", (ct_state,), "conntrack state"),
        ("ct_orig_src", (ct_src,), "source before NAT"),
        ("ct_orig_sport", (ports["ct_orig_sport"],), "source port before NAT"),
        ("ct_orig_dst", (ct_dst,), "destination before NAT"),
        ("ct_orig_dport", (ports["ct_orig_dport"],), "destination port before NAT"),
        ("tables", (_tables(),), "legacy, or the nftables family of the table"),
        ("journey", (number("journey"),), "all traversals of one packet, 0x…"),
        ("trace_id", (special.TraceId(),), "as nft monitor trace shows it: 1f2e3d4c"),
        ("netns_name", (special.NetnsName(),), "name of the network namespace"),
        ("ct_mark", (number("ct_mark", _ct_mark),), "conntrack mark: 0x1, ct_mark&0xff=0x10"),
        ("ct_zone", (number("ct_zone", _tracked),), "conntrack zone"),
        ("physin", (name("physin"),), "port of the bridge by which the packet came in"),
        ("physout", (name("physout"),), "port of the bridge by which the packet leaves"),
        ("drop", (drop,), "whether the packet died here: in a rule, or outside the tables"),
        ("reason", (name("reason"),), "the kernel's reason for a drop: IP_RPFILTER"),
        ("place", (name("place"),), "where in the kernel it was: ip_rcv_finish_core+0x1d2"),
        ("station", (station,), "what happened outside the tables: dropped, received"),
        ("owner_pid", (owner_pid,), "process that has the packet's socket (with --sockets)"),
        ("owner_comm", (OwnerName("owner_comm"),), "name of the process that has the socket"),
        ("container", (OwnerName("container"),), "id of the container of that process"),
        ("addr", (src, dst, ct_src, ct_dst), "src, dst, ct_orig_src or ct_orig_dst"),
        ("port", (ports["sport"], ports["dport"]), "sport or dport"),
        ("dev", (into, out), "in or out"),
        ("flow", (kinds.Flow(),), "both directions of a flow, 0x…"),
        ("call", (number("call"),), "one run of a table"),
        ("parent", (number("parent", _not_zero("parent")),), "call in which this one was made"),
        ("partial", (partial,), "whether some of its rules were lost"),
        (
            "unresolved",
            (Unresolved(),),
            "ARP or ND: accepted, but the next hop does not answer it now",
        ),
        ("frag_fault", (FragmentFault(),), "fragment: too short, overlapping, or never completed"),
        ("host", (special.Host(),), "host on which it was traced"),
    ]
    return {name: Field(name, of, text) for name, of, text in made}
