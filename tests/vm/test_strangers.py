# SPDX-License-Identifier: GPL-2.0-only
"""Who has nothing to do with ipttrace is neither kept waiting by it nor told anything."""

from __future__ import annotations

import errno
import itertools
import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel.control import Change, Control
from ipttrace.lab import traffic
from ipttrace.lab.network.ns import enter
from tests.vm.bare import Bare, references
from tests.vm.conftest import SHARED
from tests.vm.forked import Agent, fork, until
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain
from tests.vm.strangers import (
    as_nobody,
    families,
    generic_socket,
    repeating,
    replacing,
    result,
)
from tests.vm.texts import flowing, live, rules

pytestmark = SHARED

O_CLOEXEC = 0o2000000


@pytest.fixture
def bare() -> Iterator[Bare]:
    with Bare() as one:
        yield one


def ask() -> None:
    """Asks the kernel for its families, as programs of all kinds do at their start."""
    with generic_socket() as sock:
        families(sock)


def close() -> None:
    """Closes a socket of generic netlink."""
    generic_socket().close()


@pytest.mark.parametrize("act", [close, ask])
def test_other_programs_sockets_do_not_wait_while_it_arms_and_disarms(
    bare: Bare, act: Callable[[], None]
) -> None:
    shares: list[list[float]] = [[], []]
    with repeating(act) as timed:
        assert until(lambda: timed.count > 20)
        for _ in range(5):
            for step, share in enumerate(shares):
                timed.restart()
                begun = time.monotonic()
                if step:
                    bare.control.disarm()
                else:
                    bare.control.arm(bare.pins)
                share.append(timed.longest(begun) / (time.monotonic() - begun))
    # THEN they wait for none of it; a busy machine may stall one, but not each time
    assert max(map(min, shares)) < 0.4, shares


def test_a_user_without_privileges_hears_nothing_of_other_namespaces_rules(bare: Bare) -> None:
    family = bare.control._socket.prid
    groups = list(bare.control._socket.mcast_groups.values())
    heard, told = os.pipe()
    ended, end = os.pipe()

    def listen() -> int:
        os.close(end)
        with generic_socket() as sock:
            for group in groups:
                sock.setsockopt(270, 1, group)  # SOL_NETLINK, NETLINK_ADD_MEMBERSHIP
            watch = struct.pack("=IHHII", 20, family, 5, 1, 0) + struct.pack("=BBH", 5, 1, 0)
            sock.send(watch)
            answer = sock.recv(1 << 16)
            refused = struct.unpack_from("=i", answer, 16)[0] == -errno.EPERM
            os.write(told, b"x")
            os.read(ended, 1)
            sock.setblocking(False)
            try:
                sock.recv(1 << 16)
            except BlockingIOError:
                return 0 if refused else 3
            return 4

    # GIVEN one who listens where he can, in a namespace of his own and in the host's
    pids = [as_nobody(listen, apart=True), as_nobody(listen)]
    for _ in pids:
        assert os.read(heard, 1) == b"x"
    changes = bare.control.changes()
    try:
        # WHEN rules of another namespace change while it is armed
        bare.control.arm(bare.pins)
        with Plain() as plain:
            plain.load(rules("secret"), 4)
            found: list[Change] = []

            def reported() -> bool:
                found.extend(changes.take())
                return any(one.netns == plain.inode for one in found)

            assert until(reported)
        bare.control.disarm()
    finally:
        changes.close()
        os.close(end)
    # THEN ipttrace was told, and he was not
    assert [result(pid) for pid in pids] == [0, 0]
    for fd in (heard, told, ended):
        os.close(fd)


def test_it_can_be_used_from_inside_a_namespace(bare: Bare) -> None:
    with Plain() as plain:

        def inside() -> int:
            # As `ip netns exec`, with the sockets in there too.
            enter(plain.name)
            control = Control()
            fd = os.open("/proc/self/ns/net", os.O_RDONLY)
            changes = control.changes()
            control.arm([*bare.pins], netns=fd)
            plain.load(rules("inside"), 4)
            assert until(lambda: any(one.netns == plain.inode for one in changes.take()))
            assert traffic.udp(plain.name, LOOPBACK[4], 9, 3).sent == 3
            assert until(lambda: control.status().matched >= 3)
            control.disarm()
            return 0

        assert result(fork(inside)) == 0


