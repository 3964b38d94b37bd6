# SPDX-License-Identifier: GPL-2.0-only
"""The throwaway VM, with real boots of a kernel from the cache."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from ipttrace.lab import kernels
from ipttrace.lab.kernels import Kernel
from ipttrace.lab.vm import kvm
from ipttrace.lab.vm.machine import Machine, MachineError
from ipttrace.lab.vm.qemu import QEMU
from tests.paths import PROJECT


@pytest.fixture
def kernel() -> Kernel:
    found = kernels.find(kernels.DEFAULT)
    if found is None:
        pytest.skip(f"no Linux {kernels.DEFAULT} in {kernels.cache_dir()}: run `make setup`")
    if shutil.which(QEMU) is None:
        pytest.skip(f"{QEMU} is not installed: run `make setup`")
    return found


def test_a_commands_status_output_and_files_reach_the_host(kernel: Kernel, tmp_path: Path) -> None:
    # GIVEN a shared folder, and a command that leaves a process behind
    share = tmp_path / "a folder, shared"
    share.mkdir()
    (share / "in").write_text("from the host")
    out, err = io.BytesIO(), io.BytesIO()
    script = """
        uname -r >&2; cat in; printf '\\0\\377\\036'; whoami > who; head -c 3000000 /dev/zero
        python3 -c 'import signal; assert signal.getsignal(2) is signal.default_int_handler'
        status=$?; sleep 1000 & exit $((status + 7))
    """
    # WHEN it runs as root in the VM
    machine = Machine(kernel, ["sh", "-c", script], share=share, cwd=share, stdout=out, stderr=err)
    status = machine.run()
    # THEN all arrives, byte for byte, without kernel messages
    assert status == 7
    assert out.getvalue() == b"from the host\0\xff\x1e" + bytes(3_000_000)
    assert err.getvalue().decode() == kernel.release + "\n"
    assert (share / "who").read_text() == "root\n"


def test_the_stream_is_complete_and_ends(kernel: Kernel) -> None:
    # GIVEN a guest that waits for input and then writes to the stream's port
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from ipttrace.lab.vm.port import open_stream_port\n"
        "port = open_stream_port(); assert os.read(port, 9) == b'go'\n"
        "data = memoryview(bytes(range(256)) * 40_000)\n"
        "while data: data = data[os.write(port, data):]\n"
    )
    command = [sys.executable, "-c", script, str(PROJECT)]
    with Machine(kernel, command, stream=True) as machine:
        machine.start()
        # WHEN the input is sent and the stream is read to its end
        machine.socket.sendall(b"go")
        got = bytearray()
        while data := machine.socket.recv(1 << 20):
            got += data
        # THEN it is complete
        assert machine.wait() == 0
    assert bytes(got) == bytes(range(256)) * 40_000


def test_the_error_of_a_guest_that_dies_has_the_reason(kernel: Kernel) -> None:
    script = "echo c > /proc/sysrq-trigger; sleep 1000"
    with pytest.raises(MachineError, match=r"the guest died.*(?s:.*)sysrq triggered crash"):
        Machine(kernel, ["sh", "-c", script]).run()


def test_a_guest_that_dies_before_its_command_starts_is_booted_once_more(kernel: Kernel) -> None:
    # GIVEN a kernel that finds no init and panics
    progress: list[str] = []
    append = ["rdinit=/missing"]
    machine = Machine(kernel, ["true"], append=append, accel="tcg", progress=progress.append)
    # WHEN it runs THEN it boots twice, the first time's reason is printed, the second's raised
    with pytest.raises(MachineError, match=r"the guest died(?s:.*)Kernel panic"):
        machine.run()
    assert sum(line.startswith("booting Linux") for line in progress) == 2
    assert "Kernel panic" in progress[1]
    assert progress[1].endswith("booting once more, because the command had not started")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_qemu_ends_with_the_program(kernel: Kernel, number: signal.Signals) -> None:
    # GIVEN a running VM
    command = [sys.executable, "-m", "ipttrace.lab.vm", "--kernel", kernel.release, "--"]
    program = subprocess.Popen(
        [*command, "sh", "-c", "echo up; sleep 1000"],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == b"up\n"
    guard = _only_child(program.pid)
    qemu = os.pidfd_open(_only_child(guard))
    # WHEN the program receives the signal
    program.send_signal(number)
    program.wait(60)
    program.stdout.close()
    # THEN QEMU ends too
    assert select.select([qemu], [], [], 60)[0]
    os.close(qemu)


def _only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_a_shell_in_the_guest_has_the_users_terminal(kernel: Kernel) -> None:
    # GIVEN a shell at a terminal of 30 by 100
    user, theirs = pty.openpty()
    fcntl.ioctl(user, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "ipttrace.lab.vm", "--kernel", kernel.release, "--"]
    shell = subprocess.Popen(
        [*command, "bash", "--norc"],
        cwd=PROJECT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    seen = b""

    def wait_for(text: bytes, after: bytes = b"") -> None:
        nonlocal seen
        while text not in seen.partition(after)[2] if after else text not in seen:
            assert select.select([user], [], [], 120)[0], seen
            seen += os.read(user, 65536)

    # WHEN the user types, and presses Ctrl-C
    wait_for(b"# ")
    os.write(user, b"stty size; cat\r")
    wait_for(b"30 100\r\n")
    os.write(user, b"miaow\r")
    wait_for(b"miaow\r\nmiaow\r\n")
    os.write(user, b"\x03")
    # The shell discards input typed before it controls its terminal again.
    wait_for(b"# ", after=b"^C")
    os.write(user, b"echo status=$?\r")
    wait_for(b"status=130")
    os.write(user, b"exit 9\r")
    # THEN the guest receives it, and the terminal is restored
    wait_for(b"exit\r\n")
    assert shell.wait(60) == 9
    assert termios.tcgetattr(theirs) == before
    os.close(user)
    os.close(theirs)


def test_without_qemu_the_error_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = Machine(Kernel("6.1.0-1-amd64", tmp_path), ["true"], accel="tcg")
    with pytest.raises(MachineError, match=r"apt-get install qemu-system-x86"):
        machine.start()


def test_kvm_is_tried_once_per_boot_of_the_host(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # GIVEN a KVM device whose guests hang
    monkeypatch.setenv("IPTTRACE_CACHE", str(tmp_path))
    monkeypatch.delenv("IPTTRACE_ACCEL", raising=False)
    monkeypatch.setattr(kvm, "DEVICE", tmp_path)
    tried: list[Kernel] = []
    kernel = Kernel("6.1.0-1-amd64", tmp_path)

    def boots(kernel: Kernel) -> bool:
        tried.append(kernel)
        return False

    # WHEN the accelerator is determined twice
    progress: list[str] = []
    accels = [kvm.accelerator(kernel, progress.append, boots) for _ in range(2)]
    # THEN KVM is tried once, and emulation used
    assert accels == ["tcg", "tcg"]
    assert tried == [kernel]
    # AND it is tried again after the host's next boot
    monkeypatch.setattr(kvm, "_boot_id", lambda: "another")
    kvm.accelerator(kernel, progress.append, boots)
    assert len(tried) == 2
