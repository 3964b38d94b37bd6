# SPDX-License-Identifier: GPL-2.0-only
"""A rule as iptables-save prints it, cut into words as iptables-restore cuts it.

Must not import anything of ipttrace.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

_OPTIONS: Final = {"-j": "-j", "--jump": "-j", "-g": "-g", "--goto": "-g"}
# iptables-save prints the names of devices unchanged, and quotes other words if necessary.
_DEVICE: Final = frozenset({"-i", "-o", "--in-interface", "--out-interface"})
# Options of matches whose value is a text or a name, which may look like another option.
# Those of targets come behind the target.
_NAMING: Final = _DEVICE | {
    *("--aname", "--bytecode", "--cgroup", "--comment", "--condition", "--dst-group", "--genre"),
    *("--hashlimit-name", "--helper", "--hex-string", "--label", "--match-set", "--name"),
    *("--nfacct-name", "--object-pinned", "--path", "--physdev-in", "--physdev-out", "--rateest"),
    *("--rateest1", "--rateest2", "--realm", "--src-group", "--string", "--tls-host"),
    *("--tls-hostset", "--u32"),
}
_BLANK: Final = " \t\n"


class Target(NamedTuple):
    """What a rule does: `option` is ``-j`` or ``-g``; `name`: a target's or a chain's."""

    option: str
    name: str


class Word(NamedTuple):
    """A word as it stands in the rule, and without its quotes and backslashes."""

    raw: str
    plain: str


def pieces(rule: str) -> Iterator[Word]:
    """The words of a rule.

    As add_param_to_argv() of iptables' xshared.c: blanks separate words, except between
    double quotes, and a backslash between quotes takes the next character as it is.
    """
    at, end, before = 0, len(rule), ""
    while at < end:
        if rule[at] in _BLANK:
            at += 1
            continue
        start = at
        word: list[str] = []
        quoted = False
        while at < end and (quoted or rule[at] not in _BLANK):
            letter = rule[at]
            at += 1
            if before in _DEVICE:
                word.append(letter)
            elif letter == '"':
                quoted = not quoted
            elif quoted and letter == "\\" and at < end:
                word.append(rule[at])
                at += 1
            else:
                word.append(letter)
        before = "".join(word)
        yield Word(rule[start:at], before)


def words(rule: str) -> Iterator[str]:
    """The words of a rule, without their quotes and backslashes."""
    for word in pieces(rule):
        yield word.plain


def takes_text(word: str) -> bool:
    """Whether the value of this option may look like another option."""
    return word in _NAMING


def target(rule: str) -> Target | None:
    """The target of a rule, None if it has none, which only counts packets.

    The value of an option may be ``-j`` as well, as in ``--comment -j``.
    """
    rest = words(rule)
    for word in rest:
        if word in _NAMING:
            next(rest, "")
        elif word in _OPTIONS:
            name = next(rest, None)
            return None if name is None else Target(_OPTIONS[word], name)
    return None
