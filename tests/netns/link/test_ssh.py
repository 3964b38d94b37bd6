# SPDX-License-Identifier: GPL-2.0-only
"""Other hosts over a real ssh: rows arrive, and whatever breaks, nothing is left behind there.

Each connection has an sshd of its own at the other end of a pipe, so nothing listens
on a port; like a remote one, it does not receive this terminal's signals.  The agent
there plays a recording.
"""

from __future__ import annotations

import fcntl
import os
import pty
import pwd
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import Frame
from tests.paths import DATA

HANG = 60.0
FAR = DATA / "far_agent.py"
SSHD = "/usr/sbin/sshd"

SSHD_CONFIG = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PidFile none
"""
SSH_CONFIG = """
Host web1 web2
    ProxyCommand setsid {sshd} -i -f {folder}/sshd_config -E {folder}/sshd.log
    IdentityFile {folder}/key
    IdentitiesOnly yes
    BatchMode yes
    User {user}
    StrictHostKeyChecking no
    UserKnownHostsFile /dev/null
    LogLevel ERROR
"""


@dataclass(frozen=True)
class Ssh:
    """A folder with a client that reaches two hosts."""

    folder: Path
    stack: ExitStack

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
        """Starts ``ipttrace ARGUMENTS``; it ends with the test."""
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        process = subprocess.Popen(
            [sys.executable, "-m", "ipttrace", *arguments],
            env={
                **os.environ,
                "PATH": f"{self.folder}:{os.environ['PATH']}",
                "TERM": "xterm-256color",
            },
            **{**streams, "stderr": subprocess.PIPE, **options},
        )
        self.stack.enter_context(process)
        self.stack.callback(process.kill)
        return process

    def run(self, *arguments: str) -> tuple[int, list[str], list[str]]:
        """Returns the exit status and the lines of stdout and stderr."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=HANG)
        return process.returncode, out.decode().splitlines(), err.decode().splitlines()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not os.path.exists(SSHD) or shutil.which("ssh") is None:
        pytest.skip("needs openssh-client and openssh-server")
    if os.geteuid() != 0:
        pytest.skip("starting sshd needs root")
    os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # required, may be empty
    folder = tmp_path_factory.mktemp("ssh")
    for name in ("host_key", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True
        )
    words = {"folder": folder, "sshd": SSHD, "user": pwd.getpwuid(os.geteuid()).pw_name}
    (folder / "sshd_config").write_text(SSHD_CONFIG.format(**words))
    (folder / "config").write_text(SSH_CONFIG.format(**words))
    client = folder / "ssh"
    client.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    client.chmod(0o755)
    return folder


@pytest.fixture
def ssh(keys: Path) -> Iterator[Ssh]:
    with ExitStack() as stack:
        yield Ssh(keys, stack)


def _far(name: str) -> list[str]:
    return ["--remote-command", shlex.join([sys.executable, str(FAR), name])]


