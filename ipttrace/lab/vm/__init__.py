# SPDX-License-Identifier: GPL-2.0-only
"""The throwaway VM: one command, as root, on a kernel of the cache.

QEMU boots the kernel's ELF image with the initramfs of vm_initramfs; the guest
sees the host's root file system with an overlay in memory on top.  The
command's stdout and stderr, its exit status and the stream come over ports of
their own, so nothing of the kernel gets between.  QEMU ends with the process
that started it, however that ends (vm_guard).

On two cores under TCG a command runs some 3 s after the start, with others at
work on both cores after 4 to 7 s.  The stream carries 110 MB/s.
``python -m ipttrace.lab.vm [--kernel 6.1] -- COMMAND`` runs it by hand.

Must not import anything of the tui.
"""

from __future__ import annotations

import compileall
import contextlib
import functools
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from ipttrace.lab.kernels import Kernel, cache_dir
from ipttrace.lab.kernels.error import KernelError
from ipttrace.lab.vm import guard as vm_guard
from ipttrace.lab.vm.channel import Bridge, Channel, Lines, sink
from ipttrace.lab.vm.initramfs import base_archive, job_archive, token_bytes
from ipttrace.lab.vm.port import open_stream_port
from ipttrace.lab.vm.qemu import QEMU, qemu_arguments
from ipttrace.lab.vm.terminal import Terminal, at_a_terminal, size

__all__ = ["Machine", "MachineError", "open_stream_port"]

CONSOLE_KEPT: Final = 256
BOOT_LIMIT: Final = 240.0
"""Seconds until the command must run; a loaded machine needs a tenth of it."""

SPLAT: Final = re.compile(r"\b(BUG|Oops|Kernel panic|general protection fault)\b")


class MachineError(Exception):
    """The machine did not start or died; the text says why, with the console's last lines."""


