# SPDX-License-Identifier: GPL-2.0-only
"""NEIGHBOURS frames, as an agent on an invented router writes them."""

from __future__ import annotations

from typing import Any

from ipttrace.trace.neighbours import Neighbours

SECOND = 1_000_000_000
T0 = 50_000 * SECOND
ROUTER, CLIENT = 4026532100, 4026532200

STATS = {
    "allocs": 1880,
    "destroys": 1868,
    "hash_grows": 1,
    "res_failed": 7,
    "lookups": 123_456,
    "hits": 100_000,
    "rcv_probes_mcast": 3,
    "rcv_probes_ucast": 4,
    "periodic_gc_runs": 912,
    "forced_gc_runs": 0,
    "table_fulls": 0,
}
CONFIG = {
    "key_len": 4,
    "entry_size": 336,
    "entries": 12,
    "last_flush": 13_880_700,
    "last_rand": 79_588,
    "hash_rnd": 0x475C29F3,
    "hash_mask": 15,
    "hash_chain_gc": 0,
    "proxy_qlen": 0,
}
PARMS = {
    "refcnt": 2,
    "queue_lenbytes": 212_992,
    "queue_len": 101,
    "proxy_qlen": 64,
    "app_probes": 0,
    "ucast_probes": 3,
    "mcast_probes": 3,
    "mcast_reprobes": 0,
    "reachable_time": 31_004,
    "base_reachable_time": 30_000,
    "gc_staletime": 60_000,
    "delay_probe_time": 5_000,
    "retrans_time": 1_000,
    "anycast_delay": 1_000,
    "proxy_delay": 800,
    "locktime": 1_000,
    "interval_probe_time_ms": 5_000,
}

INCOMPLETE, REACHABLE, STALE, DELAY, PROBE, FAILED, NOARP, PERMANENT = (1 << n for n in range(8))


def table(family: int = 4, entries: int = 12, **stats: int) -> dict[str, Any]:
    return {
        "family": family,
        "name": "arp_cache" if family == 4 else "ndisc_cache",
        "thresholds": [128, 512, 1024],
        "gc_interval": 30_000,
        "config": {**CONFIG, "key_len": 4 if family == 4 else 16, "entries": entries},
        "stats": {**STATS, **stats},
        "parms": PARMS,
    }


def tables(second: float = 0, *some: dict[str, Any]) -> dict[str, Any]:
    return {"mono": T0 + int(second * SECOND), "tables": list(some or (table(4), table(6)))}


def device(index: int, name: str, flags: int = 0x1003, **more: Any) -> dict[str, Any]:
    lladdr = f"52:54:00:00:00:{index:02x}"
    parms = {"4": PARMS, "6": {**PARMS, "locktime": 0}}
    about = {"index": index, "name": name, "flags": flags, "type": 1, "mtu": 1500}
    return {**about, "lladdr": lladdr, "parms": parms, **more}


def neighbour(dst: str, state: int, dev: int = 2, **more: Any) -> dict[str, Any]:
    ages = {"confirmed": 4_000, "used": 2_000, "updated": 9_000, "refs": 1}
    about = {"family": 6 if ":" in dst else 4, "dst": dst, "dev": dev, "state": state, "flags": 0}
    lladdr = None if state in (INCOMPLETE, FAILED) else "00:1b:21:aa:bb:cc"
    return {**about, "lladdr": lladdr, "probes": 1, "protocol": 0, **ages, **more}


def route(dst: str, *hops: tuple[int, str | None], **more: Any) -> dict[str, Any]:
    about = {"family": 6 if ":" in dst else 4, "dst": dst, "type": 1, "table": 254, "metric": 0}
    return {**about, "hops": [list(hop) for hop in hops], **more}


DEVICES = [
    device(1, "lo", 0x49, type=772, lladdr="00:00:00:00:00:00", mtu=65536),
    device(2, "lan0"),
    device(3, "wan0"),
    device(4, "tun0", 0x10D1),
]
NEIGHBOURS = [
    neighbour("10.0.0.2", REACHABLE),
    neighbour("10.0.0.3", STALE, lladdr="00:50:56:00:00:03", confirmed=754_000),
    neighbour("10.0.0.9", FAILED, probes=6),
    neighbour("10.0.0.10", INCOMPLETE, updated=800),
    neighbour("192.0.2.1", DELAY, 3, lladdr="02:00:00:00:00:01"),
    neighbour("192.0.2.9", PERMANENT, 3, lladdr="00:0c:29:00:00:09"),
    neighbour("2001:db8:1234:5678:9abc:def0:1234:5678", REACHABLE, flags=0x80),
    neighbour("fe80::1", PROBE, 3, flags=0x80, lladdr="00:50:56:00:00:01"),
    neighbour("ff02::16", NOARP, lladdr="33:33:00:00:00:16"),
]
ROUTES = [
    route("10.0.0.0/24", (2, None)),
    route("10.0.0.1/32", (2, None), type=2, table=255),
    route("10.0.0.255/32", (2, None), type=3, table=255),
    route("10.7.0.0/16", (2, "10.0.0.9")),
    route("10.7.7.0/24", (2, "10.0.0.2")),
    route("192.0.2.0/24", (3, None)),
    route("0.0.0.0/0", (3, "192.0.2.1"), metric=100),
    route("0.0.0.0/0", (2, "10.0.0.9"), metric=200),
    route("172.16.0.0/12", (4, None)),
    route("198.51.100.0/24", type=7),
    route("203.0.113.0/24", (2, "10.0.0.9"), (3, "192.0.2.1")),
    route("fe80::/64", (2, None), metric=256),
    route("fe80::/64", (3, None), metric=256),
    route("::/0", (3, "fe80::1")),
]


def namespace(
    netns: int = ROUTER, name: str = "router", second: float = 0, **more: Any
) -> dict[str, Any]:
    """A complete frame of a namespace; `more` replaces some of its keys."""
    frame = {
        "mono": T0 + int(second * SECOND),
        "netns": netns,
        "name": name,
        "devices": DEVICES,
        "neighbours": NEIGHBOURS,
        "routes": ROUTES,
        **more,
    }
    totals = {key: len(frame[key]) for key in ("neighbours", "routes", "devices")}
    return {"totals": {**totals, "rules": 0}, **frame}


def news(second: float = 1, netns: int = ROUTER, **some: Any) -> dict[str, Any]:
    return {"mono": T0 + int(second * SECOND), "netns": netns, **some}


def router() -> Neighbours:
    """A minute of a router with two namespaces."""
    held = Neighbours()
    lookups, hits = 123_456, 100_000
    for second in range(60):
        lookups += 40 + 30 * (second % 7)
        hits += 39 + 28 * (second % 7)
        arp = table(4, 12 + second // 10, lookups=lookups, hits=hits, allocs=1880 + second // 3)
        ndp = table(6, 600, forced_gc_runs=second // 20, lookups=5000 + second)
        held.feed(tables(second, arp, ndp))
    held.feed(namespace(second=59))
    held.feed(
        namespace(
            CLIENT,
            "client",
            59,
            neighbours=[neighbour("10.0.0.1", REACHABLE)],
            routes=ROUTES[:1],
            devices=DEVICES[:2],
        )
    )
    return held
