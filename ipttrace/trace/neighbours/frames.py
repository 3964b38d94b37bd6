# SPDX-License-Identifier: GPL-2.0-only
"""NEIGHBOURS frames, checked: JSON in, dataclasses out.

A frame may come from a forged file, so every value is checked; its form is described
in `ipttrace.trace.neighbours`.  All functions raise StreamError, one line, if a value
is malformed.  Must not do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Any, Final, NoReturn

from ipttrace.stream.frames import StreamError
from ipttrace.text import clean

# Items of one kind in a frame: more than an agent sends.
MOST: Final = 8192

_LIMIT: Final = 1 << 64
_FAMILIES: Final = (4, 6)

# include/uapi/linux/neighbour.h: NUD_*
STATES: Final = {
    0x00: "NONE",
    0x01: "INCOMPLETE",
    0x02: "REACHABLE",
    0x04: "STALE",
    0x08: "DELAY",
    0x10: "PROBE",
    0x20: "FAILED",
    0x40: "NOARP",
    0x80: "PERMANENT",
}
# NTF_* and, from bit 8 on, NTF_EXT_*; ip-neighbour(8)'s names, if it has one.
FLAGS: Final = (
    "use",
    "self",
    "master",
    "proxy",
    "extern_learn",
    "offload",
    "sticky",
    "router",
    "managed",
    "locked",
    "extern_valid",
)
PROXY: Final = 0x08

_CONFIG: Final = (
    "key_len",
    "entry_size",
    "entries",
    "last_flush",
    "last_rand",
    "hash_rnd",
    "hash_mask",
    "hash_chain_gc",
    "proxy_qlen",
)
STATS: Final = (
    "allocs",
    "destroys",
    "hash_grows",
    "res_failed",
    "lookups",
    "hits",
    "rcv_probes_mcast",
    "rcv_probes_ucast",
    "periodic_gc_runs",
    "forced_gc_runs",
    "table_fulls",
)
TOTALS: Final = ("neighbours", "routes", "devices", "rules")

Key = tuple[int, str, int, bool]  # family, address, device's index, proxy


@dataclass(frozen=True, slots=True)
class Table:
    """A neighbour table of the kernel.  Times in ms."""

    family: int
    name: str
    thresholds: tuple[int, int, int]
    gc_interval: int
    config: dict[str, int]
    stats: dict[str, int]
    parms: dict[str, int]  # defaults for new devices


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a namespace; the kernel gives dead routes index 0, named ``*``."""

    index: int
    name: str
    flags: int  # IFF_*
    type: int  # ARPHRD_*
    mtu: int
    lladdr: str
    parms: dict[int, dict[str, int]]  # by family


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A neighbour.  Times in s of CLOCK_MONOTONIC; None if it has none."""

    family: int
    dst: str
    dev: int
    state: str
    flags: int
    lladdr: str
    probes: int
    refs: int
    protocol: int  # RTPROT_* of its creator; 0: the kernel
    confirmed: float | None
    used: float | None
    updated: float | None

    @property
    def key(self) -> Key:
        return self.family, self.dst, self.dev, self.proxy

    @property
    def proxy(self) -> bool:
        """Does this host answer for the address (proxy ARP)?"""
        return bool(self.flags & PROXY)

    @property
    def flag_names(self) -> tuple[str, ...]:
        return tuple(name for bit, name in enumerate(FLAGS) if self.flags >> bit & 1)


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the tables local (255), main (254) and default (253)."""

    family: int
    network: int
    length: int
    type: int  # RTN_*
    table: int
    metric: int
    hops: tuple[tuple[int, str | None], ...]  # device's index, next hop


def bad(what: str) -> NoReturn:
    """Raises StreamError: `what` is malformed."""
    raise StreamError(f"malformed neighbours in the stream: {what}")


