# SPDX-License-Identifier: GPL-2.0-only
"""An answer as lines for a person, and as an object for a program.  Pure."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from ipttrace.trace.decode.protocol import proto_name
from ipttrace.trace.row import Row
from ipttrace.whatif.answer.ask import Answer
from ipttrace.whatif.answer.fate import Left, as_object

ACCEPTED: Final = 0
DROPPED: Final = 3


def status(answer: Answer) -> int:
    """Returns the exit status: 0 accepted, 3 dropped."""
    return ACCEPTED if answer.fate.verdict == "ACCEPT" else DROPPED


def lines(answer: Answer, notes: list[str]) -> list[str]:
    """Returns the answer's lines; `notes`: what the copy lacks."""
    fate = answer.fate
    found = [outcome(answer)]
    found += [f"          {_left(one)}" for one in fate.left[1:]]
    for one in answer.differs:
        where = f"{one.table} {one.chain} rule {one.rulenum}"
        found.append(f"may differ: {where} ({one.what}): {one.why}: {one.rule}")
    return found + [f"note: {text}" for text in (*answer.notes, *notes)]


def outcome(answer: Answer) -> str:
    """Returns the line that tells what became of the packet."""
    return f"{'accepted' if answer.fate.verdict == 'ACCEPT' else 'dropped'}: {_how(answer)}"


def _how(answer: Answer) -> str:
    fate = answer.fate
    if fate.how == "left":
        return _left(fate.left[0])
    if fate.how == "delivered":
        return "delivered to this host"
    if fate.how in ("rule", "queue") and fate.row is not None:
        reason = f" ({fate.reason})" if fate.reason else ""
        return f"by {_rule(fate.row)}{reason}"
    after = ""
    if answer.own:
        last = answer.own[-1]
        after = f" (after {last.table} {last.hook or last.chain})"
    return f"outside the rules{after}: {fate.reason or 'the kernel gives no reason'}"


def _rule(row: Row) -> str:
    where = f"{row.table} {row.chain or ''}".strip()
    if row.match == "policy":
        return f"{where}'s policy"
    return f"{where} rule {row.rulenum or '?'}: {row.rule or '(text unknown)'}"


def _left(left: Left) -> str:
    tags = "".join(f" vlan {tag}" for tag in left.vlan)
    known = left.mac_src != left.mac_dst
    to = f" to {left.mac_dst}" if known else ", next hop's link-layer address unknown"
    proto = proto_name(left.proto).lower()
    ends = f"{_end(left.src, left.sport)} > {_end(left.dst, left.dport)}"
    return f"leaves {left.device}{tags}{to}: {proto} {ends} ttl {left.ttl}"


def _end(address: str, port: int | None) -> str:
    if port is None:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def as_json(answer: Answer, notes: list[str]) -> dict[str, Any]:
    """Returns the answer as an object for JSON lines."""
    fate = answer.fate
    row = fate.row if fate.how in ("rule", "queue") else None
    return {
        "answer": {
            "verdict": fate.verdict,
            "how": fate.how,
            "reason": fate.reason or None,
            "table": row.table if row else None,
            "chain": row.chain if row else None,
            "rulenum": row.rulenum if row else None,
            "match": row.match if row else None,
            "rule": row.rule if row else None,
            "left": [as_object(one) for one in fate.left],
            "may_differ": [asdict(one) for one in answer.differs],
            "notes": [*answer.notes, *notes],
            "packet": answer.sent.hex(),
        }
    }
