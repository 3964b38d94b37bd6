# SPDX-License-Identifier: GPL-2.0-only
"""A traced VM: on the host the VM and its stream, in the guest the network and traffic.

``python -m ipttrace.lab.guest`` runs the network and its traffic in the guest.

Must not import tui, view or textual.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.lab.kernels import Kernel, ensure
from ipttrace.lab.kernels.error import KernelError
from ipttrace.lab.vm.machine import Machine, MachineError
from ipttrace.lab.vm.terminal import on_terminal
from ipttrace.start import python

PROJECT = Path(__file__).resolve().parents[2]


class ShowsProgress(Protocol):
    """A stream source on the screen; shows ``progress`` until the stream starts."""

    progress: str


def _print_progress(text: str, share: float | None = None) -> None:
    percent = "" if share is None else f" {share:.0%}"
    print(f"ipttrace: {text}{percent}", file=sys.stderr, flush=True)


def _kernel(wanted: str) -> Kernel:
    """Returns the kernel once its module is in the cache: a guest compiles slowly."""
    kernel = ensure(wanted, _print_progress)
    kmod.build(kernel.headers, kernel.release)
    return kernel


def run(kernel: str, command: Sequence[str]) -> int:
    """Runs ``command`` as root in a VM; returns its exit status, 1 if the VM fails."""
    try:
        return Machine(_kernel(kernel), command, terminal=on_terminal()).run()
    except (CaptureError, KernelError, MachineError) as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0


class TracedMachine:
    """A VM with the lab network, its traffic and an agent.

    ``kernel`` is a series or release, ``duration`` the agent's in seconds; ``fault`` of
    `network/faults.py` is planted; ``stderr`` receives what the guest's command writes there.
    """

    def __init__(
        self, kernel: str, duration: float | None, stderr: IO[bytes], fault: str | None = None
    ) -> None:
        found = _kernel(kernel)
        command = [*python("ipttrace"), "agent", "--engine", "kernel"]
        command += ["--port", "--lab"]
        if fault is not None:
            command += ["--fault", fault]
        if duration is not None:
            command += ["--duration", str(duration)]
        self.release = found.release
        self._source: ShowsProgress | None = None
        self._last_progress = ""
        self._machine = Machine(
            found, command, stream=True, cwd=PROJECT, stderr=stderr, progress=self._progress
        )

    def start(self) -> None:
        """Starts the boot and returns."""
        self._machine.start()

    def show_progress_on(self, source: ShowsProgress) -> None:
        """Sends progress lines to ``source.progress`` from now on, not to stderr."""
        self._source = source
        source.progress = self._last_progress

    def _progress(self, text: str) -> None:
        self._last_progress = text
        if self._source is None:
            _print_progress(text)
        else:
            self._source.progress = text

    @property
    def socket(self) -> socket.socket:
        """The host's end of the stream and of the control line."""
        return self._machine.socket

    def ask_stop(self) -> None:
        """Asks the agent to end its stream, with its final books."""
        with contextlib.suppress(OSError):
            self._machine.socket.sendall(b'{"cmd":"stop"}\n')

    def stop(self) -> None:
        """Ends the VM at once."""
        self._machine.stop()


@contextlib.contextmanager
def traced(
    kernel: str, duration: float | None, fault: str | None = None
) -> Iterator[tuple[TracedMachine, IO[bytes]]]:
    """Yields a booting TracedMachine and the file with the guest's stderr.

    Prints one line and exits the program if the VM cannot be started.
    """
    with tempfile.TemporaryFile() as stderr:
        try:
            machine = TracedMachine(kernel, duration, stderr, fault)
            machine.start()
        except (CaptureError, KernelError, MachineError) as error:
            print(f"ipttrace: {error}", file=sys.stderr)
            sys.exit(1)
        try:
            yield machine, stderr
        finally:
            machine.stop()


@contextlib.contextmanager
def lab_traffic(fault: str | None = None) -> Iterator[None]:
    """In the guest: keeps the lab network and its traffic up, with a fault or none.

    They run in a child process, so that a slow guest sets the network up on one
    CPU while it imports the engine on the other.
    """
    for module in ("iptable_filter", "ip6table_filter"):
        subprocess.run(["modprobe", "-q", module], check=False)
    argv = python("ipttrace.lab.guest") + ([] if fault is None else [fault])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        import ipttrace.capture.kernel.engine  # noqa: F401  (the slow import)

        if child.stdout.readline() != b"ready\n":
            raise SystemExit("ipttrace: the lab network could not be set up; its error is above")
        yield
        child.stdin.close()


def _traffic(fault: str | None = None) -> int:
    """Runs the lab network and its traffic until end of file on stdin; returns 0."""
    from ipttrace.lab.network import Network, faults
    from ipttrace.lab.traffic import mix

    with Network() as network:
        if fault is not None:
            faults.plant(fault, lambda argv: network.run("router", argv))
        mix.run(network.prefix, 40.0, None, 0)
    return 0


if __name__ == "__main__":
    sys.exit(_traffic(*sys.argv[1:]))
