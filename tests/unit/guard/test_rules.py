# SPDX-License-Identifier: GPL-2.0-only
"""Rules in words are read as people write them; of wrong ones the wrong word is shown."""

from __future__ import annotations

import pytest

from ipttrace.guard.conditions import number_of
from ipttrace.guard.rules import RuleError, parse


def test_a_rule_says_what_it_denies() -> None:
    (rule,) = parse("deny connect to 192.0.2.7,2001:db8::/32 port 80,8000-8080 tcp uid 0")
    assert rule.denies
    assert (rule.call, rule.protocol) == ("connect", "tcp")
    one, six = number_of("192.0.2.7"), number_of("2001:db8::")
    assert rule.remote == ((one, one), (six, six + (1 << 96) - 1))
    assert rule.remote_port == ((80, 80), (8000, 8080))
    assert rule.uid == ((0, 0),)
    assert (rule.local, rule.local_port, rule.comm, rule.containers) == (None,) * 4


def test_a_port_is_that_of_the_end_before_it() -> None:
    rules = parse(
        "deny connect port 1; deny accept port 2; deny accept on 10.0.0.1 port 3 from any port 4;"
        " deny receive from 10.0.0.2 port 5 on port 6"
    )
    ports = [(rule.remote_port, rule.local_port) for rule in rules]
    assert ports == [
        (((1, 1),), None),
        (None, ((2, 2),)),
        (((4, 4),), ((3, 3),)),
        (((5, 5),), ((6, 6),)),
    ]


def test_rules_are_separated_by_lines_semicolons_and_their_first_words() -> None:
    text = "# all\ndeny connect to 10.0.0.1 # one\n\nallow connect deny accept; deny receive\n"
    assert [rule.text for rule in parse(text)] == [
        "deny connect to 10.0.0.1",
        "allow connect",
        "deny accept",
        "deny receive",
    ]


def test_names_may_be_those_of_words_in_quotation_marks() -> None:
    (rule,) = parse('deny connect comm "deny","a, b" container 3f2a,nginx.service')
    assert rule.comm is not None
    names = [first.to_bytes(16, "big").rstrip(b"\0") for first, _ in rule.comm]
    assert names == [b"deny", b"a, b"]
    assert rule.containers == ("3f2a", "nginx.service")


@pytest.mark.parametrize(
    ("text", "word", "message"),
    [
        ("drop connect", "drop", "a rule begins with deny or allow"),
        ("deny connekt to ::1", "connekt", '"connekt" is none of connect, accept, receive'),
        ("deny connect to 1.2.3", "1.2.3", '"1.2.3" is no address'),
        ("deny connect to 10.0.0.9-10.0.0.1", "10.0.0.9-", "is no address"),
        ("deny connect port 65536", "65536", '"65536" is no port'),
        ("deny connect port 80-70", "80-70", "is no port"),
        ("deny connect from ::1", "from", "connect has no `from`"),
        ("deny accept to ::1", "to", "accept has no `to`"),
        ("deny receive port 53", "port", "whose port?"),
        ("deny connect port 1 port 2", "port 2", '"port" is there twice'),
        ("deny connect uid nobody-at-all", "nobody-at-all", "is no user of this host"),
        ("deny connect comm sixteen-letters-", "sixteen", "is no name of a process"),
        ("deny connect container ab", "ab", '"ab" is no container'),
        ("deny connect now", "now", '"now" is no condition of connect'),
        ("deny accept from ::1 comm x", "comm", "comm cannot be combined with `from`"),
        ("deny receive comm x", "comm", "which process will receive is not known"),
        ('deny connect comm "x', '"x', "the quotation mark is not closed"),
        ("deny connect to 10.0.0.1,", "", 'an address is missing behind ","'),
        ("deny", "", 'connect, accept or receive is missing behind "deny"'),
        ("deny connect \x1b[2J", "\x1b", '"\\x1b[2J" is no condition of connect'),
    ],
)
def test_a_wrong_word_is_shown(text: str, word: str, message: str) -> None:
    with pytest.raises(RuleError) as raised:
        parse(f"allow connect\n{text}\n")
    first, line, caret = raised.value.lines()
    assert message in first
    assert raised.value.number == 2
    # THEN the caret is below it, whatever else is in the line
    assert not {"\x1b", "\n"} & {*first, *line}
    shown = line[caret.index("^") :]
    assert shown.startswith("\\x1b" if word == "\x1b" else word)
    assert word or not shown


@pytest.mark.parametrize("text", ["", " ; \n# nothing", "\0"])
def test_without_rules_there_is_an_error(text: str) -> None:
    with pytest.raises(RuleError):
        parse(text)


def test_there_may_be_no_more_rules_than_the_kernel_has_room_for() -> None:
    assert len(parse("deny connect\n" * 1024)) == 1024
    with pytest.raises(RuleError, match="more than 1,024 rules"):
        parse("deny connect\n" * 1025)
    with pytest.raises(RuleError, match="longer than a million"):
        parse("#" * (1 << 20) + "\n")


def test_a_long_line_is_cut_around_the_word() -> None:
    with pytest.raises(RuleError) as raised:
        parse("deny connect to " + "10.0.0.1," * 99 + "wrong" + ",10.0.0.2" * 99)
    _, line, caret = raised.value.lines()
    assert len(line) < 180
    assert line[caret.index("^") :].startswith("wrong")
