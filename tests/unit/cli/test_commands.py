# SPDX-License-Identifier: GPL-2.0-only
"""The table of commands: a misspelt command is recognized, an expression is not taken for one."""

from __future__ import annotations

import re

import pytest

from ipttrace.cli import main
from ipttrace.cli.commands import COMMANDS, similar

# The words of pcap-filter(7) that an expression can begin with.
EXPR_WORDS = """
ah arp atalk broadcast carp decnet dst ether esp fddi gateway geneve greater host icmp
icmp6 igmp igrp inbound ip ip6 ipx iso lat len less link llc mpls multicast net netbeui
not on outbound pim port portrange ppp pppoed pppoes proto protochain radio rarp ref
reset rule src sctp stp tcp tr type udp vlan vrrp vxlan wlan
"""


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("recrod x", "record"),
        ("exprot x --format csv", "export"),
        ("replya x.iptr", "replay"),
        ("pritn --count 5", "print"),
        ("docter", "doctor"),
    ],
)
def test_a_misspelt_command_is_suggested(
    typed: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed.split()) == 2
    word = typed.split()[0]
    expected = f'ipttrace: no command "{word}"; did you mean "{meant}"?\n'
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    "expr", ["port 53", "tcp port 443", "udp and host 10.0.0.1", "less 100", "port 53 --count 5"]
)
def test_an_expression_is_not_taken_for_a_command(
    expr: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # GIVEN no terminal, so that the screen is refused
    try:
        status = main(expr.split())
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    assert status == 2
    assert "did you mean" not in capsys.readouterr().err


def test_a_bad_expression_that_resembles_no_command_is_reported_as_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipttrace.cli.screen.has_terminal", lambda: True)
    assert main(["tcp", "prot", "53"]) == 2
    assert "syntax error" in capsys.readouterr().err


@pytest.mark.parametrize("typed", ["help", "version", "top", "trace.iptr", "read trace.iptr"])
def test_a_word_that_is_neither_a_command_nor_a_filter_leads_to_the_help(
    typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed.split()) == 2
    word = typed.split()[0]
    expected = f'no command "{word}", and no filter begins with it (see ipttrace --help)'
    assert capsys.readouterr().err == f"ipttrace: {expected}\n"


def test_the_screen_does_not_open_for_a_namespace_that_does_not_exist(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipttrace.cli.screen.has_terminal", lambda: True)
    # WHEN the name of the namespace is wrong
    assert main(["--netns", "no-such-namespace"]) == 1
    # THEN one line says so: no screen, and no summary of a trace that never began
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ipttrace: there is no network namespace 'no-such-namespace': ")


@pytest.mark.parametrize("word", EXPR_WORDS.split())
def test_no_word_of_an_expression_resembles_a_command(word: str) -> None:
    assert similar(word) is None


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_command_s_help_has_its_name_and_its_arguments(
    command: object, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = (one for one in COMMANDS if one is command)
    with pytest.raises(SystemExit) as ended:
        main([found.name, "--help"])
    assert ended.value.code == 0
    usage = capsys.readouterr().out.split("\n\n")[0]
    assert usage.startswith(f"usage: ipttrace {found.name} ")
    assert ("EXPR" in usage) == ("EXPR" in found.arguments)
    assert ("FILE" in re.sub("--[a-z]+ FILE", "", usage)) == ("FILE" in found.arguments)
