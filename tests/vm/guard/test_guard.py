# SPDX-License-Identifier: GPL-2.0-only
"""A guard denies exactly what its rules say, tells who was denied, and leaves nothing behind.

The truth: what the calls return, and what the namespace's rules have counted.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.lab.network.ns import call_in, run_in, socket_in
from tests.program import ipttrace
from tests.vm import cgroups
from tests.vm.bpf_links import links
from tests.vm.conftest import SHARED
from tests.vm.forked import until
from tests.vm.guard.guarded import Guarded, attempt, connect, listener, received
from tests.vm.plain import Plain

SERVER, OTHER, PEER = "192.0.2.7", "192.0.2.8", "198.51.100.5"
SIX, SIX_PEER = "2001:db8::7", "2001:db8:1::5"
FORBIDDEN = "Permission denied"
PORT = 10000
TURNS = 1000
COLUMNS = ("call", "protocol", "remote_ip", "rule")
SUMMARY = re.compile(r"ipttrace: denied=(\d+) lost=(\d+) replaced=(\d+)")


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    """A namespace whose every address is its own; its rules count what is sent."""
    with Plain("ipt-guard") as one:
        for address in (SERVER, OTHER, PEER, "203.0.113.9"):
            run_in(one.name, ["ip", "address", "add", f"{address}/32", "dev", "lo"])
        for address in (SIX, SIX_PEER):
            run_in(one.name, ["ip", "address", "add", f"{address}/128", "dev", "lo", "nodad"])
        one.load(
            "*filter\n:OUTPUT ACCEPT [0:0]\n"
            f"-A OUTPUT -d {SERVER} -p tcp --dport {PORT}\n-A OUTPUT -d {SERVER} -p udp\nCOMMIT\n",
            4,
        )
        yield one


@pytest.fixture(scope="module")
def guard(plain: Plain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with Guarded(tmp_path_factory.mktemp("guard")) as one:
        yield one


def sent(plain: Plain) -> list[int]:
    """Packets to the server, of TCP to PORT and of UDP."""
    lines = plain.run("iptables-legacy", "-nvxL", "OUTPUT").stdout.splitlines()[2:]
    return [int(line.split()[0]) for line in lines]


def test_a_client_of_a_forbidden_server_is_denied_and_sends_nothing(
    plain: Plain, guard: Guarded
) -> None:
    guard.rules(f"deny connect to {SERVER} port {PORT}", f"deny connect to {SIX} port {PORT}")
    before = sent(plain)
    with listener(plain.name, "0.0.0.0", PORT), listener(plain.name, "::", PORT + 1, 6):
        # WHEN processes connect, or send, to it
        assert connect(plain.name, SERVER, PORT) == FORBIDDEN
        with socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM) as one:
            assert attempt(lambda: one.sendto(b"x", (SERVER, PORT))) == FORBIDDEN
            assert attempt(lambda: one.connect((SERVER, PORT))) == FORBIDDEN
        assert connect(plain.name, SIX, PORT, 6) == FORBIDDEN
        assert connect(plain.name, f"::ffff:{SERVER}", PORT, 6) == FORBIDDEN
        # THEN no packet has left, and other ports and servers are as before
        assert sent(plain) == before
        assert connect(plain.name, OTHER, PORT) == ""
        assert connect(plain.name, SIX, PORT + 1, 6) == ""
    # AND each is printed, with its process and its rule
    events = guard.events(5)
    found = [tuple(each[name] for name in COLUMNS) for each in events]
    assert found == [
        ("connect", "tcp", SERVER, 1),
        ("connect", "udp", SERVER, 1),
        ("connect", "udp", SERVER, 1),
        ("connect", "tcp", SIX, 2),
        ("connect", "tcp", SERVER, 1),
    ]
    for event in events:
        assert (event["pid"], event["uid"], event["remote_port"]) == (os.getpid(), 0, PORT)
        assert event["comm"] == Path("/proc/self/comm").read_text().strip()
        assert event["netns"] == plain.inode


def test_an_address_that_only_means_the_forbidden_one_is_denied_too(
    plain: Plain, guard: Guarded
) -> None:
    guard.rules(f"deny connect to 127.0.0.1,::1,{SERVER}")
    # GIVEN zeros, which are this host, and no family, with which sending still works
    assert connect(plain.name, "0.0.0.0", PORT) == FORBIDDEN
    assert connect(plain.name, "::", PORT, 6) == FORBIDDEN
    assert connect(plain.name, "::ffff:0.0.0.0", PORT, 6) == FORBIDDEN
    to = struct.pack("=H", socket.AF_UNSPEC) + struct.pack("!H", PORT) + socket.inet_aton(SERVER)
    with socket_in(plain.name, socket.AF_INET, socket.SOCK_DGRAM) as one:
        sendto = ctypes.CDLL(None, use_errno=True).sendto
        before = sent(plain)
        assert sendto(one.fileno(), b"x", 1, 0, to + bytes(8), 16) == -1
        assert os.strerror(ctypes.get_errno()) == FORBIDDEN
        assert sent(plain) == before
        # THEN to disconnect is not denied
        one.connect((OTHER, 9))
        connect_ = ctypes.CDLL(None, use_errno=True).connect
        assert connect_(one.fileno(), to + bytes(8), 16) == 0
    assert [one["remote_ip"] for one in guard.events(4)] == [
        "127.0.0.1",
        "::1",
        "127.0.0.1",
        SERVER,
    ]


def test_accept_on_a_forbidden_port_fails(plain: Plain, guard: Guarded) -> None:
    guard.rules(f"deny accept on port {PORT}")
    with listener(plain.name, SERVER, PORT) as one, listener(plain.name, SERVER, 80) as other:
        assert attempt(one.accept) == FORBIDDEN
        assert connect(plain.name, SERVER, 80) == ""
        assert attempt(other.accept) == ""
    (event,) = guard.events(1)
    assert (event["call"], event["local_ip"], event["local_port"]) == ("accept", SERVER, PORT)
    assert event["remote_ip"] is None
    assert event["rule_text"] == f"deny accept on port {PORT}"


@pytest.mark.parametrize(
    ("family", "server", "peer", "network"),
    [(4, SERVER, PEER, "198.51.100.0/24"), (6, SIX, SIX_PEER, "2001:db8:1::/48")],
)
def test_of_a_forbidden_peer_no_process_sees_the_connection(
    plain: Plain, guard: Guarded, family: int, server: str, peer: str, network: str
) -> None:
    guard.rules(f"deny accept from {network}")
    kind = {4: socket.AF_INET, 6: socket.AF_INET6}[family]
    with (
        listener(plain.name, server, PORT, family) as one,
        socket_in(plain.name, kind, socket.SOCK_STREAM) as forbidden,
    ):
        # GIVEN a connection of that peer, then one of another
        forbidden.bind((peer, 0))
        forbidden.setblocking(False)
        assert forbidden.connect_ex((server, PORT)) != 0
        (event,) = guard.events(1)
        assert connect(plain.name, server, PORT, family) == ""
        # THEN a process gets only the other
        one.settimeout(30)
        connection, address = one.accept()
        connection.close()
        one.setblocking(False)
        assert attempt(one.accept) == "Resource temporarily unavailable"
    assert address[0] == server
    assert (event["call"], event["remote_ip"], event["local_port"]) == ("accept", peer, PORT)
    assert event["pid"] is None


def test_only_allowed_peers_are_accepted(plain: Plain, guard: Guarded) -> None:
    guard.rules(f"allow accept from {OTHER}", "deny accept")
    with (
        listener(plain.name, SERVER, PORT) as one,
        socket_in(plain.name, socket.AF_INET, socket.SOCK_STREAM) as forbidden,
    ):
        forbidden.bind((PEER, 0))
        forbidden.setblocking(False)
        assert forbidden.connect_ex((SERVER, PORT)) != 0
        (event,) = guard.events(1)
        assert (event["remote_ip"], event["rule"]) == (PEER, 2)
        assert connect(plain.name, SERVER, PORT, source=OTHER) == ""
        connection, address = one.accept()
        connection.close()
    assert address[0] == OTHER


def test_data_of_a_forbidden_address_is_not_received(plain: Plain, guard: Guarded) -> None:
    guard.rules(f"deny receive from {PEER}")
    arrived, at_last = received(plain.name, (SERVER, PORT), PEER, OTHER)
    assert (arrived, at_last) == ([b"1"] * 3, "Resource temporarily unavailable")
    events = guard.events(3)
    assert {(one["call"], one["remote_ip"], one["pid"]) for one in events} == {
        ("receive", PEER, None)
    }
    # AND of a connection the process is told so
    with (
        listener(plain.name, SERVER, PORT) as one,
        socket_in(plain.name, socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        client.bind((PEER, 0))
        client.connect((SERVER, PORT))
        client.send(b"x")
        connection, _ = one.accept()
        with connection:
            assert attempt(lambda: connection.recv(1)) == FORBIDDEN
    (read,) = guard.events(1)
    assert (read["protocol"], read["pid"]) == ("tcp", os.getpid())


@SHARED
def test_users_and_names_of_processes_are_told_apart(plain: Plain, guard: Guarded) -> None:
    guard.rules(
        f"deny connect to {SERVER} uid nobody",
        f"deny connect to {OTHER} comm ipt-wanted,other",
    )

    def as_user(uid: int, comm: str) -> list[str]:
        """The errors of a process of that user and name."""
        program = (
            "import socket, sys\n"
            "open('/proc/self/comm', 'w').write(sys.argv[1])\n"
            f"for address in ({SERVER!r}, {OTHER!r}):\n"
            "    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:\n"
            "        try: print(one.connect((address, 9)))\n"
            "        except OSError as error: print(error.strerror)\n"
        )
        argv = ["setpriv", f"--reuid={uid}", "--clear-groups", "python3", "-c", program, comm]
        return plain.run(*argv).stdout.splitlines()

    assert as_user(0, "ipt-other") == ["None", "None"]
    assert as_user(65534, "ipt-other") == [FORBIDDEN, "None"]
    assert as_user(0, "ipt-wanted") == ["None", FORBIDDEN]
    first, second = guard.events(2)
    assert (first["uid"], first["rule"]) == (65534, 1)
    assert (second["comm"], second["rule"]) == ("ipt-wanted", 2)


@SHARED
def test_a_container_is_denied_by_its_id(plain: Plain, guard: Guarded) -> None:
    # GIVEN a process in a cgroup as docker names it, and one below it
    root = Path("/sys/fs/cgroup")
    if not (root / "cgroup.procs").exists():
        subprocess.run(["mount", "-t", "cgroup2", "none", root], check=True)
    name = "3f2a" + "0" * 60
    folder = root / f"docker-{name}.scope"
    inner = folder / "inner"
    inner.mkdir(parents=True)
    guard.rules(f"deny connect to {SERVER} container 3f2a0")

    def denied(procs: Path) -> str:
        def run() -> str:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
                return attempt(lambda: one.connect((SERVER, 9)))

        procs.write_text(str(os.getpid()))
        try:
            return call_in(plain.name, run)
        finally:
            (root / "cgroup.procs").write_text(str(os.getpid()))

    try:
        assert denied(root / "cgroup.procs") == ""
        assert denied(folder / "cgroup.procs") == FORBIDDEN
        assert denied(inner / "cgroup.procs") == FORBIDDEN
    finally:
        cgroups.remove(inner)
        cgroups.remove(folder)
    for one in guard.events(2):
        assert (one["runtime"], one["container"]) == ("docker", name)


@SHARED
def test_there_is_no_moment_with_half_of_the_rules(plain: Plain, tmp_path: Path) -> None:
    with Guarded(tmp_path) as guard:
        replace_all_the_time(plain, guard)


def replace_all_the_time(plain: Plain, guard: Guarded) -> None:
    # GIVEN two sets of rules: in each, one call is denied and one allowed, by other rules
    many = [f"deny connect to 10.{one >> 8}.{one & 255}.1" for one in range(9)]
    sets = (
        [f"allow connect to {OTHER}", "deny connect"],
        [*many, f"deny connect port {PORT}", f"deny connect to {OTHER} port 2"],
    )
    stop = threading.Event()
    wrong: list[str] = []
    asked = [0]

    def ask() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
        ):
            while not stop.is_set():
                if attempt(lambda: one.connect((SERVER, PORT))) != FORBIDDEN:
                    wrong.append("allowed")
                if attempt(lambda: other.connect((OTHER, 1))):
                    wrong.append("denied")
                asked[0] += 1
                if asked[0] % 20 == 0:
                    time.sleep(0.005)  # the guest has two slow CPUs

    guard.rules(*sets[1])
    # (Nobody reads what is printed meanwhile, which must not matter.)
    thread = threading.Thread(target=lambda: call_in(plain.name, ask))
    thread.start()
    before = guard.applied()
    for turn in range(TURNS // 50):
        # WHEN they are replaced a thousand times while processes call
        guard.send(*("; ".join(sets[one % 2]) for one in range(50)))
        expected = before + (turn + 1) * 50
        assert until(lambda expected=expected: guard.applied() >= expected)  # type: ignore[misc]
    stop.set()
    thread.join()
    # THEN each call was decided by one of them
    assert not wrong
    assert asked[0] > TURNS / 10
    guard.command.interrupt()
    _, printed = guard.command.finish()
    lines = printed.count("\n")
    match = SUMMARY.fullmatch(guard.command.stderr()[-1])
    assert match
    # AND each that was denied is a line, or is counted as lost
    assert int(match[1]) == asked[0] == lines + int(match[2])
    assert int(match[3]) == TURNS + 1


def test_killed_it_leaves_everything_allowed(plain: Plain, tmp_path: Path) -> None:
    rules = f"deny connect to {SERVER}; deny accept on port {PORT}; deny receive from {OTHER}"
    before = links()
    with Guarded(tmp_path, rules=rules) as guard:
        with listener(plain.name, OTHER, PORT) as one:
            assert connect(plain.name, SERVER, 9) == FORBIDDEN
            assert attempt(one.accept) == FORBIDDEN
        guard.command.process.send_signal(signal.SIGKILL)
        guard.command.process.wait()
    with listener(plain.name, SERVER, PORT) as one:
        assert connect(plain.name, SERVER, PORT) == ""
        assert attempt(one.accept) == ""
    assert until(lambda: links() == before)


@SHARED
def test_a_dry_run_denies_nothing(plain: Plain, tmp_path: Path) -> None:
    with Guarded(tmp_path, "--dry-run", rules=f"deny connect to {SERVER}") as guard:
        with listener(plain.name, SERVER, PORT):
            assert connect(plain.name, SERVER, PORT) == ""
        (event,) = guard.events(1)
        assert event["denied"] is False
        guard.command.interrupt()
        assert guard.command.finish()[0] == 130
        assert guard.command.stderr()[-1] == "ipttrace: would be denied=1 lost=0 replaced=0"


@SHARED
def test_a_file_is_read_again_when_it_changes(plain: Plain, tmp_path: Path) -> None:
    rules = tmp_path / "rules"

    def write(text: str) -> None:
        """At once, so that no part of it is read."""
        newer = tmp_path / "newer"
        newer.write_text(text)
        newer.rename(rules)

    write(f"# the first\ndeny connect to {SERVER}\n")
    with Guarded(tmp_path, rules=str(rules)) as guard:
        assert connect(plain.name, SERVER, 9) == FORBIDDEN
        # WHEN something is wrong in it, THEN the rules before stay
        write(f"deny connect to {OTHER}\ndeny connekt to {SERVER}\n")
        assert until(lambda: "still apply" in guard.command.stderr()[-1])
        *_, message, line, caret, _ = guard.command.stderr()
        assert message == f'ipttrace: {rules}:2: "connekt" is none of connect, accept, receive'
        assert line[caret.index("^") :].startswith("connekt")
        assert connect(plain.name, SERVER, 9) == FORBIDDEN
        write(f"deny connect to {OTHER}\n")
        assert until(lambda: guard.applied() == 2)
        assert connect(plain.name, SERVER, 9) == "Connection refused"
        assert connect(plain.name, OTHER, 9) == FORBIDDEN


@SHARED
def test_the_ssh_session_is_not_cut_off(plain: Plain, tmp_path: Path) -> None:
    ssh = {"SSH_CONNECTION": f"{PEER} 50000 {SERVER} 22"}
    for rule in ("deny receive from 198.51.100.0/24", "deny accept on port 22", "deny accept"):
        found = ipttrace("guard", "--duration", "1", rule, env=ssh)
        assert found.returncode == 2
        assert found.stderr == (
            f'ipttrace: "{rule}" would cut off this ssh session: --force if you mean it\n'
        )
        assert attempt(lambda: socket_in(plain.name, socket.AF_INET, socket.SOCK_STREAM)) == ""
    assert ipttrace("guard", "--duration", "0.1", "--force", "deny accept", env=ssh).returncode == 0
    rule = f"deny accept from {OTHER}; deny connect to {PEER}"
    assert ipttrace("guard", "--duration", "0.1", rule, env=ssh).returncode == 0