def natural(value: object, what: str) -> int:
    """Returns an integer from 0 to 2**64 - 1."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LIMIT:
        return value
    return bad(what)


def dicts(value: object, what: str) -> list[dict[str, Any]]:
    """Returns a list of at most MOST dicts."""
    if not isinstance(value, list) or len(value) > MOST:
        bad(what)
    return [one if isinstance(one, dict) else bad(what) for one in value]


def name(value: object, what: str = "a name") -> str:
    """Returns a name, clean; the agent writes bytes that are not UTF-8 as lone surrogates."""
    if not isinstance(value, str):
        return bad(what)
    return clean(
        value[:256].encode("utf-8", "surrogatepass" if _high(value) else "surrogateescape")
    )


def _high(value: str) -> bool:
    """Does it have surrogates that do not stand for a byte (PEP 383)?"""
    return any("\ud800" <= char <= "\udfff" and not "\udc80" <= char <= "\udcff" for char in value)


def _numbers(value: object, what: str) -> dict[str, int]:
    if not isinstance(value, dict) or len(value) > 64:
        return bad(what)
    return {clean(str(key), 40): natural(number, what) for key, number in value.items()}


def _known(value: object, names: tuple[str, ...], what: str) -> dict[str, int]:
    given = _numbers(value, what)
    return {key: given[key] for key in names if key in given} | given


def _family(value: object) -> int:
    return value if isinstance(value, int) and value in _FAMILIES else bad("a family")


@lru_cache(maxsize=2 * MOST)
def _address(value: str) -> str:
    if "%" in value:
        bad("an address")
    try:
        return str(ip_address(value))
    except ValueError:
        return bad("an address")


def address(value: object) -> str:
    """Returns an IPv4 or IPv6 address in canonical form."""
    return _address(value) if isinstance(value, str) and len(value) < 64 else bad("an address")


def _text(value: object, what: str) -> str:
    return clean(value, 64) if isinstance(value, str) else "" if value is None else bad(what)


def table(of: dict[str, Any]) -> Table:
    """Returns a table of a frame."""
    thresholds = of.get("thresholds")
    if not isinstance(thresholds, list) or len(thresholds) != 3:
        bad("thresholds")
    first, second, third = (natural(one, "thresholds") for one in thresholds)
    return Table(
        family=_family(of.get("family")),
        name=name(of.get("name"), "a table's name"),
        thresholds=(first, second, third),
        gc_interval=natural(of.get("gc_interval"), "gc_interval"),
        config=_known(of.get("config"), _CONFIG, "config"),
        stats=_known(of.get("stats"), STATS, "stats"),
        parms=_numbers(of.get("parms"), "parms"),
    )


def device(of: dict[str, Any]) -> Device:
    """Returns a device of a frame."""
    parms = of.get("parms")
    if not isinstance(parms, dict) or not parms.keys() <= {"4", "6"}:
        bad("a device's parms")
    return Device(
        index=natural(of.get("index"), "a device's index"),
        name=name(of.get("name"), "a device's name"),
        flags=natural(of.get("flags"), "a device's flags"),
        type=natural(of.get("type"), "a device's type"),
        mtu=natural(of.get("mtu"), "a device's mtu"),
        lladdr=_text(of.get("lladdr"), "a device's address"),
        parms={int(key): _numbers(some, "a device's parms") for key, some in parms.items()},
    )


def neighbour(of: dict[str, Any], mono: int) -> Neighbour:
    """Returns a neighbour of a frame; `mono`: when the frame was written, ns."""

    def time(field: str) -> float | None:
        ago = of.get(field)
        return None if ago is None else mono / 1e9 - natural(ago, field) / 1e3

    state = natural(of.get("state"), "a neighbour's state")
    return Neighbour(
        family=_family(of.get("family")),
        dst=address(of.get("dst")),
        dev=natural(of.get("dev"), "a neighbour's device"),
        state=STATES.get(state, f"0x{state:02x}"),
        flags=natural(of.get("flags"), "a neighbour's flags"),
        lladdr=_text(of.get("lladdr"), "a neighbour's lladdr"),
        probes=natural(of.get("probes", 0), "a neighbour's probes"),
        refs=natural(of.get("refs", 0), "a neighbour's refs"),
        protocol=natural(of.get("protocol", 0), "a neighbour's protocol"),
        confirmed=time("confirmed"),
        used=time("used"),
        updated=time("updated"),
    )


def key(value: object) -> Key:
    """Returns the key of a neighbour that is gone."""
    if not isinstance(value, list) or len(value) != 4 or not isinstance(value[3], bool):
        bad("a neighbour that is gone")
    return _family(value[0]), address(value[1]), natural(value[2], "a device"), value[3]


def route(of: dict[str, Any]) -> Route:
    """Returns a route of a frame."""
    family = _family(of.get("family"))
    dst, hops = of.get("dst"), of.get("hops")
    if not isinstance(dst, str) or len(dst) > 64 or "%" in dst:
        bad("a route's destination")
    if not isinstance(hops, list) or len(hops) > 1024:
        bad("a route's next hops")
    try:
        network = ip_network(dst, strict=False)
    except ValueError:
        bad("a route's destination")
    if network.version != family:
        bad("a route's family")
    return Route(
        family=family,
        network=int(network.network_address),
        length=network.prefixlen,
        type=natural(of.get("type"), "a route's type"),
        table=natural(of.get("table"), "a route's table"),
        metric=natural(of.get("metric"), "a route's metric"),
        hops=tuple(_hop(hop) for hop in hops),
    )


def _hop(value: object) -> tuple[int, str | None]:
    if not isinstance(value, list) or len(value) != 2:
        return bad("a next hop")
    return natural(value[0], "a next hop"), None if value[1] is None else address(value[1])


def totals(value: object) -> dict[str, int]:
    """Returns the totals of a frame; a missing one is 0."""
    given = _numbers(value, "totals")
    return {one: given.get(one, 0) for one in TOTALS}
