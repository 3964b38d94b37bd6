# SPDX-License-Identifier: GPL-2.0-only
"""Sends lab traffic from a shell; prints the counts as one line of JSON.

For tests in a guest.  Must not import tui, view or textual.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from ipttrace.lab import traffic
from ipttrace.lab.network.ns import NetworkError
from ipttrace.lab.traffic.mix import run as run_mix
from ipttrace.lab.traffic.server import Server

_SENDERS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "ping": lambda a: traffic.ping(
        a.ns, a.dst, a.count, source=a.source, wait=not a.no_wait, destination_options=a.options
    ),
    "udp": lambda a: traffic.udp(
        a.ns, a.dst, a.port, a.count, rate=a.rate, payload=bytes(a.size), source=a.source, ttl=a.ttl
    ),
    "ask": lambda a: traffic.ask(a.ns, a.dst, a.port, a.count),
    "tcp": lambda a: traffic.tcp(a.ns, a.dst, a.port, send=bytes(a.size), abort=a.abort),
    "web": lambda a: traffic.web(a.ns, a.dst, a.port),
    "syn": lambda a: traffic.syn(a.ns, a.dst, a.port, a.count, source=a.source),
    "gre": lambda a: traffic.gre(a.ns, a.dst, a.count),
    "esp": lambda a: traffic.esp(a.ns, a.dst, a.count),
    "sctp": lambda a: traffic.sctp(a.ns, a.dst, a.port, a.count),
    "flood": lambda a: traffic.flood(
        a.ns,
        a.dst,
        a.port,
        count=a.count if a.duration is None else None,
        duration=a.duration,
        size=a.size,
    ),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ipttrace.lab.traffic", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in _SENDERS:
        sub = commands.add_parser(name)
        sub.add_argument("ns", help="namespace, such as ipt-client")
        sub.add_argument("dst", help="address")
        sub.add_argument("--port", type=int, default=5001)
        sub.add_argument("--count", type=int, default=1, help="packets")
        sub.add_argument("--size", type=int, default=18, help="bytes of payload")
        sub.add_argument("--source", default="", help="address to send from")
        sub.add_argument("--rate", type=float, help="packets/s")
        sub.add_argument("--duration", type=float, help="seconds, instead of a count")
        sub.add_argument("--ttl", type=int)
        sub.add_argument("--abort", action="store_true", help="close with a reset")
        sub.add_argument("--no-wait", action="store_true", help="do not wait for replies")
        sub.add_argument("--options", action="store_true", help="add IPv6 destination options")
    serve = commands.add_parser("serve", help="run the servers until end of file on stdin")
    serve.add_argument("ns")
    mix = commands.add_parser("mix", help="run the demo's background traffic")
    mix.add_argument("--prefix", default="ipt")
    mix.add_argument("--rate", type=float, default=40.0, help="packets/s, about")
    mix.add_argument("--duration", type=float, help="seconds")
    mix.add_argument("--until-eof", action="store_true", help="end at end of file on stdin")
    return parser


def _serve(ns: str) -> None:
    with Server(ns) as server:
        print("ready", flush=True)
        sys.stdin.read()
    counts = {f"{proto}/{port}": n for (proto, port), n in sorted(server.received.items())}
    print(json.dumps(counts), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    for name in ("rate", "count", "size"):
        value = getattr(args, name, None)
        if value is not None and value < (least := 1 if name == "rate" else 0):
            print(f"--{name} {value} is too small: at least {least}", file=sys.stderr)
            return 2
    try:
        if args.command == "mix":
            run_mix(args.prefix, args.rate, args.duration, 0 if args.until_eof else None)
        elif args.command == "serve":
            _serve(args.ns)
        else:
            print(json.dumps(asdict(_SENDERS[args.command](args))), flush=True)
    except NetworkError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{args.command}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
