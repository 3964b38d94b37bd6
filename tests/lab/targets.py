# SPDX-License-Identifier: GPL-2.0-only
"""Legacy targets, jumps and conditions of all kinds, each as a case of one ruleset.

Rows are derived by hand.  Must not send, nor import capture, tui or view.
"""

from __future__ import annotations

from typing import Final

from tests.lab import wire
from tests.lab.cases import ROUTES, Case, packet

SYN, ECE, CWR = 0x02, 0x40, 0x80
TCP, UDP = 6, 17
HOP_BY_HOP, ROUTING, FRAGMENT, AH, DESTINATION = 0, 43, 44, 51, 60
UNREAD, NO_LISTENER, LISTENER = 9, 1200, 1201  # ports
# Addresses that no case has: of the namespace, and behind it
HERE: Final = {4: "10.9.9.9", 6: "fd09::9:9"}
THERE: Final = {4: "10.7.9.9", 6: "fd07::9:9"}


def cases(family: int) -> dict[str, Case]:
    """The cases of a namespace with conntrack, by name."""
    return {
        **_may_drop(family),
        **_jumps(),
        **_comments(),
        **_marks(),
        **_headers(family),
        **(_headers_of_ipv6() if family == 6 else _headers_of_ipv4()),
        **_nat(family),
        **_continues(family),
        **_conditions(family),
    }


def _may_drop(family: int) -> dict[str, Case]:
    any_address = " --on-ip 0.0.0.0" if family == 4 else ""
    tproxy = f"-p udp -j TPROXY{any_address} --on-port"
    at, nat = "PREROUTING mangle", "nat"
    return {
        "TPROXY without a listener": Case(
            at, (f"{tproxy} {NO_LISTENER}",), "1", "DROP", may_drop=True
        ),
        "TPROXY with a listener": Case(
            at, (f"{tproxy} {LISTENER} --tproxy-mark 5",), "1", came={"mark": 0}, left={"mark": 5}
        ),
        "REDIRECT without an address": Case(
            f"PREROUTING {nat}", ("-p udp -j REDIRECT",), "1", "DROP", may_drop=True
        ),
        "MASQUERADE without an address": Case(
            f"POSTROUTING {nat}", ("-p udp -j MASQUERADE",), "1", "DROP", "forward", may_drop=True
        ),
        "NFQUEUE": Case(
            "FORWARD mangle",
            ("-j NFQUEUE --queue-num 7",),
            "1",
            "QUEUE",
            "forward",
            without=tuple(ROUTES["forward"][4:]),
        ),
        "NFQUEUE with a bypass": Case(
            "FORWARD mangle", ("-j NFQUEUE --queue-num 7 --queue-bypass",), "1", "QUEUE", "forward"
        ),
        "REJECT": Case("INPUT filter", ("-p udp -j REJECT",), "1", "DROP"),
        # The match drops it, without a rule that hits.
        "a header that ends too early, behind a chain's end": Case(
            "INPUT filter",
            ("-j A", "-p tcp -m tcp --dport 80", "A: -p udp"),
            "1 A:2/return",
            "DROP",
            packet=packet(family, TCP, wire.tcp(80, SYN)[:10]),
            without=("PREROUTING nat",),
            may_drop=True,
        ),
    }


def _jumps() -> dict[str, Case]:
    at = "INPUT filter"
    return {
        "DROP": Case(at, ("-j DROP",), "1", "DROP"),
        "DROP in security": Case("INPUT security", ("", "-j DROP"), "1 2", "DROP"),
        "DROP in POSTROUTING": Case("POSTROUTING mangle", ("-j DROP",), "1", "DROP", "forward"),
        "ACCEPT": Case("FORWARD filter", ("", "-j ACCEPT", "-j DROP"), "1 2", "ACCEPT", "forward"),
        "no target": Case(at, ("", "", "-p tcp"), "1 2 4/return policy"),
        "an empty chain": Case(at, (), "1/return policy"),
        "RETURN": Case(at, ("", "-j RETURN", "-j DROP"), "1 2 policy"),
        "RETURN with a condition": Case(
            at, ("-p tcp -j RETURN", "-p udp -j RETURN", "-j DROP"), "2 policy"
        ),
        "RETURN from a chain in a chain": Case(
            at,
            ("-j A", "-j B", "-p udp -j DROP", "A: -p udp -j RETURN", "A: -j DROP", "B: -j RETURN"),
            "1 A:1 2 B:1 3",
            "DROP",
        ),
        "ends of chains in chains": Case(
            at,
            ("-j A", "-p tcp", "A: -j B", "A: -p tcp -j DROP", "B: -j D", "D: -p tcp -j DROP"),
            "1 A:1 B:1 D:2/return B:2/return A:3/return 3/return policy",
        ),
        "goto, three deep": Case(
            at,
            ("-g A", "-j DROP", "A: -p udp -g B", "A: -j DROP", "B: -g D", "D: -p tcp"),
            "1 A:1 B:1 D:2/return policy",
        ),
        "RETURN behind a goto": Case(
            at,
            ("-j A", "-p udp -j ACCEPT", "A: -g B", "A: -j DROP", "B: -j RETURN"),
            "1 A:1 B:1 2",
        ),
    }