class Machine:
    """One boot, one command.

    ``share`` is a folder that the guest sees at the same path and may write
    to; ``stream`` asks for the stream's port, whose host end is
    :attr:`socket`; ``append`` are further kernel arguments.  ``stdout`` and
    ``stderr`` take the command's output (default: this process's own);
    ``log`` keeps the kernel's console; ``terminal`` lends this process's
    terminal to the command.  ``accel`` is ``kvm`` or ``tcg``,
    default whatever :func:`ipttrace.lab.vm.kvm.accelerator` has proved;
    ``one_thread`` emulates all CPUs in one thread, and ``counted`` makes time
    count instructions (see vm_qemu).  The command finds ``IPTTRACE_GUEST=1`` in
    its environment.
    """

    def __init__(
        self,
        kernel: Kernel,
        command: Sequence[str],
        *,
        share: Path | None = None,
        stream: bool = False,
        append: Sequence[str] = (),
        memory: str = "3G",
        cpus: int = 2,
        log: Path | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        stdout: IO[bytes] | None = None,
        stderr: IO[bytes] | None = None,
        accel: str | None = None,
        one_thread: bool = False,
        counted: bool = False,
        terminal: bool = False,
        boot_limit: float = BOOT_LIMIT,
        progress: Callable[[str], object] | None = None,
    ) -> None:
        self.kernel = kernel
        self.command = list(command)
        self.share = share.absolute() if share else None
        self.append = list(append)
        self.memory, self.cpus = memory, cpus
        self.log = log
        self.cwd = cwd or Path.cwd()
        self.env = dict(env or {})
        self.accel = accel
        self.one_thread, self.counted = one_thread, counted
        self.boot_limit = boot_limit
        self.ready = threading.Event()
        """Set when the command starts, or will never start."""
        self._progress = progress or _say
        self._sinks = {"stdout": sink(stdout, 1), "stderr": sink(stderr, 2)}
        self._wants_stream = stream
        self._token = secrets.token_hex(16)
        self._changed = threading.Condition()
        self._status: int | None = None
        self._dead = False
        self._open: set[str] = set()
        self._console: deque[str] = deque(maxlen=CONSOLE_KEPT)
        self._channels: list[Channel] = []
        self._sockets: list[socket.socket] = []
        self._bridge: Bridge | None = None
        self._wants_terminal = terminal
        self._terminal: Terminal | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._life = -1
        self._deadline = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def socket(self) -> socket.socket:
        """The host's end of the stream; end of file once the command ended and all is read."""
        if self._bridge is None:
            raise MachineError("this machine was started without a stream")
        return self._bridge.user

    @property
    def console(self) -> str:
        """The last lines of the kernel's console."""
        return "\n".join(self._console)

    def run(self) -> int:
        """Start, wait, stop; the command's exit status."""
        with self:
            self.start()
            return self.wait()

    def start(self) -> None:
        """Boot; returns at once.  Raises MachineError or KernelError."""
        if self._process is not None:
            raise MachineError("this machine was started already")
        qemu = shutil.which(QEMU)
        if qemu is None:
            raise MachineError(f"{QEMU} is not installed: apt-get install qemu-system-x86")
        if self.accel is None:
            from ipttrace.lab.vm.kvm import accelerator

            self.accel = accelerator(self.kernel, self._progress)
        _warm_bytecode()
        self._progress(f"booting Linux {self.kernel.release} ({self.accel.upper()})")
        self._deadline = time.monotonic() + self.boot_limit
        with contextlib.ExitStack() as stack:
            image = self._initramfs(stack)
            ends = self._ports(stack)
            guest_life, self._life = os.pipe()
            stack.callback(os.close, guest_life)
            passed = [guest_life, image, *ends.values()]
            arguments = qemu_arguments(
                self.kernel,
                accel=self.accel,
                one_thread=self.one_thread,
                counted=self.counted,
                cpus=self.cpus,
                memory=self.memory,
                append=self.append,
                share=self.share,
                initramfs=image,
                ports=ends,
            )
            guard = [sys.executable, "-I", "-S", vm_guard.__file__, str(guest_life)]
            try:
                self._process = subprocess.Popen(
                    [*guard, qemu, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=passed,
                    start_new_session=True,
                )
            except OSError as error:
                raise MachineError(f"cannot start {QEMU}: {error.strerror}") from error
        for channel in self._channels:
            channel.start()
        if self._bridge:
            self._bridge.start()
        if self._terminal:
            self._terminal.open()
        threading.Thread(target=self._watch, name="vm-watch", daemon=True).start()

    def wait(self, timeout: float | None = None) -> int:
        """The command's exit status, once all of its output was given on.

        The machine lives on until :meth:`stop`, so that a stream can be read
        to its end.  Raises MachineError when the guest dies or does not come
        up, TimeoutError after ``timeout`` seconds, BrokenPipeError when
        nobody takes the command's output any more.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not (self._dead or (self._status is not None and not self._open)):
                self._fail_if_unwanted()
                now = time.monotonic()
                if not self.ready.is_set() and now > self._deadline:
                    raise MachineError(
                        self._report(f"the guest did not come up in {self.boot_limit:.0f} s")
                    )
                if end is not None and now > end:
                    raise TimeoutError("the command in the guest still runs")
                self._changed.wait(0.5)
            self._fail_if_unwanted()
            if self._status is None:
                raise MachineError(self._report("the guest died"))
            return self._status

    def stop(self) -> None:
        """End the machine, whatever it does; may be called often."""
        if self._terminal:
            self._terminal.close()
        life, self._life = self._life, -1
        if life >= 0:
            os.close(life)
        if self._process is not None:
            self._process.wait()
            for channel in self._channels:
                channel.join()
        if self._bridge:
            self._bridge.close()
        while self._sockets:
            self._sockets.pop().close()
        self.ready.set()

    def _fail_if_unwanted(self) -> None:
        for channel in self._channels:
            if isinstance(channel.error, BrokenPipeError):
                raise channel.error

    def _initramfs(self, stack: contextlib.ExitStack) -> int:
        """Both archives in a file without a name: nothing to clean up."""
        environment = {
            "LANG": "C.UTF-8",
            "TERM": os.environ.get("TERM", "linux"),
            "PYTHONUNBUFFERED": "1",
            "IPTTRACE_CACHE": str(cache_dir()),
            "IPTTRACE_GUEST": "1",
            **self.env,
        }
        job = job_archive(
            self.kernel,
            self.command,
            cwd=self.cwd,
            environment=environment,
            share=self.share,
            token=self._token,
            terminal=size() if self._wants_terminal else None,
        )
        number = os.memfd_create("initramfs")
        stack.callback(os.close, number)
        with os.fdopen(os.dup(number), "wb") as file:
            file.write(base_archive(self.kernel))
            file.write(job)
        return number

    def _ports(self, stack: contextlib.ExitStack) -> dict[str, int]:
        """Name of a port to QEMU's end of its socket."""
        names = ["console", "status", "stdout", "stderr"] + ["stream"] * self._wants_stream
        names += ["stdin"] * self._wants_terminal
        ends: dict[str, int] = {}
        token = token_bytes(self._token)
        for name in names:
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            self._sockets.append(ours)
            ends[name] = theirs.fileno()
            if name == "stream":
                self._bridge = Bridge(ours, token, lambda whole: None)
                continue
            if name == "stdin":
                self._terminal = Terminal(ours)
                continue
            take = self._sinks.get(name) or Lines(getattr(self, f"_{name}_line"))
            channel = Channel(name, ours, token, take, functools.partial(self._ended, name))
            self._channels.append(channel)
            if name in self._sinks:
                self._open.add(name)
        return ends

    def _watch(self) -> None:
        assert self._process is not None
        assert self._process.stderr is not None
        with self._process.stderr as errors:
            for line in errors:
                self._console.append(line.decode(errors="replace").rstrip())
        self._process.wait()
        # What the ports still hold comes first: the exit status may be in it.
        for channel in self._channels:
            channel.join()
        with self._changed:
            self._dead = True
            self.ready.set()
            self._changed.notify_all()

    def _ended(self, name: str, whole: bool) -> None:
        with self._changed:
            self._open.discard(name)
            self._changed.notify_all()

    def _status_line(self, line: str) -> None:
        with self._changed:
            if line == "ready":
                self.ready.set()
            elif match := re.fullmatch(r"exit (\d{1,3})", line):
                self._status = int(match[1])
            self._changed.notify_all()

    def _console_line(self, line: str) -> None:
        self._console.append(line)
        if self.log:
            with self.log.open("a") as file:
                file.write(line + "\n")

    def _report(self, what: str) -> str:
        """``what`` and the console's last lines, or the death's first ones; safe for a terminal."""
        lines = [line for line in self._console if line.strip()]
        splat = next((at for at, line in enumerate(lines) if SPLAT.search(line)), None)
        lines = lines[-20:] if splat is None else lines[splat : splat + 20]
        tail = "".join(f"\n  {_printable(line)}" for line in lines)
        return f"{what}; its console said:{tail}" if tail else f"{what} and said nothing"


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in line)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _warm_bytecode() -> None:
    """Compile here what the guest would else compile in its overlay at every start."""
    with contextlib.suppress(OSError):
        compileall.compile_dir(Path(__file__).resolve().parents[2], quiet=2)


def main(arguments: Sequence[str]) -> int:
    """Run a command in the VM; its exit status."""
    import argparse

    from ipttrace.lab.kernels import DEFAULT, ensure, show_progress

    parser = argparse.ArgumentParser(prog="python -m ipttrace.lab.vm")
    parser.add_argument("--kernel", default=DEFAULT)
    parser.add_argument("--share", type=Path)
    parser.add_argument("--append", action="append", default=[])
    parser.add_argument("--log", type=Path)
    parser.add_argument("--accel", choices=("kvm", "tcg"))
    parser.add_argument("--one-thread", action="store_true", help="emulate all CPUs in one thread")
    parser.add_argument("command", nargs="+")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        kernel = ensure(given.kernel, show_progress)
        machine = Machine(
            kernel,
            given.command,
            share=given.share,
            append=given.append,
            log=given.log,
            accel=given.accel,
            one_thread=given.one_thread,
            terminal=at_a_terminal(),
        )
        return machine.run()
    except (KernelError, MachineError) as error:
        print(f"ipttrace: {error}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, BrokenPipeError) as error:
        return 130 if isinstance(error, KeyboardInterrupt) else 141
