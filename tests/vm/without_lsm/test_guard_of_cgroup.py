# SPDX-License-Identifier: GPL-2.0-only
"""Without bpf among the security modules, the guard denies what programs of a cgroup can.

The truth: what the calls return, and what the namespace's rules have counted.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from ipttrace.lab.network.ns import call_in, run_in, socket_in
from tests.program import ipttrace
from tests.vm import cgroups
from tests.vm.bpf_links import links
from tests.vm.forked import until
from tests.vm.guard.guarded import Guarded, attempt, connect, listener, received
from tests.vm.patience import PATIENCE
from tests.vm.plain import Plain

SERVER, OTHER, PEER = "192.0.2.7", "192.0.2.8", "198.51.100.5"
SIX, SIX_PEER = "2001:db8::7", "2001:db8:1::5"
FORBIDDEN = "Permission denied"
PORT = 10000
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
CGROUPS = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    """A namespace whose every address is its own; its rules count what is sent."""
    with Plain("ipt-guard") as one:
        for address in (SERVER, OTHER, PEER):
            run_in(one.name, ["ip", "address", "add", f"{address}/32", "dev", "lo"])
        for address in (SIX, SIX_PEER):
            run_in(one.name, ["ip", "address", "add", f"{address}/128", "dev", "lo", "nodad"])
        one.load(f"*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -d {SERVER}\nCOMMIT\n", 4)
        yield one


@pytest.fixture(scope="module")
def guard(plain: Plain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with Guarded(tmp_path_factory.mktemp("guard")) as one:
        yield one


def sent(plain: Plain) -> int:
    """Packets to the server."""
    lines = plain.run("iptables-legacy", "-nvxL", "OUTPUT").stdout.splitlines()[2:]
    return int(lines[0].split()[0])


def test_it_says_what_it_cannot_deny(guard: Guarded) -> None:
    first, second = guard.command.stderr()[:2]
    assert first.startswith("ipttrace: accept() and recvmsg() cannot be denied")
    assert "bpf is not among this kernel's security modules" in first
    assert second == "ipttrace: 1 rule applies"


def test_a_client_of_a_forbidden_server_is_denied_and_sends_nothing(
    plain: Plain, guard: Guarded
) -> None:
    guard.rules(f"deny connect to {SERVER} port {PORT}", f"deny connect to {SIX},::1 port {PORT}")
    before = sent(plain)
    assert connect(plain.name, SERVER, PORT) == FORBIDDEN
    with socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM) as one:
        assert attempt(lambda: one.sendto(b"x", (SERVER, PORT))) == FORBIDDEN
        assert attempt(lambda: one.connect((SERVER, PORT))) == FORBIDDEN
    with socket_in(plain.name, socket.AF_INET6, socket.SOCK_DGRAM) as one:
        assert attempt(lambda: one.sendto(b"x", (SIX, PORT))) == FORBIDDEN
        assert attempt(lambda: one.sendto(b"x", (f"::ffff:{SERVER}", PORT))) == FORBIDDEN
    assert connect(plain.name, SIX, PORT, 6) == FORBIDDEN
    assert connect(plain.name, "::", PORT, 6) == FORBIDDEN
    assert connect(plain.name, f"::ffff:{SERVER}", PORT, 6) == FORBIDDEN
    # THEN no packet has left, and other servers are as before
    assert sent(plain) == before
    with listener(plain.name, OTHER, PORT):
        assert connect(plain.name, OTHER, PORT) == ""
    # AND each is printed, with its process and its rule
    events = guard.events(8)
    found = [(one["protocol"], one["remote_ip"], one["rule"]) for one in events]
    assert found == [
        ("tcp", SERVER, 1),
        ("udp", SERVER, 1),
        ("udp", SERVER, 1),
        ("udp", SIX, 2),
        ("udp", SERVER, 1),
        ("tcp", SIX, 2),
        ("tcp", "::1", 2),
        ("tcp", SERVER, 1),
    ]
    for event in events:
        assert (event["call"], event["pid"], event["uid"]) == ("connect", os.getpid(), 0)
        assert event["comm"] == Path("/proc/self/comm").read_text().strip()
        assert (event["netns"], event["remote_port"]) == (plain.inode, PORT)


def test_users_names_and_containers_are_told_apart(plain: Plain, guard: Guarded) -> None:
    name = "3f2a" + "0" * 60
    folder = CGROUPS / f"docker-{name}.scope"
    folder.mkdir()
    guard.rules(
        f"deny connect to {SERVER} uid nobody",
        f"deny connect to {OTHER} comm ipt-wanted",
        f"deny connect to {PEER} container 3f2a0",
    )
    program = (
        "import socket, sys\n"
        "open('/proc/self/comm', 'w').write(sys.argv[1])\n"
        f"for address in {(SERVER, OTHER, PEER)!r}:\n"
        "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:\n"
        "        try: print(one.connect((address, 9)))\n"
        "        except OSError as error: print(error.strerror)\n"
    )

    def errors(uid: int, comm: str) -> list[str]:
        argv = ["setpriv", f"--reuid={uid}", "--clear-groups", "python3", "-c", program, comm]
        return plain.run(*argv).stdout.splitlines()

    try:
        assert errors(0, "ipt-other") == ["None", "None", "None"]
        assert errors(65534, "ipt-other") == [FORBIDDEN, "None", "None"]
        assert errors(0, "ipt-wanted") == ["None", FORBIDDEN, "None"]
        (folder / "cgroup.procs").write_text(str(os.getpid()))
        assert errors(0, "ipt-other") == ["None", "None", FORBIDDEN]
    finally:
        (CGROUPS / "cgroup.procs").write_text(str(os.getpid()))
        cgroups.remove(folder)
    events = guard.events(3)
    assert [one["rule"] for one in events] == [1, 2, 3]
    assert (events[1]["comm"], events[2]["container"]) == ("ipt-wanted", name)


@pytest.mark.parametrize(
    ("family", "server", "peer"), [(4, SERVER, PEER), (6, SIX, SIX_PEER)], ids=["ipv4", "ipv6"]
)
@pytest.mark.parametrize("rule", ["deny accept from {peer}", "deny accept on port 10000"])
def test_of_a_forbidden_connection_no_process_sees_anything(
    plain: Plain, guard: Guarded, family: int, server: str, peer: str, rule: str
) -> None:
    guard.rules(rule.format(peer=peer))
    with (
        listener(plain.name, server, PORT, family) as one,
        listener(plain.name, server, 80, family) as allowed,
        socket_in(plain.name, FAMILIES[family], socket.SOCK_STREAM) as forbidden,
    ):
        forbidden.bind((peer, 0))
        forbidden.setblocking(False)
        assert forbidden.connect_ex((server, PORT)) != 0
        (event,) = guard.events(1)
        # THEN the process gets nothing, and other connections come
        one.setblocking(False)
        assert attempt(one.accept) == "Resource temporarily unavailable"
        assert connect(plain.name, server, 80, family) == ""
        allowed.settimeout(PATIENCE)
        allowed.accept()[0].close()
    assert (event["call"], event["remote_ip"], event["local_port"]) == ("accept", peer, PORT)
    assert (event["pid"], event["uid"]) == (None, 0)


def test_data_of_a_forbidden_address_is_not_received(plain: Plain, guard: Guarded) -> None:
    guard.rules(f"deny receive from {PEER}")
    arrived, at_last = received(plain.name, (SERVER, PORT), PEER, OTHER)
    assert (arrived, at_last) == ([b"1"] * 3, "Resource temporarily unavailable")
    found = {(one["call"], one["protocol"], one["remote_ip"]) for one in guard.events(3)}
    assert found == {("receive", "udp", PEER)}
    # AND of a connection, which comes about, the data do not arrive
    with (
        listener(plain.name, SERVER, PORT) as one,
        socket_in(plain.name, socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        client.bind((PEER, 0))
        client.settimeout(PATIENCE)
        client.connect((SERVER, PORT))
        client.send(b"x")
        (event,) = guard.events(1)
        with one.accept()[0] as connection:
            assert not select.select([connection], [], [], 0)[0]
            # UNTIL the rule is gone: the client sends them again
            guard.rules("deny connect to 192.0.2.99")
            connection.settimeout(PATIENCE)
            assert connection.recv(9) == b"x"
    assert (event["protocol"], event["remote_ip"]) == ("tcp", PEER)


def test_rules_that_ask_what_is_not_known_are_refused(guard: Guarded) -> None:
    before = len(guard.command.stderr())
    guard.send("deny accept on port 80 comm nginx")
    assert until(lambda: len(guard.command.stderr()) >= before + 4)
    said = guard.command.stderr()[before:]
    assert said == [
        "ipttrace: comm is not known of accept here: bpf is not among the security modules",
        "  deny accept on port 80 comm nginx",
        "                         ^",
        "ipttrace: the previous rules still apply",
    ]
    done = ipttrace("guard", "deny accept on port 80 comm nginx")
    assert (done.returncode, done.stderr.splitlines()) == (2, said[:3])


def test_killed_it_leaves_everything_allowed(plain: Plain, tmp_path: Path) -> None:
    rules = f"deny connect to {SERVER}; deny accept on port {PORT}; deny receive from {OTHER}"
    before = links()
    with Guarded(tmp_path, rules=rules) as guard:
        assert connect(plain.name, SERVER, 9) == FORBIDDEN
        assert links() != before
        guard.command.process.send_signal(signal.SIGKILL)
        guard.command.process.wait()
    assert until(lambda: links() == before)
    with listener(plain.name, SERVER, PORT) as one:
        assert connect(plain.name, SERVER, PORT) == ""
        assert attempt(one.accept) == ""


def test_there_is_no_moment_with_half_of_the_rules(plain: Plain, guard: Guarded) -> None:
    # GIVEN two sets of rules, of which each denies one call
    turns = 50
    sets = [f"deny connect to {SERVER}; allow connect", f"allow connect to {SERVER}; deny connect"]

    def calls() -> list[str]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            return [attempt(partial(one.connect, (to, 9))) for to in (SERVER, OTHER)]

    # THEN at each time the answer is of the one that has been set
    for turn in range(turns):
        guard.rules(sets[turn % 2])
        expected = [FORBIDDEN, ""] if turn % 2 == 0 else ["", FORBIDDEN]
        assert call_in(plain.name, calls) == expected
    guard.events(turns)
