# SPDX-License-Identifier: GPL-2.0-only
"""Words that are a test by themselves: drop, tcp, 10.1.2.3, eth0.

Only words with a single possible meaning.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Final

from ipttrace.netfilter import HOOKS, TABLES, VERDICTS
from ipttrace.trace.query.error import QueryError, for_message, suggestion
from ipttrace.trace.query.fields import ALIASES, CT_STATES, PROTOCOLS, TCP_FLAGS, fields
from ipttrace.trace.query.tree import BareWord, Test, Value
from ipttrace.trace.query.unresolved import PROTOCOLS as UNRESOLVED

_FAMILIES: Final = {"ipv4": "4", "ipv6": "6", "ip6": "6"}

# Word in lower case → field, operator, value.
WORDS: Final[dict[str, tuple[str, str, str]]] = (
    {table: ("table", "=", table) for table in TABLES}
    | {word: ("family", "=", number) for word, number in _FAMILIES.items()}
    | {proto.lower(): ("proto", "=", proto) for proto in PROTOCOLS}
    | {"icmp6": ("proto", "=", "ICMPv6")}
    | {state.lower(): ("ct_state", "=", state) for state in CT_STATES}
    | {flag.lower(): ("flags", "=", flag) for flag in TCP_FLAGS if flag not in ("NS", "ECE", "CWR")}
    | {verdict.lower(): ("verdict", "=", verdict) for verdict in VERDICTS}
    | {"drop": ("drop", "=", "yes")}
    | {"partial": ("partial", "=", "yes"), "frag": ("frag", "!=", "none")}
    | {name: (name, "!=", "none") for name in ("unresolved", "frag_fault")}
    | {f"no_{proto.lower()}": ("unresolved", "=", proto) for proto in UNRESOLVED}
)

_DEVICE: Final = re.compile(
    r"lo|(?:eth|en[ops]|wl|ww|br|docker|veth|virbr|tun|tap|wg|bond|team|ppp|dummy|vlan|cni|vmbr)"
    r"-?[\w.:@-]*\d[\w.:@-]*"
)


def expand_word(leaf: BareWord) -> Test:
    """The test that a word stands for.  Raises QueryError if it stands for none."""
    value = leaf.value
    word = value.text.lower()
    if value.quoted:
        raise value.error('a quoted string needs a field, as in rule~"…"')
    if word in WORDS:
        return _test(leaf, *WORDS[word])
    if _is_network(value.text):
        return _test(leaf, "addr", "=", value.text)
    if _DEVICE.fullmatch(value.text):
        return _test(leaf, "dev", "=", value.text)
    raise _unknown_word(value, word)


def is_word(word: str) -> bool:
    """Whether a word is a test by itself."""
    try:
        expand_word(BareWord(Value(word, False, 0, len(word))))
    except QueryError:
        return False
    return True


def _test(leaf: BareWord, name: str, op: str, text: str) -> Test:
    start, end = leaf.value.start, leaf.value.end
    wanted = Value(text, False, start, end)
    return Test(Value(name, False, start, end), op, (wanted,), None, start, leaf.depth)


def _is_network(text: str) -> bool:
    if text.isdigit() or "%" in text:
        return False
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True


def _unknown_word(value: Value, word: str) -> QueryError:
    known = fields()
    name = ALIASES.get(word, word)
    if name in known:
        return value.error(f"operator missing after {word}, as in {word}={_example(name)}")
    if value.text.upper() in HOOKS:
        upper = value.text.upper()
        return value.error(f"{upper} is a hook and a chain; use hook={upper} or chain={upper}")
    if re.fullmatch(r"[0-9]+|0x[0-9a-f]+", word):
        return value.error(f"a number needs a field, as in port={for_message(word)}")
    near = suggestion(word, (*WORDS, *known))
    if not near:
        near = "; use a field, as in chain=DOCKER or comm~curl"
    return value.error(f"unknown word {for_message(value.text)}{near}")


_EXAMPLES: Final = {
    "place": "ip_forward",
    "reason": "IP_RPFILTER",
    "time": "12:30:05",
    "rule": '"…"',
    "src": "10.0.0.0/8",
    "dst": "10.0.0.0/8",
    "addr": "10.0.0.0/8",
    "port": "443",
    "cost": "50us",
    "chain": "INPUT",
    "path": "FORWARD:2",
    "icmp": "8/0",
}


def _example(name: str) -> str:
    listed = fields()[name].kinds[0].choices()
    return _EXAMPLES.get(name) or (listed[0] if listed else "…")