def _comments() -> dict[str, Case]:
    at, comment = "INPUT filter", "-m comment --comment"
    return {
        "a comment like -j": Case(at, (f'{comment} "-j" -j DROP',), "1", "DROP"),
        "a comment like --jump": Case(at, (f'{comment} "--jump" -j ACCEPT', "-j DROP"), "1"),
        "a comment like --goto": Case(at, (f'{comment} "--goto" -j RETURN', "-j DROP"), "1 policy"),
        "a comment like a target": Case(at, (f'{comment} "-j DROP"',), "1 2/return policy"),
    }


def _marks() -> dict[str, Case]:
    at = "PREROUTING mangle"
    hmark = "-j HMARK --hmark-tuple src,dst --hmark-rnd 1 --hmark-mod 1 --hmark-offset 9"
    none = {"mark": 0}
    return {
        "MARK": Case(
            at, ("-j MARK --set-mark 7", ""), "1 2 3/return policy", came=none, left={"mark": 7}
        ),
        "CONNMARK": Case(
            at,
            ("-j CONNMARK --set-mark 3", "-j CONNMARK --restore-mark"),
            "1 2 3/return policy",
            came=none,
            left={"mark": 3},
        ),
        "HMARK": Case(at, (hmark,), "1 2/return policy", came=none, left={"mark": 9}),
    }


def _headers(family: int) -> dict[str, Case]:
    """Targets that change the packet's headers: one run stays one row."""
    syn = packet(family, TCP, wire.tcp(80, SYN))
    mss = "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 1000"
    size = {4: 40, 6: 60}[family]
    at, path, last = "FORWARD mangle", "1 2 3 4/return policy", "POSTROUTING mangle"
    return {
        "TCPMSS adds an option": Case(
            at,
            ("", mss, ""),
            path,
            route="forward",
            packet=syn,
            came={"len": size},
            left={"len": size + 4},
        ),
        "TCPOPTSTRIP": Case(
            "PREROUTING mangle",
            ("", "-p tcp -j TCPOPTSTRIP --strip-options mss", ""),
            path,
            packet=syn,
        ),
        "TOS": Case(at, ("", "-j TOS --set-tos 0x13", ""), path, route="forward"),
        "DSCP": Case(last, ("", "-j DSCP --set-dscp 9", ""), path, route="forward"),
        "CLASSIFY": Case(last, ("", "-j CLASSIFY --set-class 1:1", ""), path, route="forward"),
        "CHECKSUM": Case("PREROUTING mangle", ("", "-p udp -j CHECKSUM --checksum-fill", ""), path),
    }


def _headers_of_ipv4() -> dict[str, Case]:
    marked = packet(4, TCP, wire.tcp(80, SYN | ECE | CWR))
    at, path = "PREROUTING mangle", "1 2 3 4/return policy"
    return {
        "ECN": Case(
            at,
            ("", "-p tcp -j ECN --ecn-tcp-remove", ""),
            path,
            packet=marked,
            came={"flags": "SYN,ECE,CWR"},
            left={"flags": "SYN"},
        ),
        "TTL": Case(at, ("", "-j TTL --ttl-inc 3", "-j TTL --ttl-set 9"), path),
    }


def _headers_of_ipv6() -> dict[str, Case]:
    at, path = "PREROUTING mangle", "1 2 3 4/return policy"
    return {
        "HL": Case(at, ("", "-j HL --hl-inc 3", "-j HL --hl-set 9"), path),
        "DNPT": Case(at, ("", "-j DNPT --src-pfx fd09::/64 --dst-pfx fd09:0:0:1::/64", ""), path),
        "SNPT": Case(
            "POSTROUTING mangle",
            ("", "-j SNPT --src-pfx fd05::/64 --dst-pfx fd15::/64", ""),
            path,
            route="forward",
            came={"src": "fd05::5"},
            left={"src": "fd15::ffef:0:0:5"},
        ),
    }


def _nat(family: int) -> dict[str, Case]:
    here, there = HERE[family], THERE[family]
    to = f"-p udp -j DNAT --to-destination {here}"
    arrives = {"dst": here}
    return {
        "DNAT": Case("PREROUTING nat", ("", to), "1 2", left=arrives),
        "NETMAP": Case("PREROUTING nat", (f"-j NETMAP --to {here}",), "1", left=arrives),
        "SNAT": Case(
            "POSTROUTING nat", (f"-p udp -j SNAT --to-source {here}",), "1", route="forward"
        ),
        "SNAT at INPUT": Case("INPUT nat", (f"-p udp -j SNAT --to-source {there}",), "1"),
        "CT --notrack": Case(
            "PREROUTING raw",
            ("", "-j CT --notrack", ""),
            "1 2 3 4/return policy",
            without=("PREROUTING nat", "INPUT nat"),
        ),
    }


