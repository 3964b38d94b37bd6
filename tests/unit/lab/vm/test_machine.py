# SPDX-License-Identifier: GPL-2.0-only
"""A throwaway VM as its user sees it: real boots of a kernel from the cache."""

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
from ipttrace.lab.vm import Machine, MachineError
from ipttrace.lab.vm import kvm as vm_kvm
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


def test_the_commands_status_output_and_files_come_back(kernel: Kernel, tmp_path: Path) -> None:
    # GIVEN a folder to share, and a command that leaves a process behind
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
    # THEN all comes back, byte for byte, and nothing of the kernel's between
    assert status == 7
    assert out.getvalue() == b"from the host\0\xff\x1e" + bytes(3_000_000)
    assert err.getvalue().decode() == kernel.release + "\n"
    assert (share / "who").read_text() == "root\n"


def test_the_stream_comes_whole_and_ends(kernel: Kernel) -> None:
    # GIVEN a guest that waits for a word and then writes to the stream's port
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
        # WHEN the word is said and the stream is read to its end
        machine.socket.sendall(b"go")
        got = bytearray()
        while data := machine.socket.recv(1 << 20):
            got += data
        # THEN it is all there
        assert machine.wait() == 0
    assert bytes(got) == bytes(range(256)) * 40_000


def test_a_guest_that_dies_says_why(kernel: Kernel) -> None:
    script = "echo c > /proc/sysrq-trigger; sleep 1000"
    with pytest.raises(MachineError, match=r"the guest died.*(?s:.*)sysrq triggered crash"):
        Machine(kernel, ["sh", "-c", script]).run()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_qemu_ends_with_the_program(kernel: Kernel, how: signal.Signals) -> None:
    # GIVEN a machine that runs
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
    # WHEN the program is ended
    program.send_signal(how)
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

    # WHEN somebody types, and presses Ctrl-C
    wait_for(b"# ")
    os.write(user, b"stty size; cat\r")
    wait_for(b"30 100")
    os.write(user, b"miaow\r")
    wait_for(b"miaow\r\nmiaow\r\n")
    os.write(user, b"\x03")
    # The shell throws away what is typed before it has its terminal back.
    wait_for(b"# ", after=b"^C")
    os.write(user, b"echo status=$?\r")
    wait_for(b"status=130")
    os.write(user, b"exit 9\r")
    # THEN it is the guest that sees it, and the terminal comes back as it was
    wait_for(b"exit\r\n")
    assert shell.wait(60) == 9
    assert termios.tcgetattr(theirs) == before
    os.close(user)
    os.close(theirs)


def test_without_qemu_the_user_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = Machine(Kernel("6.1.0-1-amd64", tmp_path), ["true"], accel="tcg")
    with pytest.raises(MachineError, match=r"apt-get install qemu-system-x86"):
        machine.start()


def test_kvm_is_tried_once_a_boot_and_not_believed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # GIVEN a KVM device that hangs its guest
    monkeypatch.setenv("IPTTRACE_CACHE", str(tmp_path))
    monkeypatch.delenv("IPTTRACE_ACCEL", raising=False)
    monkeypatch.setattr(vm_kvm, "DEVICE", tmp_path)
    tried: list[Kernel] = []
    monkeypatch.setattr(vm_kvm, "_proves_itself", lambda kernel: bool(tried.append(kernel)))
    kernel = Kernel("6.1.0-1-amd64", tmp_path)
    # WHEN an accelerator is asked for twice
    said: list[str] = []
    answers = [vm_kvm.accelerator(kernel, said.append) for _ in range(2)]
    # THEN it was tried once, and emulation is used
    assert answers == ["tcg", "tcg"]
    assert tried == [kernel]
    # AND after the next boot of the host it is tried again
    monkeypatch.setattr(vm_kvm, "_boot_id", lambda: "another")
    vm_kvm.accelerator(kernel, said.append)
    assert len(tried) == 2
