# SPDX-License-Identifier: GPL-2.0-only
"""Each stage of a socket is printed, in order, with its process, its queue and its addresses.

The truth: what the server reads by SO_ORIGINAL_DST and in /proc, what the calls return, and
what the namespace's own counters say.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.capture.sockets.source import Sockets
from ipttrace.lab.network.ns import run_in, socket_in
from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import Kind
from ipttrace.trace.session import Trace
from ipttrace.trace.sockets import Stage as Told
from tests.program import Command, ipttrace
from tests.vm import cgroups
from tests.vm.bpf_links import links
from tests.vm.conftest import SHARED
from tests.vm.forked import until, wait_gone
from tests.vm.guard.guarded import Guarded
from tests.vm.live import Live, live
from tests.vm.patience import PATIENCE
from tests.vm.plain import Plain
from tests.vm.sockets.staged import (
    ADDRESS,
    CALLED,
    CLIENT,
    CLIENT_ADDRESS,
    PORT,
    SERVER,
    Stage,
    Staged,
    client,
    listener,
    start,
    wired,
)

CGROUPS = Path("/sys/fs/cgroup")
CONTAINER = "5e1f" + "0" * 60

# Listens, accepts, reads; prints what it knows of itself and of the client.
SERVING = """
import socket, sys
family, address, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
one = socket.create_server((address, port), family=family, backlog=7)
status = open("/proc/self/status").read().split("NSpid:")[1].split(chr(10))[0].split()
print(*status, flush=True)
other, peer = one.accept()
print(other.getsockopt((0, 41)[family == socket.AF_INET6], 80, 28).hex(), flush=True)
print(other.recv(9).decode(), peer[1], flush=True)
sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def netns() -> Iterator[dict[str, int]]:
    with wired() as found:
        yield found


@pytest.fixture(scope="module")
def staged(netns: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Staged]:
    with Staged(tmp_path_factory.mktemp("staged")) as one:
        yield one


def ends(stage: Stage) -> tuple[int | None, int | None]:
    """Both ports of a stage."""
    return stage["local_port"], stage["remote_port"]


def named(stages: list[Stage], *names: str) -> list[Stage]:
    """The stages with these names, in order of time."""
    return [one for one in stages if one["stage"] in names]


