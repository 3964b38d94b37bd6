# SPDX-License-Identifier: GPL-2.0-only
"""Legacy rules are read exactly, in any namespace, and reading changes nothing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ipttrace.capture import iptables_save
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import CommandMissing, Table, Unreadable
from ipttrace.capture.netns import inside

COMMANDS = {4: "iptables-legacy", 6: "ip6tables-legacy"}


class Space:
    """A network namespace."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        self.inode = os.stat(self.path).st_ino

    def iptables(self, *words: str, family: int = 4) -> None:
        self._run(COMMANDS[family], *words)

    def load(self, text: str, family: int = 4) -> None:
        self._run(f"{COMMANDS[family]}-restore", input=text)

    def names(self, family: int = 4) -> list[str]:
        with inside(self.path, self.inode):
            return iptables_save.names(family)

    def read(self, family: int = 4) -> dict[str, Table]:
        with inside(self.path, self.inode):
            return iptables_save.read(family)

    def _run(self, *argv: str, input: str | None = None) -> None:
        command = ["ip", "netns", "exec", self.name, *argv]
        done = subprocess.run(command, input=input, capture_output=True, text=True)
        if "Table does not exist" in done.stderr or "can't initialize" in done.stderr:
            pytest.skip("this kernel has no such table")
        assert done.returncode == 0, done.stderr


@contextmanager
def made(name: str) -> Iterator[Space]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield Space(name)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def space(prefix: str) -> Iterator[Space]:
    with made(prefix) as one:
        yield one


def texts(table: Table) -> dict[str, list[str]]:
    return {name: chain.rules for name, chain in table.items()}


@pytest.mark.parametrize("family", [4, 6])
def test_rules_are_read_in_order_as_iptables_prints_them(space: Space, family: int) -> None:
    # GIVEN rules, and a user-defined chain
    for words in (
        "-P FORWARD DROP",
        "-N services",
        "-A INPUT -i lo -j ACCEPT",
        "-A INPUT -j services",
        "-A INPUT",
        "-A services -p tcp --dport 22 -j ACCEPT",
        "-I services 1 -p udp ! --sport 53 -j RETURN",
    ):
        space.iptables(*words.split(), family=family)
    # THEN they are read in order, including rules without target or match
    found = space.read(family)
    assert list(found) == ["filter"]
    assert texts(found["filter"]) == {
        "INPUT": ["-i lo -j ACCEPT", "-j services", ""],
        "FORWARD": [],
        "OUTPUT": [],
        "services": ["-p udp -m udp ! --sport 53 -j RETURN", "-p tcp -m tcp --dport 22 -j ACCEPT"],
    }
    assert {name: chain.policy for name, chain in found["filter"].items()} == {
        "INPUT": "ACCEPT",
        "FORWARD": "DROP",
        "OUTPUT": "ACCEPT",
        "services": None,
    }
    # AND so are the counters
    assert found["filter"]["INPUT"].counters == [(0, 0)] * 3
    assert found["filter"]["INPUT"].policy_counters == (0, 0)
    assert found["filter"]["services"].policy_counters is None


@pytest.mark.parametrize(
    "comment",
    [
        "plain words",
        'he said "drop it"',
        "it's \\ or \\\\",
        "ends in a backslash \\",
        '"',
        "two\nlines",
        "evil\n[0:0] -A INPUT -j DROP\nCOMMIT\n*nat\n",
        '"\n[0:0] -A OUTPUT -m comment --comment "',
        "\x1b[2J\u202e\u00e4",
        "x" * 255,
        " ",
    ],
)
def test_no_comment_can_leave_its_rule(space: Space, comment: str) -> None:
    space.iptables("-A", "INPUT", "-m", "comment", "--comment", comment, "-j", "ACCEPT")
    space.iptables("-A", "INPUT", "-j", "DROP")
    rules = space.read()["filter"]["INPUT"].rules
    assert len(rules) == 2
    # THEN it is quoted as iptables does it
    quoted = comment
    for char in "\\\"'":
        quoted = quoted.replace(char, "\\" + char)
    expected = comment if comment.isalnum() else f'"{quoted}"'
    assert rules == [f"-m comment --comment {expected} -j ACCEPT", "-j DROP"]


def test_a_comment_that_is_not_utf_8_is_escaped(space: Space) -> None:
    command = ["ip", "netns", "exec", space.name, "iptables-legacy", "-A", "INPUT"]
    subprocess.run([*command, "-m", "comment", "--comment", b"a\xff\xfeb"], check=True)
    assert space.read()["filter"]["INPUT"].rules == ['-m comment --comment "a\\xff\\xfeb"']


