# SPDX-License-Identifier: GPL-2.0-only
"""If netlink tracing is impossible or incomplete, one clear line says why."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink import engine as engine_module
from ipttrace.capture.netlink import namespace as namespace_module
from ipttrace.capture.netlink.engine import NetlinkEngine, Options
from ipttrace.capture.netlink.legacy import decode as nflog
from ipttrace.capture.netlink.reader import Mailbox
from tests.netns.loopback import HANG, LEGACY, ROWS, TABLES, LoopbackNamespace, summary, until
from tests.program import PROGRAM, Command


def printed(*words: str, before: tuple[str, ...] = (), **options: Any) -> tuple[int, list[str]]:
    """Runs print to its end; returns its exit status and the lines on stderr."""
    argv = [*before, PROGRAM, "print", "--engine", "netlink", "--duration", "0.5", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=HANG, **options)
    return done.returncode, done.stderr.splitlines()


def starting(folder: Path, where: str, *more: str, **options: Any) -> Command:
    ready = ["--ready-file", str(folder / "ready")]
    how = ["--engine", "netlink", "--netns", where, "--format", "jsonl"]
    return Command(folder, ["print", *how, *ready, *more], **options)


def test_a_namespace_that_does_not_exist(namespace: LoopbackNamespace) -> None:
    status, lines = printed("--netns", f"{namespace.name}-no")
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("ipttrace: there is no network namespace")


def test_without_cap_net_admin_tracing_is_refused(namespace: LoopbackNamespace) -> None:
    drop = ("setpriv", "--bounding-set=-net_admin,-sys_admin", "--inh-caps=-net_admin,-sys_admin")
    status, lines = printed(before=(*namespace.enter, *drop))
    assert (status, len(lines)) == (1, 1)
    assert "needs CAP_NET_ADMIN" in lines[0]
    assert namespace.tables() == TABLES


def test_without_cap_sys_admin_no_other_namespace_is_entered(namespace: LoopbackNamespace) -> None:
    drop = ("setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    status, lines = printed("--netns", namespace.name, before=drop)
    assert (status, len(lines)) == (1, 1)
    assert "only root can enter" in lines[0]
    assert namespace.tables() == TABLES


@pytest.mark.parametrize("number", [errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT])
def test_a_kernel_without_nf_tables(
    namespace: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    made = socket.socket

    def refuse(family: int = -1, *more: Any, **options: Any) -> socket.socket:
        if family == socket.AF_NETLINK:
            raise OSError(number, os.strerror(number))
        return made(family, *more, **options)

    # GIVEN a kernel without netfilter's netlink
    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(CaptureError) as caught:
        NetlinkEngine(Options(netns=namespace.name))
    assert str(caught.value).startswith("this kernel has no nf_tables")


def test_another_program_on_nflog_group_0_prevents_the_legacy_rows_only(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    # GIVEN legacy rules, and a program that reads group 0
    namespace.run("iptables-legacy-restore", text=LEGACY)
    with namespace.inside():
        other = Mailbox(65536)
        nflog.bind(other)
    try:
        with starting(tmp_path, namespace.name) as command:
            command.wait_ready()
            # WHEN datagrams are sent
            namespace.send(23)
            rows = [json.loads(line) for line in command.read_lines(ROWS * 23)]
            command.interrupt()
            status, rest = command.finish()
            *notes, line = command.stderr()
    finally:
        other.close()
    # THEN nftables is traced, and one line names the other program
    assert (status, rest) == (130, "")
    assert {row["table"] for row in rows} == {"t"}
    (note,) = notes
    assert "legacy rules" in note
    assert "another program" in note
    assert f"process {os.getpid()}" in note or "netlink port" in note
    assert summary(line)["rows"] == str(ROWS * 23)
    assert namespace.tables() == TABLES


@pytest.mark.alone
@pytest.mark.parametrize("every", [False, True], ids=["named", "all"])
@pytest.mark.parametrize("with_legacy", [False, True], ids=["nft", "nft and legacy"])
def test_a_namespace_that_is_deleted_is_released_and_its_trace_ends(
    namespace: LoopbackNamespace, tmp_path: Path, every: bool, with_legacy: bool
) -> None:
    if with_legacy:
        namespace.run("iptables-legacy-restore", text=LEGACY)

    def is_gone(line: str) -> bool:
        return f"namespace {namespace.name} is gone" in line

    # GIVEN a veth pair from it to another namespace
    end = f"{os.getpid() % 10000}-{'ny'[every]}{'ny'[with_legacy]}"
    out = tmp_path / "out"

    def rows() -> list[dict[str, Any]]:
        complete, _, _ = out.read_text().rpartition("\n")
        return [json.loads(line) for line in complete.splitlines()]

    # To a file: rows of all namespaces may be more than a pipe holds.
    with LoopbackNamespace() as stays, out.open("wb") as file:
        stays.run("ip", "link", "add", end, "type", "veth", "peer", "v1", "netns", namespace.name)
        where = "all" if every else namespace.name
        with starting(tmp_path, where, stdout=file) as command:
            command.wait_ready()
            port = namespace.send(23)
            # WHEN it is deleted at once
            namespace.let_go()
            subprocess.run(["ip", "netns", "del", namespace.name], check=True)
            # THEN the engine does not keep it alive: its veth disappears
            until(lambda: any(is_gone(one) for one in command.stderr()), "the note")
            until(lambda: end not in stays.run("ip", "-br", "link"), "the end of the veth")
            if every:
                # AND the others are still traced
                later = stays.send(23)
                until(lambda: sports(rows())[later] == ROWS * 23, "rows of the other namespace")
                command.interrupt()
            # AND the run ends by itself if there is no other
            assert command.process.wait(HANG) == (130 if every else 0)
            *notes, line = command.stderr()
        assert sports(rows())[port] == ROWS * 23 * (2 if with_legacy else 1)
        assert sum(map(is_gone, notes)) == 1
        assert len(notes) == 1
        assert summary(line)["rows"] == str(len(rows()))
        assert summary(line)["lost"] == "0"
        assert stays.tables() == TABLES


def sports(rows: list[dict[str, Any]]) -> Counter[int | None]:
    return Counter(row["sport"] for row in rows)


def test_without_nft_and_iptables_rows_have_no_texts_and_one_line_says_so(
    namespace: LoopbackNamespace, tmp_path: Path
) -> None:
    namespace.run("iptables-legacy-restore", text=LEGACY)
    # GIVEN a machine without the commands of iptables and nftables
    hide = 'mount -t tmpfs none /usr/sbin && exec "$@"'
    argv = [
        "unshare",
        "-m",
        "--propagation=slave",
        "sh",
        "-c",
        hide,
        "sh",
        PROGRAM,
        "print",
        "--engine",
        "netlink",
    ]
    more = ["--netns", namespace.name, "--format", "jsonl", "--ready-file", str(tmp_path / "ready")]
    with Command(tmp_path, [], argv=[*argv, *more]) as command:
        command.wait_ready()
        namespace.send(23)
        rows = [json.loads(line) for line in command.read_lines(2 * ROWS * 23)]
        command.interrupt()
        assert command.finish()[0] == 130
        *notes, _ = command.stderr()
    # THEN there are rows
    assert {row["table"] for row in rows} == {"t", "filter"}
    # AND a line for each missing command
    assert len(notes) == len(set(notes)) == 2, notes
    assert any("nft" in note.split("ipttrace: ", 1)[1] for note in notes)
    assert any("iptables-legacy-save" in note for note in notes)


# -- leaks


def children() -> set[str]:
    """The children of this process, also those that have ended and were not waited for."""
    tasks = Path("/proc/self/task").iterdir()
    return {pid for task in tasks for pid in (task / "children").read_text().split()}


def descriptors() -> set[str]:
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
        except OSError:
            continue
    return found


def test_20_traces_in_one_process_leave_nothing_in_it(namespace: LoopbackNamespace) -> None:
    namespace.run("iptables-legacy-restore", text=LEGACY)
    loggers = namespace.loggers()
    before: set[str] = set()
    others = children()
    for turn in range(20):
        engine = NetlinkEngine(Options(netns=namespace.name, buffer=1 << 20))
        namespace.send(3)
        engine.take()
        if turn % 2:
            engine.disarm()
            engine.take()
        engine.close()
        if turn == 0:
            namespace.let_go()
            before = descriptors()
        namespace.let_go()
    # THEN no descriptor, thread or process is left
    assert descriptors() <= before
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("ipttrace")]
    assert children() <= others
    assert namespace.tables() == TABLES
    assert namespace.loggers() == loggers


@pytest.mark.parametrize("what", ["arm", "reader", "table"])
def test_an_engine_that_cannot_start_leaves_nothing_behind(
    namespace: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise CaptureError("no")

    target: dict[str, tuple[Any, str]] = {
        "arm": (namespace_module.TracedNamespace, "arm"),
        "reader": (engine_module, "MailboxReader"),
        "table": (namespace_module, "FlipTable"),
    }
    monkeypatch.setattr(*target[what], fail)
    before = descriptors()
    with pytest.raises(CaptureError, match="no"):
        NetlinkEngine(Options(netns=namespace.name))
    assert descriptors() == before
    assert namespace.tables() == TABLES
