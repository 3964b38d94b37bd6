# SPDX-License-Identifier: GPL-2.0-only
"""Both sides of a traced lab VM: the agent in the guest, its stream on the host.

Must not import anything of the tui.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.lab.kernels import Kernel, ensure
from ipttrace.lab.kernels.error import KernelError
from ipttrace.lab.vm import Machine, MachineError
from ipttrace.lab.vm.terminal import at_a_terminal

PROJECT = Path(__file__).resolve().parents[2]


def _say(text: str, share: float | None = None) -> None:
    part = "" if share is None else f" {share:.0%}"
    print(f"ipttrace: {text}{part}", file=sys.stderr, flush=True)


def _kernel(wanted: str) -> Kernel:
    """The kernel, with the module for it in the cache: a guest compiles slowly."""
    found = ensure(wanted, _say)
    kmod.build(found.headers, found.release)
    return found


def run(kernel: str, command: Sequence[str]) -> int:
    """Runs `command` as root in a VM with the kernel; its exit status."""
    try:
        return Machine(_kernel(kernel), command, terminal=at_a_terminal()).run()
    except (CaptureError, KernelError, MachineError) as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0


class TracedMachine:
    """A VM with the lab network, its traffic and an agent in it."""

    def __init__(self, kernel: str, duration: float | None, said: IO[bytes]) -> None:
        found = _kernel(kernel)
        command = [sys.executable, "-m", "ipttrace", "agent", "--engine", "kernel"]
        command += ["--port", "--lab"]
        if duration is not None:
            command += ["--duration", str(duration)]
        self.release = found.release
        self._source: Any = None
        self._last = ""
        self._machine = Machine(
            found, command, stream=True, cwd=PROJECT, stderr=said, progress=self._progress
        )

    def start(self) -> None:
        """Boots; returns at once."""
        self._machine.start()

    def tell(self, source: Any) -> None:
        """Progress lines go to `source.progress` from now on, not to stderr."""
        self._source = source
        source.progress = self._last

    def _progress(self, text: str) -> None:
        self._last = text
        if self._source is None:
            _say(text)
        else:
            self._source.progress = text

    @property
    def socket(self) -> Any:
        """The host's end of the stream and of the control line."""
        return self._machine.socket

    def ask_stop(self) -> None:
        """Asks the agent for its last books."""
        with contextlib.suppress(OSError):
            self._machine.socket.sendall(b'{"cmd":"stop"}\n')

    def stop(self) -> None:
        """Ends the VM, whatever it does."""
        self._machine.stop()


@contextlib.contextmanager
def traced(kernel: str, duration: float | None) -> Iterator[tuple[TracedMachine, IO[bytes]]]:
    """A traced VM that boots, and the file that takes what the guest says.

    Exits the program with one line when it cannot be started.
    """
    with tempfile.TemporaryFile() as said:
        try:
            machine = TracedMachine(kernel, duration, said)
            machine.start()
        except (CaptureError, KernelError, MachineError) as error:
            print(f"ipttrace: {error}", file=sys.stderr)
            sys.exit(1)
        try:
            yield machine, said
        finally:
            machine.stop()


@contextlib.contextmanager
def lab_traffic() -> Iterator[None]:
    """In the guest: the lab network, and the traffic of people at work in it.

    In a process of its own, so that a slow guest sets the network up on one
    CPU while it loads the engine on the other.
    """
    for module in ("iptable_filter", "ip6table_filter"):
        subprocess.run(["modprobe", "-q", module], check=False)
    argv = [sys.executable, "-m", "ipttrace.lab.guest"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        import ipttrace.capture.kernel.engine  # noqa: F401  (this is what takes the time)

        if child.stdout.readline() != b"ready\n":
            raise SystemExit("ipttrace: the lab network did not come up")
        yield
        child.stdin.close()


def _traffic() -> int:
    """The lab network and its traffic until stdin ends."""
    from ipttrace.lab.network import Network
    from ipttrace.lab.traffic import mix as traffic_mix

    with Network() as network:
        traffic_mix.run(network.prefix, 40.0, None, 0)
    return 0


if __name__ == "__main__":
    sys.exit(_traffic())
