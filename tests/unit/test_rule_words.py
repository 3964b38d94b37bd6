# SPDX-License-Identifier: GPL-2.0-only
"""A rule's words and its target are what iptables-restore would read."""

from __future__ import annotations

import pytest

from ipttrace.rule_words import Target, target, words


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("", []),
        ("-p udp -j DROP", ["-p", "udp", "-j", "DROP"]),
        (r'-m comment --comment "a \" b \\ \' -j X" -j DROP',
         ["-m", "comment", "--comment", "a \" b \\ ' -j X", "-j", "DROP"]),
        ('--comment ""  -j  DROP ', ["--comment", "", "-j", "DROP"]),
        ('--comment "two\nlines" -j A', ["--comment", "two\nlines", "-j", "A"]),
        ('--comment "no end -j DROP', ["--comment", "no end -j DROP"]),
        ('--comment "ends in \\', ["--comment", "ends in \\"]),
        ('-i a"b -o c\\d -j X', ["-i", 'a"b', "-o", "c\\d", "-j", "X"]),
    ],
)  # fmt: skip
def test_quotes_and_backslashes_are_read_as_iptables_reads_them(
    rule: str, expected: list[str]
) -> None:
    assert list(words(rule)) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("", None),
        ("-p udp -m udp --dport 9", None),
        ("-p udp -j ACCEPT", Target("-j", "ACCEPT")),
        ("-g OTHER", Target("-g", "OTHER")),
        ("--jump ACCEPT", Target("-j", "ACCEPT")),
        ("-m comment --comment -j -j DROP", Target("-j", "DROP")),
        ("-m comment --comment -j", None),
        ("-m comment --comment --comment -j DROP", Target("-j", "DROP")),
        ('-m comment --comment "-j DROP" -j ACCEPT', Target("-j", "ACCEPT")),
        (r'-m comment --comment "\" -j DROP" -j ACCEPT', Target("-j", "ACCEPT")),
        ("-m comment --comment -j -j LOG --log-prefix -j", Target("-j", "LOG")),
        ("-j LOG --log-prefix -g", Target("-j", "LOG")),
        ("-i -j -o -g -j DROP", Target("-j", "DROP")),
        ('-i " -j DROP', Target("-j", "DROP")),
        ("-m recent --rcheck --name -j --mask 255.255.255.255 --rsource -j X", Target("-j", "X")),
        ("-m set ! --match-set -j src -j X", Target("-j", "X")),
        ("-m recent --set --name a --rsource -j X", Target("-j", "X")),
        ("-j", None),
    ],
)
def test_a_value_that_looks_like_an_option_is_not_taken_for_the_target(
    rule: str, expected: Target | None
) -> None:
    assert target(rule) == expected