def _continues(family: int) -> dict[str, Case]:
    """Targets behind which the packet hits the next rule."""
    rules = {
        "LOG": "-j LOG --log-prefix x",
        "NFLOG": "-j NFLOG --nflog-group 3",
        "AUDIT": "-j AUDIT --type accept",
        "LED": f"-j LED --led-trigger-id x{family}",
        "IDLETIMER": f"-j IDLETIMER --timeout 600 --label x{family}",
        "RATEEST": "-j RATEEST --rateest-name x --rateest-interval 250ms --rateest-ewmalog 0.5s",
    }
    return {
        name: Case("INPUT mangle", ("", rule, "-j ACCEPT"), "1 2 3") for name, rule in rules.items()
    }


def _conditions(family: int) -> dict[str, Case]:
    """Matches that take the packet; they would take one of each engine's run."""
    taking = {
        "quota": "-m quota --quota 10000",
        "limit": "-m limit --limit 1/hour --limit-burst 9",
        "hashlimit": f"-m hashlimit --hashlimit-upto 9/second --hashlimit-name h{family}",
        "statistic": "-m statistic --mode nth --every 1 --packet 0",
        "recent": f"-m recent --set --name r{family}",
        "string": "-m string --algo bm --string data",
        "u32": "-m u32 --u32 6&0=0",
        "bpf": '-m bpf --bytecode "1,6 0 0 65535"',
        "conntrack": "-m conntrack --ctstate NEW",
        "connlimit": "-m connlimit --connlimit-upto 5",
        "addrtype": "-m addrtype --dst-type LOCAL",
        "length": "-m length --length 1:500",
        "pkttype": "-m pkttype --pkt-type unicast",
        "mac": "-m mac --mac-source 02:00:00:00:00:02",
        "multiport": "-p udp -m multiport --dports 1,9",
        "policy": "-m policy --dir in --pol none",
        "time": "-m time --timestart 00:00 --timestop 23:59:59",
        "physdev": "-m physdev ! --physdev-is-bridged",
        "hops": "-m ttl --ttl-eq 64" if family == 4 else "-m hl --hl-eq 64",
        "protocol": "! -f" if family == 4 else "! -p tcp",
    }
    found = {
        f"-m {name}": Case("INPUT filter", (f"{words} -j DROP", "-j ACCEPT"), "1", "DROP")
        for name, words in taking.items()
    }
    found["-m socket"] = Case("PREROUTING mangle", ("-m socket -j DROP", "-p udp -j ACCEPT"), "2")
    found["-m rpfilter"] = Case("PREROUTING raw", ("-m rpfilter -j ACCEPT",), "1")
    return found


def bare_cases(family: int) -> dict[str, Case]:
    """The cases of a namespace without conntrack, which would reassemble fragments."""
    at, none = "PREROUTING raw", {"proto": "UDP", "sport": None, "dport": None}
    # The match drops it, which is not a hit of its rule.
    short = Case(
        at,
        ("", "-p tcp -m tcp --dport 80 -j ACCEPT"),
        "1",
        "DROP",
        packet=packet(family, TCP, bytes(4)),
        may_drop=True,
    )
    if family == 4:

        def later(address: str, number: int) -> bytes:
            return wire.ipv4(UDP, address, bytes(16), number=number, fragment=1480)

        rules = ("! -f", "-f", "-p udp --dport 9", "-p udp -j DROP")
        fragment = Case(at, rules, "2 4", "DROP", packet=later, came=none)
        return {"a later fragment": fragment, "half a TCP header": short}
    data = wire.udp(9)
    soft = "-m ipv6header --header ipv6-opts --soft"
    behind = {
        "hop-by-hop options": ("-m hbh", HOP_BY_HOP, wire.extension(UDP)),
        "destination options": ("-m dst", DESTINATION, wire.extension(UDP)),
        "a routing header": (
            "-m rt --rt-type 2 --rt-segsleft 0",
            ROUTING,
            wire.extension(UDP, b"\x02\x00" + bytes(20)),
        ),
        "AH": ("-m ah --ahspi 5", AH, bytes([UDP, 4, 0, 0, 0, 0, 0, 5]) + bytes(16)),
        "two headers": (soft, HOP_BY_HOP, wire.extension(DESTINATION) + wire.extension(UDP)),
    }
    found = {
        f"a datagram behind {name}": Case(
            at,
            ("-p tcp", f"{words} -p udp -m udp --dport 9 -j DROP"),
            "2",
            "DROP",
            packet=packet(6, first, headers + data),
            came={"proto": "UDP", "sport": 4000, "dport": 9},
        )
        for name, (words, first, headers) in behind.items()
    }
    found["half a TCP header"] = short
    found["a later fragment"] = Case(
        at,
        ("-m frag --fragid 7", "-p udp --dport 9", "-p udp -j DROP"),
        "1 3",
        "DROP",
        packet=packet(6, FRAGMENT, wire.fragment(UDP, 1448, 7) + bytes(16)),
        came=none,
    )
    return found