def test_quotes_in_the_names_of_chains_and_devices_are_plain_characters(space: Space) -> None:
    space.iptables("-N", 'a"b')
    space.iptables("-A", "INPUT", "-i", '"x', "-j", 'a"b')
    space.iptables("-A", 'a"b', "-m", "comment", "--comment", " in blanks ")
    space.iptables("-A", 'a"b', "-i", 'y"', "-j", "LOG", "--log-prefix", 'z" ')
    assert texts(space.read()["filter"]) == {
        "INPUT": ['-i "x -j a"b'],
        "FORWARD": [],
        "OUTPUT": [],
        'a"b': [
            '-m comment --comment " in blanks "',
            '-i y" -j LOG --log-prefix "z\\" "',
        ],
    }


def test_reading_creates_no_table(space: Space) -> None:
    # GIVEN a namespace in which iptables was never used
    assert space.names() == []
    assert space.read() == {}
    assert space.names() == []
    # AND a namespace with one table only
    space.iptables("-t", "mangle", "-A", "OUTPUT", "-j", "ACCEPT")
    assert list(space.read()) == ["mangle"]
    assert space.names() == ["mangle"]
    assert space.names(6) == []


def test_thirty_thousand_rules_are_read(space: Space) -> None:
    lines = [
        f'-A INPUT -s 10.{n >> 8}.{n & 255}.1/32 -p tcp -m comment --comment "rule {n}" -j ACCEPT'
        for n in range(30_000)
    ]
    space.load("\n".join(["*filter", ":INPUT DROP [5:7]", *lines, "COMMIT", ""]))
    chain = space.read()["filter"]["INPUT"]
    assert [f"-A INPUT {rule}" for rule in chain.rules] == lines
    assert (chain.policy, len(chain.counters)) == ("DROP", 30_000)


def test_a_namespace_is_left_after_the_read(space: Space, prefix: str) -> None:
    home = os.stat("/proc/thread-self/ns/net").st_ino
    with inside(space.path, space.inode):
        assert os.stat("/proc/thread-self/ns/net").st_ino == space.inode
    assert os.stat("/proc/thread-self/ns/net").st_ino == home
    with pytest.raises(ZeroDivisionError), inside(space.path, space.inode):
        raise ZeroDivisionError
    assert os.stat("/proc/thread-self/ns/net").st_ino == home
    # AND another namespace at that path is not entered
    with pytest.raises(FileNotFoundError), inside(space.path, space.inode + 1):
        pass
    with pytest.raises(FileNotFoundError), inside("/run/netns/no-such", 1):
        pass


def test_a_command_that_fails_is_reported_in_one_line(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iptables_save, "command", lambda family: None)
    with pytest.raises(CommandMissing, match=r"^iptables-legacy-save is missing \(apt install"):
        space.read()
    monkeypatch.setattr(iptables_save, "command", lambda family: "/bin/false")
    with pytest.raises(CaptureError, match=r"^false fails: status 1$"):
        space.read()
    monkeypatch.setattr(iptables_save, "command", lambda family: "/bin/ls")
    with pytest.raises((CaptureError, Unreadable)):
        space.read()


def test_output_that_contradicts_the_kernels_count_is_refused(
    space: Space, monkeypatch: pytest.MonkeyPatch
) -> None:
    space.iptables("-A", "INPUT", "-j", "DROP")
    run = iptables_save.run
    monkeypatch.setattr(
        iptables_save,
        "run",
        lambda argv: run(argv).replace(b"\nCOMMIT", b"\n[0:0] -A INPUT\nCOMMIT"),
    )
    with pytest.raises(Unreadable, match=r"table filter has 5 entries, but .* printed 6$"):
        space.read()


@pytest.mark.parametrize(
    "text",
    [
        "*filter\n:INPUT ACCEPT [0:0]\n[0:0] -A INPUT -j DROP\n",
        "*filter\n:INPUT ACCEPT [0:0]\n[0:0] -A OTHER -j DROP\nCOMMIT\n",
        "[0:0] -A INPUT -j DROP\n",
        "*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j DROP\nCOMMIT\n",
        "*filter\nrubbish\nCOMMIT\n",
        "*filter",
        "\n",
    ],
)
def test_incomplete_or_malformed_output_is_refused(text: str) -> None:
    with pytest.raises(Unreadable, match=r"^\S.*$"):
        iptables_save.parse(text)