def _first_frame(process: subprocess.Popen[bytes]) -> Frame:
    decoder = Decoder()
    assert process.stdout is not None
    while True:
        data = os.read(process.stdout.fileno(), 65536)
        assert data, process.stderr and process.stderr.read()
        if frames := decoder.feed(data):
            return frames[0]


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _has_ended(pidfd: int) -> bool:
    """Waits for the end of a process; returns False if it does not come."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(HANG * 1000))


def test_rows_of_another_host_are_printed_here(ssh: Ssh) -> None:
    # GIVEN a host reached by ssh, WHEN some of its rows are printed
    status, out, err = ssh.run("print", "--ssh", "web1", *_far("far"), "--count", "23")
    # THEN they arrive, with the same summary as for this host
    assert status == 0, err
    assert len(out) >= 23
    assert err[-1].startswith("rows=23 records=")
    assert "engine=kernel" in err[-1]


def test_an_expression_arrives_there_as_it_was_typed(ssh: Ssh) -> None:
    words = ["tcp[13] & 2 != 0 and not (host 10.0.0.1 or port 443)"]
    process = ssh.start("record", "-", "--ssh", "web1", *_far("far"), *words)
    hello = _first_frame(process).json
    assert hello["argv"] == ["agent", "--control", "--engine", "auto", "--", *words]


def test_the_ready_file_is_written_here(ssh: Ssh, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    where = ["--ssh", "web1", *_far("far")]
    status, *_ = ssh.run("print", *where, "--count", "1", "--ready-file", str(ready))
    assert status == 0
    assert ready.read_text().strip().isdigit()


def test_ctrl_c_still_brings_the_last_books_from_the_other_host(ssh: Ssh) -> None:
    # GIVEN a recording in a process group of its own, as a shell makes it
    process = ssh.start("record", "-", "--ssh", "web1", *_far("far"), process_group=0)
    _first_frame(process)
    # WHEN the terminal sends the group an interrupt
    os.killpg(process.pid, signal.SIGINT)
    # THEN the remote agent ends its stream in order
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.read(), process.stderr.read().decode()
    assert b'"reason":"stopped"' in out[-4096:]
    assert "missing" not in err
    assert "rows=" in err
    assert process.wait(HANG) == 130


@pytest.mark.parametrize("who", ["ssh", "ipttrace"])
def test_the_remote_agent_ends_with_its_connection(ssh: Ssh, who: str) -> None:
    # GIVEN a remote agent at work
    process = ssh.start("record", "-", "--ssh", "web1", *_far("far"))
    agent = os.pidfd_open(_first_frame(process).json["pid"])
    # WHEN ssh or ipttrace is killed
    (client,) = _children(process.pid)
    connection = os.pidfd_open(client)
    os.kill(client if who == "ssh" else process.pid, signal.SIGKILL)
    # THEN both the agent and the connection end
    assert _has_ended(agent)
    assert _has_ended(connection)
    os.close(agent)
    os.close(connection)


def test_a_killed_connection_is_reported_and_fails(ssh: Ssh) -> None:
    process = ssh.start("record", "-", "--ssh", "web1", *_far("far"))
    _first_frame(process)
    (client,) = _children(process.pid)
    os.kill(client, signal.SIGKILL)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read()
    err = process.stderr.read().decode().splitlines()
    assert process.wait(HANG) == 1
    assert "ipttrace: web1: ssh was killed" in err
    assert any(line.startswith("rows=") for line in err)


def test_a_refusal_by_the_agent_is_one_line_with_the_host(ssh: Ssh) -> None:
    command = shlex.join([sys.executable, "-m", "ipttrace"])
    where = ["--ssh", "web1", "--remote-command", command]
    status, out, err = ssh.run("print", *where, "--engine", "netlink", "--netns", "no-such")
    assert (status, out) == (1, [])
    (line,) = err
    assert line.startswith("ipttrace: web1: there is no network namespace 'no-such'")


def test_a_refused_login_is_one_line(ssh: Ssh) -> None:
    config = ssh.folder / "config"
    good = config.read_text()
    config.write_text(good.replace(f"{ssh.folder}/key", f"{ssh.folder}/host_key"))
    ssh.stack.callback(config.write_text, good)
    status, out, err = ssh.run("print", "--ssh", "web1", *_far("far"))
    assert (status, out) == (1, [])
    (line,) = err
    assert line.startswith("ipttrace: web1: ")
    assert "Permission denied" in line


class _Terminal:
    """A terminal of 110×24 for a process, and what the process draws on it."""

    def __init__(self) -> None:
        self._far, self.near = pty.openpty()
        fcntl.ioctl(self.near, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 110, 0, 0))
        self._drawn = b""

    def read_until(self, *words: bytes) -> None:
        poll = select.poll()
        poll.register(self._far, select.POLLIN)
        while not all(word in self._drawn for word in words):
            assert poll.poll(HANG * 1000), self._drawn[-4000:]
            self._drawn += os.read(self._far, 65536)

    def forget(self) -> None:
        """Discards what was drawn until now."""
        self._drawn = b""

    def type(self, keys: bytes) -> None:
        os.write(self._far, keys)

    def close(self) -> None:
        os.close(self._far)
        os.close(self.near)


def test_two_hosts_share_a_screen_and_a_lost_one_is_named(ssh: Ssh) -> None:
    # GIVEN a screen of two hosts
    terminal = _Terminal()
    ssh.stack.callback(terminal.close)
    process = ssh.start(
        *("--ssh", "web1", "--ssh", "web2", *_far("far")),
        stdin=terminal.near,
        stdout=terminal.near,
        stderr=terminal.near,
        start_new_session=True,
    )
    # THEN both are shown, distinguished although both report the same host name
    terminal.read_until(b"2 hosts", b"web1, web2", b"FORWARD")
    clients = [
        pid for pid in _children(process.pid) if b"ssh" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    assert len(clients) == 2
    # WHEN the connection to one is lost
    terminal.forget()
    os.kill(clients[1], signal.SIGKILL)
    # THEN one line names it, and the screen stays
    terminal.read_until(b"web2: connection lost: ssh was killed; the rows before it are kept")
    assert process.poll() is None
    # AND leaving repeats it, prints the summary of both, and ends the other one
    left = os.pidfd_open(clients[0])
    terminal.type(b"q")
    terminal.read_until(b"engine=kernel", b"ipttrace: web2: ssh was killed")
    assert process.wait(HANG) == 1
    assert _has_ended(left)
    os.close(left)