@pytest.mark.parametrize("family", [4, 6])
def test_a_connection_to_a_container_from_listen_to_the_first_read(
    netns: dict[str, int], staged: Staged, family: int
) -> None:
    # GIVEN a server in namespaces and a cgroup of its own, as docker names it
    folder = CGROUPS / f"docker-{CONTAINER}.scope"
    folder.mkdir()
    own = CGROUPS / "cgroup.procs"
    (folder / "cgroup.procs").write_text(str(os.getpid()))
    where = [str(int(family_of(family))), ADDRESS[family], str(PORT)]
    try:
        server = start(SERVING, where, "unshare", "--pid", "--fork")
    finally:
        own.write_text(str(os.getpid()))
    assert server.stdout
    assert server.stdin
    try:
        pids = [int(word) for word in server.stdout.readline().split()]
        # WHEN a client connects to the port that is redirected, and sends
        with client(family) as other:
            other.connect((ADDRESS[family], CALLED))
            port = other.getsockname()[1]
            other.sendall(b"hello")
            original = bytes.fromhex(server.stdout.readline())
            assert server.stdout.readline().split() == ["hello", str(port)]
            found = staged.until(
                lambda one: one["stage"] == "first read" and one["remote_port"] == port
            )
        server.stdin.close()
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        cgroups.remove(folder)

    # THEN each stage is there, in order
    over: set[object] = set()

    def is_over(one: Stage) -> bool:
        if one["stage"] == "closed" and one["local_port"] in (port, PORT):
            over.add((one["local_port"], one["remote_ip"] is None))
        return {(port, False), (PORT, True)} <= over

    found += staged.until(is_over)
    mine = [one for one in found if one["netns"] == netns[SERVER] and one["remote_port"] == port]
    names = ["SYN taken", "SYN-ACK sent", "established", "accepted", "first read"]
    assert [one["stage"] for one in mine][:5] == names
    # AND they are of one connection: listener, request and child are the same in each
    (listening,) = named(found, "listening")
    assert {one["listener"] for one in mine} == {listening["sk"]}
    assert len({one["connection"] for one in mine}) == 1
    assert len({one["request"] for one in mine[1:]}) == 1
    assert len({one["sk"] for one in mine[2:]}) == 1
    assert all(one["since_ns"] > 0 for one in mine[1:5])
    # AND the process is the one in the container, by all its numbers
    for one in (listening, *mine[3:5]):
        assert (one["process"], one["pids"], one["pid"]) == ("caller", pids, pids[0])
        assert (one["runtime"], one["container"]) == ("docker", CONTAINER)
        assert one["exe"] == os.path.realpath("/proc/self/exe")
    assert len(pids) == 2
    # AND whom the client called is what the server has read
    assert original[2:4] == struct.pack("!H", CALLED)
    address = original[4:8] if family == 4 else original[8:24]
    for one in mine:
        assert socket.inet_pton(family_of(family), one["orig_dst"]) == address
        assert one["orig_dport"] == CALLED
    # AND the client's end has its own stages
    theirs = [one for one in found if one["netns"] == netns[CLIENT] and one["local_port"] == port]
    assert [one["stage"] for one in theirs] == ["connecting", "connected", "closed"]
    assert {one["pid"] for one in theirs} == {os.getpid()}
    assert (listening["backlog"], mine[2]["queue"], mine[3]["queue"]) == (7, 1, 0)


def family_of(version: int) -> socket.AddressFamily:
    """AF_INET or AF_INET6."""
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def test_a_port_where_nobody_listens(staged: Staged) -> None:
    with client() as one:
        one.bind((CLIENT_ADDRESS[4], 0))
        port = one.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            one.connect((ADDRESS[4], 81))
    found = staged.until(lambda one: one["stage"] == "refused" and one["local_port"] == port)
    server, mine = (one for one in found if port in ends(one) and one["stage"] == "refused")
    assert (server["why"], server["side"]) == (f"no process listens on {ADDRESS[4]}:81", "server")
    assert (mine["error"], mine["side"], mine["pid"]) == ("ECONNREFUSED", "client", os.getpid())


def test_a_process_that_does_not_accept_fast_enough(staged: Staged) -> None:
    # GIVEN a listener with room for two that accepts none
    with listener(port=82, backlog=1) as one, client() as first, client() as second:
        for each in (first, second):
            each.connect((ADDRESS[4], 82))
        staged.until(lambda stage: stage["stage"] == "established" and stage["queue"] == 2)
        before = overflows()
        with client() as third:
            third.setblocking(False)
            assert third.connect_ex((ADDRESS[4], 82))
            port = third.getsockname()[1]
            found = staged.until(
                lambda stage: stage["stage"] == "SYN dropped" and port in ends(stage)
            )
        # THEN its SYN is dropped, as the kernel counts, and the reason is there
        (dropped,) = [one for one in named(found, "SYN dropped") if port in ends(one)]
        assert (dropped["queue"], dropped["backlog"]) == (2, 1)
        assert "the accept queue is full (2 of 1)" in dropped["why"]
        assert overflows() > before
        assert one.accept()


def overflows() -> int:
    """How often the server's accept queues had no room."""
    lines = run_in(SERVER, ["cat", "/proc/net/netstat"]).stdout.splitlines()
    names, values = (line.split() for line in lines[:2])
    return int(values[names.index("ListenOverflows")])


