# SPDX-License-Identifier: GPL-2.0-only
"""A rule of iptables, as iptables-save prints it, taken apart into its conditions.  Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ipttrace.rule_words import Word, pieces, takes_text

_OWN: Final = {"-s": 1, "-d": 1, "-i": 1, "-o": 1, "-p": 1, "-f": 0}
# Matches whose options are a condition each.
_SPLIT: Final = frozenset(
    [
        "tcp",
        "udp",
        "udplite",
        "sctp",
        "dccp",
        "conntrack",
        "iprange",
        "physdev",
        "owner",
        "devgroup",
        "ecn",
    ]
)
# Of these one option is the condition's name already.
_PLAIN: Final = _SPLIT | {"state", "multiport", "icmp", "icmp6", "set", "string", "ttl", "hl"}
# Matches that iptables takes only behind -p.
_PROTOCOL: Final = frozenset(
    [
        "tcp",
        "udp",
        "udplite",
        "sctp",
        "dccp",
        "icmp",
        "icmp6",
        "multiport",
        "ah",
        "esp",
        "mh",
        "ecn",
        "tcpmss",
        "osf",
        "synproxy",
    ]
)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition: the words that ask for it alone, and what it is about.

    `option` decides the packet's value, for example ``--dport``; `prefix`: the words of the
    rule's protocol, without which iptables may refuse the others.
    """

    words: tuple[str, ...]
    shown: str
    module: str
    option: str
    values: tuple[str, ...]
    prefix: tuple[str, ...] = ()

    @property
    def needs_prefix(self) -> bool:
        """Whether iptables is known to refuse it without the protocol."""
        return self.module in _PROTOCOL


def take_apart(rule: str) -> list[Condition]:
    """Returns the conditions of a rule, in its order.  Comments are none."""
    found: list[Condition] = []
    rest = list(pieces(rule))
    prefix: tuple[str, ...] = ()
    while rest:
        negated = len(rest) > 1 and rest[0].plain == "!"
        word = rest[1 if negated else 0].plain
        if word in ("-j", "-g", "--jump", "--goto"):
            break
        if word == "-m":
            name, group = rest[1], _group(rest[2:])
            found += _of_match(name, group)
            rest = rest[2 + len(group) :]
            continue
        size = int(negated) + 1 + _OWN.get(word, 0)
        some, rest = rest[:size], rest[size:]
        if word not in _OWN:
            continue
        raw = tuple(one.raw for one in some)
        values = tuple(one.plain for one in some[int(negated) + 1 :])
        if word == "-p":
            prefix = raw
        found.append(Condition(raw, " ".join(raw), "", word, values))
    return [_with_prefix(one, prefix) for one in found]


def _with_prefix(one: Condition, prefix: tuple[str, ...]) -> Condition:
    if not one.module:
        return one
    return Condition(one.words, one.shown, one.module, one.option, one.values, prefix)


def _group(rest: Sequence[Word]) -> list[Word]:
    """The options of a match: up to the next match or the target."""
    group: list[Word] = []
    for word in rest:
        before = group[-1].plain if group else ""
        if not takes_text(before) and word.plain in ("-m", "-j", "-g", *_OWN):
            break
        group.append(word)
    if group and group[-1].plain == "!" and not takes_text(group[-2].plain if group[1:] else ""):
        group.pop()
    return group


def _of_match(name: Word, group: list[Word]) -> list[Condition]:
    if name.plain == "comment":
        return []
    options = _options(group)
    if name.plain not in _SPLIT or not options:
        options = [group]
    found = []
    for some in options:
        raw = tuple(one.raw for one in some)
        at = 1 if some and some[0].plain == "!" else 0
        option = some[at].plain if some[at:] else ""
        shown = " ".join(raw if name.plain in _PLAIN and raw else ("-m", name.raw, *raw))
        values = tuple(one.plain for one in some[at + 1 :])
        found.append(Condition(("-m", name.raw, *raw), shown, name.plain, option, values))
    return found


def _options(group: Sequence[Word]) -> list[list[Word]]:
    """The options of a match with their values, and with the ! before them."""
    found: list[list[Word]] = []
    negation: list[Word] = []
    for word in group:
        is_value = bool(found and found[-1]) and takes_text(found[-1][-1].plain)
        if word.plain == "!" and not is_value:
            negation = [word]
        elif word.plain.startswith("--") and not is_value:
            found.append([*negation, word])
            negation = []
        elif found:
            found[-1].append(word)
    return found