def test_a_user_who_always_replaces_his_rules_leaves_others_their_texts(tmp_path: Path) -> None:
    with Plain() as plain, replacing(rules("noise")) as replaced:
        plain.load(rules("steady", 3), 4)
        with live(tmp_path / "ready") as one:
            one.wait_text(plain, 4, 3, "steady")
            before, first = replaced(), one.trace.store.end
            # WHEN packets come while he replaces them forty times and more
            with flowing(plain):
                one.wait(lambda: replaced() >= before + 40, "his rules replaced")
                one.wait(lambda: one.trace.store.end > first + 100, "the traffic")
            one.finish()
        udp = [row for row in one.rows(plain) if row.proto == "UDP"]
        # THEN each row has its text, and had it when it came
        assert len(udp) > 20
        text = "-p udp -m comment --comment steady -j ACCEPT"
        assert {row.rule for row in udp} == {text}
        came = [row for row in one.early if row.netns == plain.inode and row.hook == "INPUT"]
        assert {row.rule for row in came if row.proto == "UDP"} == {text}
        assert not [note for note in one.agent.notes() if "rule texts" in note]


def test_reports_of_changes_are_bounded_however_often_rules_change(bare: Bare) -> None:
    changes = bare.control.changes()
    try:
        with Plain() as plain:
            plain.load(rules("before"), 4)
            bare.control.arm(bare.pins)
            before = bare.control.status().ruleset
            # WHEN a table is replaced many times in one go
            text = rules("again") * 50
            plain.load(text, 4)
            last = bare.control.status().ruleset
            assert last >= before + 50
            found: list[Change] = []

            def all_reported() -> bool:
                found.extend(changes.take())
                return bool(found) and found[-1] == Change(0, last)

            assert until(all_reported)
        # THEN there is not a report for each change, and none is left out
        own = [one for one in found if one.netns == plain_inode(found) and one.first > before]
        assert len(own) < 25
        assert (own[0].first, own[-1].last) == (before + 1, last)
        assert all(a.last + 1 == b.first for a, b in itertools.pairwise(own))
        assert not changes.lost
    finally:
        changes.close()
        bare.control.disarm()


def plain_inode(found: list[Change]) -> int:
    """The one namespace of these changes."""
    (inode,) = {one.netns for one in found if one.netns}
    return inode


def test_only_the_traced_namespaces_rules_are_watched(bare: Bare) -> None:
    with Plain("ipt-one") as one, Plain("ipt-two") as two:
        fd = os.open(f"/run/netns/{one.name}", os.O_RDONLY)
        bare.control.arm(bare.pins, netns=fd)
        os.close(fd)
        before = bare.control.status().ruleset
        two.load(rules("of no interest"), 4)
        assert bare.control.status().ruleset == before
        one.load(rules("of interest"), 4)
        assert bare.control.status().ruleset > before
        bare.control.disarm()


def test_switching_kprobes_off_is_noticed_and_no_text_is_guessed(bare: Bare) -> None:
    switch = Path("/sys/kernel/debug/kprobes/enabled")
    with Plain() as plain:
        plain.load(rules("before"), 4)
        fd = os.open(f"/run/netns/{plain.name}", os.O_RDONLY)
        bare.control.arm(bare.pins)
        before = bare.control.status(fd)
        assert before.ruleset
        assert not before.kprobes_off
        try:
            # WHEN somebody switches them off, and rules change unseen
            switch.write_text("0")
            plain.load(rules("unseen"), 4)
            # THEN the generation is unknown, and it is plain why
            status = bare.control.status(fd)
            assert (status.ruleset, status.rules_seen, status.kprobes_off) == (0, False, True)
            # AND it does not arm
            bare.control.disarm()
            with pytest.raises(CaptureError, match=r"kprobes are switched off: echo 1 > /sys/"):
                bare.control.arm(bare.pins)
            assert references() == 0
        finally:
            switch.write_text("1")
        bare.control.arm(bare.pins)
        switch.write_text("0")
        assert bare.control.status(fd).ruleset == 0
        # WHEN they are switched on again
        switch.write_text("1")
        # THEN all rules count as changed
        again = bare.control.status(fd)
        assert again.ruleset > before.ruleset + 1
        assert (again.rules_seen, again.kprobes_off) == (True, False)
        bare.control.disarm()
        os.close(fd)


def test_an_agent_notes_that_kprobes_were_switched_off(tmp_path: Path) -> None:
    switch = Path("/sys/kernel/debug/kprobes/enabled")
    with live(tmp_path / "ready") as one:
        try:
            switch.write_text("0")
            one.wait(
                lambda: any("kprobes are switched off" in note for note in one.agent.notes()),
                "the note",
            )
        finally:
            switch.write_text("1")
        one.finish()