def test_a_last_ack_that_finds_no_room(staged: Staged) -> None:
    # GIVEN a listener with room for one, and a handshake that lacks the last ACK
    with listener(port=91, backlog=0), client() as late, client() as other:
        late.bind((CLIENT_ADDRESS[4], 0))
        late.setblocking(False)
        port = late.getsockname()[1]
        answer = ["INPUT", *f"-p tcp --sport 91 --dport {port} -j DROP".split()]
        run_in(CLIENT, ["iptables-legacy", "-A", *answer])
        late.connect_ex((ADDRESS[4], 91))
        staged.until(lambda stage: stage["stage"] == "SYN-ACK sent" and port in ends(stage))
        # WHEN another one takes the room, and then the SYN-ACK arrives
        other.connect((ADDRESS[4], 91))
        run_in(CLIENT, ["iptables-legacy", "-D", *answer])
        found = staged.until(lambda stage: stage["stage"] == "ACK dropped")
    # THEN the client takes itself to be connected, and the listener has dropped its ACK
    (dropped, *_) = named(found, "ACK dropped")
    assert ends(dropped) == (91, port)
    assert "the accept queue is full (1 of 0)" in dropped["why"]
    assert [stage for stage in named(found, "connected") if stage["local_port"] == port]
    assert not [stage for stage in named(found, "established") if port in ends(stage)]


@SHARED
@pytest.mark.parametrize("how", ["closed", "closed at once", "called no address"])
def test_a_connect_that_is_given_up(staged: Staged, how: str) -> None:
    # GIVEN a server that does not answer
    silent = ["INPUT", "-p", "tcp", "--dport", "92", "-j", "DROP"]
    run_in(SERVER, ["iptables-legacy", "-A", *silent])
    one = client()
    try:
        one.setblocking(False)
        one.connect_ex((ADDRESS[4], 92))
        port = one.getsockname()[1]
        # WHEN the process gives up
        if how == "closed at once":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how == "called no address":
            disconnect(one)
    finally:
        one.close()
        run_in(SERVER, ["iptables-legacy", "-D", *silent])
    # AND another connection is made and closed
    with client() as other, pytest.raises(ConnectionRefusedError):
        other.connect((ADDRESS[4], 93))
    found = staged.until(lambda stage: stage["stage"] == "refused" and stage["side"] == "client")
    # THEN its end is there, once
    mine = [stage for stage in found if stage["local_port"] == port]
    assert [stage["stage"] for stage in mine] == ["connecting", "closed"]


def disconnect(one: socket.socket) -> None:
    """Calls connect() with AF_UNSPEC, which the module `socket` cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.connect(one.fileno(), bytes(16), 16) == 0, os.strerror(ctypes.get_errno())


@SHARED
def test_ends_before_the_other_end_has_closed(staged: Staged) -> None:
    with (
        listener(port=94) as listening,
        client() as unread,
        client() as destroyed,
        client() as lingering,
    ):
        # GIVEN three connections, one with data that no process has read
        ports = []
        for one in (unread, destroyed, lingering):
            one.connect((ADDRESS[4], 94))
            ports.append(one.getsockname()[1])
        accepted = [listening.accept()[0] for _ in ports]
        accepted[0].sendall(b"not read")
        assert select.select([unread], [], [], PATIENCE)[0]
        # WHEN that one is closed, one destroyed by the administrator, and one closed at once
        unread.close()
        killed = run_in(CLIENT, ["ss", "-HK", "sport", "=", str(ports[1])]).stdout
        if str(ports[1]) not in killed:
            del ports[1]  # the kernel is built without it
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        lingering.close()
        found = staged.until(
            lambda stage: stage["stage"] == "closed" and stage["local_port"] == ports[-1]
        )
        for one in accepted:
            one.close()
    # THEN the client's ends are reset and closed, each once
    for port in ports:
        mine = [stage["stage"] for stage in found if stage["local_port"] == port]
        assert mine == ["connecting", "connected", "reset", "closed"]


def test_a_flood_of_syns_is_answered_with_cookies(staged: Staged) -> None:
    # GIVEN a server that always answers with cookies
    run_in(SERVER, ["sysctl", "-qw", "net.ipv4.tcp_syncookies=2"])
    try:
        with listener(port=83) as one, client() as other:
            other.connect((ADDRESS[4], 83))
            port = other.getsockname()[1]
            assert one.accept()[1][1] == port
    finally:
        run_in(SERVER, ["sysctl", "-qw", "net.ipv4.tcp_syncookies=1"])
    found = staged.until(
        lambda stage: stage["stage"] == "accepted" and stage["remote_port"] == port
    )
    mine = [one for one in found if one["local_port"] == 83 and one["remote_port"] == port]
    # THEN it is said, and the connection is followed all the same
    assert [one["stage"] for one in mine[:4]] == [
        "SYN taken",
        "SYN-ACK sent",
        "established",
        "accepted",
    ]
    assert "with a cookie" in mine[1]["why"]
    assert len({one["sk"] for one in mine[2:4]}) == 1


def test_a_listener_that_goes_away_and_one_that_resets(staged: Staged) -> None:
    # GIVEN a connection that waits to be accepted
    one = listener(port=84)
    with client() as other:
        other.connect((ADDRESS[4], 84))
        port = other.getsockname()[1]
        staged.until(lambda stage: stage["stage"] == "established" and stage["local_port"] == 84)
        # WHEN the listener is closed
        one.close()
        found = staged.until(
            lambda stage: stage["stage"] == "reset" and stage["local_port"] == port
        )
    # THEN the listener's end, and the reset, are told by both ends
    found = [stage for stage in found if 84 in ends(stage)]
    assert [stage["why"] for stage in named(found, "reset")] == [
        "by this host",
        "by the other end",
    ]
    (gone,) = [stage for stage in named(found, "closed") if stage["remote_ip"] is None]
    assert (gone["local_port"], gone["why"]) == (84, "the listener")


@SHARED
def test_what_a_security_module_denies(staged: Staged, tmp_path: Path) -> None:
    with (
        Guarded(tmp_path, rules=f"deny accept from {CLIENT_ADDRESS[4]}"),
        listener(port=85),
        client() as one,
    ):
        one.setblocking(False)
        one.connect_ex((ADDRESS[4], 85))
        # WHEN the SYN is repeated: who denies is asked once a SYN was dropped for no other reason
        found = staged.until(
            lambda stage: stage["stage"] == "SYN dropped" and "a security module" in stage["why"]
        )
    # THEN it is said, and before that nothing that is not known
    first, *_ = (stage for stage in named(found, "SYN dropped") if stage["local_port"] == 85)
    unknown = "no reason is known as yet; its repetition may show one"
    assert first["why"] in (unknown, named(found, "SYN dropped")[-1]["why"])


@SHARED
def test_calls_that_a_guard_denies(staged: Staged, tmp_path: Path) -> None:
    rules = (f"deny connect to {ADDRESS[4]} port 89", "deny accept on port 90")
    with (
        Guarded(tmp_path, rules="\n".join(rules)) as guard,
        listener(port=90) as listening,
        client() as one,
        client() as other,
    ):
        # WHEN a process calls, and another one accepts, what must not be
        with pytest.raises(PermissionError):
            one.connect((ADDRESS[4], 89))
        other.connect((ADDRESS[4], 90))
        with pytest.raises(PermissionError):
            listening.accept()
        found = staged.until(lambda stage: stage["stage"] == "denied" and stage["local_port"] == 90)
        assert len(guard.events(2)) == 2
    # THEN each is one stage, with the process, the peer and the rule
    denied = named(found, "denied")
    called, accepted = (stage for stage in denied if {89, 90} & {*ends(stage)})
    for number, stage in ((1, called), (2, accepted)):
        assert (stage["pid"], stage["error"]) == (os.getpid(), "EACCES")
        assert stage["pids"] == [os.getpid()]
        assert (stage["rule"], stage["rule_text"]) == (number, rules[number - 1])
        assert stage["why"] == f"denied by ipttrace guard, rule {number}: {rules[number - 1]}"
    assert (called["remote_ip"], called["remote_port"], called["side"]) == (
        *(ADDRESS[4], 89),
        "client",
    )
    # AND no packet has left
    assert not [stage for stage in found if stage["remote_port"] == 89 and stage != called]


@SHARED
def test_what_a_guard_denies_without_a_call_of_the_process(
    staged: Staged, tmp_path: Path, netns: dict[str, int]
) -> None:
    rules = (f"deny receive from {CLIENT_ADDRESS[4]}", f"deny accept from {CLIENT_ADDRESS[4]}")
    with (
        Guarded(tmp_path, rules="; ".join(rules)),
        listener(port=95),
        client() as calling,
        socket_in(SERVER, socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket_in(CLIENT, socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        # WHEN a datagram and a connection arrive
        server.bind((ADDRESS[4], 96))
        sender.sendto(b"x", (ADDRESS[4], 96))
        calling.setblocking(False)
        calling.connect_ex((ADDRESS[4], 95))
        found = staged.until(lambda stage: stage["stage"] == "denied" and stage["local_port"] == 95)
    # THEN both are stages of the server's side, and no process has called
    denied = named(found, "denied")
    datagram, arrival, *_ = (stage for stage in denied if stage["local_port"] in (95, 96))
    assert [datagram["rule_text"], arrival["rule_text"]] == list(rules)
    for stage, port in ((datagram, 96), (arrival, 95)):
        assert (stage["netns"], stage["local_port"]) == (netns[SERVER], port)
        assert stage["process"] in (None, "owner")
        assert stage["remote_ip"] == CLIENT_ADDRESS[4]
    # AND the connection is the one whose SYN was taken
    taken = next(stage for stage in found if stage["connection"] == arrival["connection"])
    assert taken["stage"] == "SYN taken"


@SHARED
def test_what_a_guard_only_would_deny(staged: Staged, tmp_path: Path) -> None:
    rule = f"deny connect to {ADDRESS[4]} port 97"
    with Guarded(tmp_path, "--dry-run", rules=rule), listener(port=97), client() as one:
        one.connect((ADDRESS[4], 97))
        found = staged.until(lambda stage: stage["stage"] == "would deny")
    would = found[-1] if found[-1]["stage"] == "would deny" else named(found, "would deny")[0]
    assert would["why"] == f"would be denied by ipttrace guard, rule 1: {rule}"
    assert (would["pid"], would["error"]) == (os.getpid(), None)


@SHARED
def test_datagrams_of_each_peer(netns: dict[str, int], staged: Staged) -> None:
    with (
        socket_in(SERVER, socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket_in(CLIENT, socket.AF_INET, socket.SOCK_DGRAM) as first,
        socket_in(CLIENT, socket.AF_INET, socket.SOCK_DGRAM) as second,
    ):
        one.bind((ADDRESS[4], 53))
        first.connect((ADDRESS[4], 53))
        for number in range(3):
            first.send(b"%d" % number)
            one.recv(9)
        second.sendto(b"x", (ADDRESS[4], 53))
        one.recv(9)
        ports = [each.getsockname()[1] for each in (first, second)]
        found = staged.until(
            lambda stage: stage["stage"] == "first read" and stage["remote_port"] == ports[1]
        )
    found = [stage for stage in found if 53 in ends(stage)]
    mine = [one for one in found if one["protocol"] == "UDP" and one["netns"] == netns[SERVER]]
    # THEN each peer's first datagram is a stage, and no other
    assert [(stage["stage"], stage["remote_port"]) for stage in mine] == [
        ("bound", None),
        ("first read", ports[0]),
        ("first read", ports[1]),
    ]
    assert {stage["pid"] for stage in mine} == {os.getpid()}
    (connected,) = named(found, "connected")
    assert (connected["remote_ip"], connected["remote_port"]) == (ADDRESS[4], 53)


@SHARED
def test_only_what_expr_takes(netns: dict[str, int], tmp_path: Path) -> None:
    # GIVEN an expression of the port as the client calls it, and one namespace
    with (
        Staged(tmp_path, "--netns", SERVER, f"tcp port {CALLED}") as one,
        listener(port=86) as other,
        listener() as wanted,
    ):
        for port, accepting in ((86, other), (CALLED, wanted)):
            with client() as each:
                each.connect((ADDRESS[4], port))
                accepting.accept()[0].close()
        found = one.until(lambda stage: stage["stage"] == "SYN taken")
        # THEN the other connection is not there, nor the client's end
        assert {stage["local_port"] for stage in found} == {PORT}
        assert {stage["netns"] for stage in found} == {netns[SERVER]}
        one.command.process.send_signal(signal.SIGINT)
        assert one.command.process.wait(60) == 130
        assert "lost=0 missed=0" in one.command.stderr()[-1]


def test_a_recording_has_the_sockets_that_its_rows_are_of(tmp_path: Path) -> None:
    # GIVEN rows and stages of the same connection, recorded
    ready, file = tmp_path / "ready", tmp_path / "both.ipt"
    options = ["--engine", "bpf", "--netns", SERVER, "--sockets", "--ready-file", str(ready)]
    with Command(tmp_path, ["record", str(file), *options]) as command, listener() as one:
        command.wait_ready()
        with client() as other:
            other.connect((ADDRESS[4], CALLED))
            accepted, _ = one.accept()
            with accepted:
                accepted.sendall(b"some")
                assert other.recv(9) == b"some"
        command.process.send_signal(signal.SIGTERM)
        assert command.process.wait(60) == 0
    frames = Decoder().feed(file.read_bytes())
    children = {
        int(stage["sk"])
        for frame in frames
        if frame.kind == Kind.SOCKET
        for stage in frame.records[frame.records["stage"] == 10]  # accepted
    }
    rows = {int(sk) for frame in frames if frame.kind == Kind.ENTRY for sk in frame.records["sk"]}
    # THEN the child is the socket that the rows of its packets have
    assert len(children) == 1
    assert children <= rows
    # AND what came in is of the process that got it, the SYN before DNAT too
    trace = Trace()
    for frame in frames:
        trace.feed(frame)
    owned = [row for row in trace.store.rows(range(trace.store.end)) if row.dport in (CALLED, PORT)]
    assert {row.hook for row in owned} >= {"PREROUTING", "INPUT"}
    assert {(row.owner_pid, row.owner_comm) for row in owned} == {
        (os.getpid(), Path("/proc/self/comm").read_text().strip())
    }
    # AND the recording prints the same
    done = ipttrace("sockets", "--file", str(file), "--format", "jsonl")
    assert done.returncode == 0
    assert '"stage": "accepted"' in done.stdout


def test_without_conntrack_no_packet_has_the_destination_of_another(staged: Staged) -> None:
    # GIVEN connections that are redirected, and others where nothing keeps track of any: the
    # kernel uses the memory of the packets again
    kind = (socket.AF_INET, socket.SOCK_STREAM)
    redirected, others = set(), set()
    with Plain() as plain, listener(backlog=64) as one, socket_in(plain.name, *kind) as two:
        two.bind(("127.0.0.1", 88))
        two.listen(64)
        for _ in range(40):
            with client() as other:
                other.connect((ADDRESS[4], CALLED))
                redirected.add(other.getsockname()[1])
                one.accept()[0].close()
            with socket_in(plain.name, *kind) as other:
                other.connect(("127.0.0.1", 88))
                others.add(port := other.getsockname()[1])
                two.accept()[0].close()
        found = staged.until(
            lambda one: one["stage"] == "accepted" and ends(one) == (88, port),
        )
    taken = named(found, "SYN taken")
    called = [one["orig_dport"] for one in taken if ends(one)[1] in redirected]
    assert called == [CALLED] * len(redirected)
    # THEN these have no destination but their own
    plainly = [one for one in taken if one["local_port"] == 88 and ends(one)[1] in others]
    assert len(plainly) == len(others)
    assert {one["orig_dst"] for one in plainly} <= {None, "127.0.0.1"}


def switch(trace: Live, *, on: bool) -> None:
    """Asks for stages, or for no more of them, and waits until the agent has done so."""
    trace.agent.send(json.dumps({"cmd": "sockets", "on": on}).encode())
    done = ("info", f"sockets: {'on' if on else 'off'}")
    trace.wait(lambda: done in trace.trace.notes, done[1])


def test_they_come_and_go_while_a_trace_runs(tmp_path: Path) -> None:
    kind = (socket.AF_INET, socket.SOCK_STREAM)
    with Plain() as plain, socket_in(plain.name, *kind) as one:
        one.bind(("127.0.0.1", 88))
        one.listen(8)

        def connect() -> int:
            with socket_in(plain.name, *kind) as other:
                other.connect(("127.0.0.1", 88))
                one.accept()[0].close()
                return int(other.getsockname()[1])

        # GIVEN a trace that began without sockets
        trace = live(plain, tmp_path / "ready", engine="bpf")
        with trace.agent:
            found: list[Told] = []
            before = links()
            connect()
            # WHEN they are asked for, and a moment later no longer
            switch(trace, on=True)
            assert links() > before
            port = connect()

            def accepted() -> bool:
                found.extend(trace.trace.sockets.take())
                return any(stage.name == "accepted" for stage in found)

            trace.wait(accepted, "a connection")
            switch(trace, on=False)
            assert until(lambda: links() == before)
            connect()
            trace.agent.send(b'{"cmd": "stop"}')
            trace.agent.drain()
            trace.feed()
            assert trace.agent.wait() == 0
    # THEN the stages are those of the time between, and counted
    found += trace.trace.sockets.take()
    assert {end[1] for stage in found for end in (stage.local, stage.remote) if end} == {88, port}
    assert {"connecting", "SYN taken", "accepted"} <= {stage.name for stage in found}
    books = trace.trace.books["sockets"]
    assert books["due"] == books["delivered"] + books["lost"] + books["missed"]
    assert books["delivered"] == len(found)


@SHARED
def test_the_books_balance_where_nobody_reads(netns: dict[str, int]) -> None:
    # GIVEN a ring that is soon full, and that is not read
    sockets = Sockets(only_netns=netns[SERVER], buffer=1 << 16)
    try:
        with listener(port=87, backlog=64) as one:
            for _ in range(120):
                with client() as other:
                    other.connect((ADDRESS[4], 87))
                    one.accept()[0].close()
        sockets.disarm()
        found, _ = sockets.take(None)
        # THEN what it had no room for is counted
        books = sockets.books()
        assert books["lost"] > 0
        assert books["delivered"] == len(found) > 0
        assert books["due"] == books["delivered"] + books["lost"] + books["missed"]
        # Two of listen() and its end, and of each connection at least five.
        assert books["due"] >= 2 + 5 * 120
    finally:
        sockets.close()


@SHARED
def test_nothing_is_left_behind_by_kill(netns: dict[str, int], tmp_path: Path) -> None:
    before = links()
    with Staged(tmp_path) as one:
        assert links() > before
        agent = int((tmp_path / "ready").read_text())
        os.kill(agent, signal.SIGKILL)
        assert wait_gone(agent)
        assert until(lambda: links() == before)
        assert one.command.process.wait(60) == 1