def test_nothing_that_an_agent_starts_inherits_what_holds_the_tracing(tmp_path: Path) -> None:
    with Agent(ready_file=tmp_path / "ready") as agent:
        agent.wait_for_hello()
        assert until((tmp_path / "ready").exists)
        kinds, open_ones = set(), []
        for link in Path(f"/proc/{agent.pid}/fd").iterdir():
            try:
                kind = os.readlink(link).split(":")[0]
                info = Path(f"/proc/{agent.pid}/fdinfo/{link.name}").read_text()
            except FileNotFoundError:  # it was open for a moment only
                continue
            flags = next(int(line.split()[1], 8) for line in info.splitlines() if "flags" in line)
            kinds.add(kind)
            if int(link.name) > 2 and not flags & O_CLOEXEC:
                open_ones.append((link.name, kind))
        # THEN all is closed in a child: sockets, rings, maps, pins
        assert {"socket", "anon_inode"} <= kinds
        assert not open_ones
        agent.send(b'{"cmd": "stop"}')
        agent.drain()
        assert agent.wait() == 0


def test_the_trace_ends_with_its_namespace_and_another_with_its_inode_is_not_traced(
    bare: Bare,
) -> None:
    with Plain("ipt-first") as first:
        inode = first.inode
        fd = os.open(f"/run/netns/{first.name}", os.O_RDONLY)
        bare.control.arm(bare.pins, netns=fd)
        os.close(fd)
        assert bare.control.status().state == "armed"
    # WHEN it is deleted, THEN tracing has not kept it alive and ends
    assert until(lambda: bare.control.status().state != "armed")
    assert bare.control.status().reason == "netns gone"
    assert until(lambda: references() == 0)
    # AND no other is traced, whatever its inode is
    before = bare.control.status()
    reused = False
    for number in range(6):
        with Plain(f"ipt-{number}") as other:
            reused |= other.inode == inode
            traffic.udp(other.name, LOOPBACK[4], 9, 5)
        if reused:
            break
    after = bare.control.status()
    assert after.matched == before.matched
    assert after.state != "armed"
    # AND the socket can arm anew
    bare.control.arm(bare.pins)
    bare.control.disarm()


def test_an_agent_ends_with_the_namespace_that_it_traces(tmp_path: Path) -> None:
    with Plain("ipt-first") as first:
        one = live(tmp_path / "ready", netns=first.name)
        agent = one.__enter__()
    try:
        agent.agent.drain()
        agent.feed()
        assert agent.agent.wait() == 0
        assert agent.agent.stderr == ""
        assert agent.states[-1]["reason"] == "gone"
        notes = agent.agent.notes()
        assert "network namespace ipt-first is gone: it is no longer traced" in notes
    finally:
        one.__exit__(None, None, None)


def test_another_namespace_of_that_name_is_not_traced_after_a_pause(tmp_path: Path) -> None:
    with Plain("ipt-first") as first:
        one = live(tmp_path / "ready", netns=first.name, engine="kernel")
        agent = one.__enter__()
        agent.command("disarm", "disarmed")
    try:
        with Plain("ipt-first"):
            agent.agent.send(b'{"cmd": "arm"}')
            agent.wait(lambda: bool(agent.agent.notes()), "an answer")
            agent.wait(
                lambda: any("another network namespace" in note for note in agent.agent.notes()),
                "the refusal",
            )
            assert agent.finish() == []
    finally:
        one.__exit__(None, None, None)


def test_log_lines_are_silenced_for_their_time_after_each_disarm(bare: Bare) -> None:
    # GIVEN a module that drains for much longer than this machine takes to arm and disarm
    begun = time.monotonic()
    bare.control.arm(bare.pins)
    bare.control.disarm()
    drain = max(4.0, 6 * (time.monotonic() - begun))
    bare.reinsert(f"drain_ms={int(drain * 1000)}")
    # WHEN it is disarmed, and half of that time later armed and disarmed again
    bare.control.arm(bare.pins)
    bare.control.disarm()
    first = time.monotonic()
    bare.control.arm(bare.pins)
    while time.monotonic() - first < drain / 2:
        time.sleep(0.05)
    bare.control.disarm()
    disarmed = time.monotonic()
    assert disarmed - first < drain
    # THEN draining ends its time after the last disarm, not after the one before
    assert until(lambda: bare.control.status().state == "idle", drain + PATIENCE)
    assert time.monotonic() - disarmed > 0.9 * drain
