# SPDX-License-Identifier: GPL-2.0-only
"""One boot of the throwaway VM, for one command.

The command's stdout, stderr, exit status and stream each have a virtio-serial
port, so kernel messages never mix with them.  QEMU ends with the process that
started it, however that process dies (guard.py).

Must not import tui, view or textual.
"""

from __future__ import annotations

import compileall
import contextlib
import functools
import os
import re
import secrets
import shutil
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
from ipttrace.lab.vm import guard, kvm
from ipttrace.lab.vm.channel import Bridge, Channel, LineSink, byte_sink
from ipttrace.lab.vm.initramfs import base_archive, end_token, job_archive
from ipttrace.lab.vm.qemu import QEMU, qemu_arguments
from ipttrace.lab.vm.terminal import Terminal, terminal_size
from ipttrace.lab.vm.tsc import host_tsc_khz

CONSOLE_KEPT: Final = 256
BOOT_LIMIT: Final = 240.0
"""Seconds within which the command must start; a loaded host needs a tenth of it."""

CRASH: Final = re.compile(r"\b(BUG|Oops|Kernel panic|general protection fault)\b")


class MachineError(Exception):
    """The VM did not start, or died; the text gives the reason and the console's last lines."""


class Machine:
    """One boot, one command; the command finds ``IPTTRACE_GUEST=1`` in its environment.

    - ``share``: a folder that the guest mounts, writable, at the same path
    - ``stream``: adds the stream's port; :attr:`socket` is its host end
    - ``append``: more kernel arguments
    - ``memory``, ``cpus``: what the guest has
    - ``log``: a file that receives the kernel's console
    - ``cwd``, ``env``: the command's working directory and environment
    - ``stdout``, ``stderr``: receive the command's output; default: this process's
    - ``accel``: ``kvm`` or ``tcg``; default: what :func:`kvm.accelerator` returns
    - ``one_thread``, ``counted``: see :func:`ipttrace.lab.vm.qemu.qemu_arguments`
    - ``terminal``: connects this process's terminal to the command
    - ``boot_limit``: seconds within which the command must start
    - ``progress``: called with a line of text for each step; default: stderr
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
        self._progress = progress or _print_progress
        self._sinks = {"stdout": byte_sink(stdout, 1), "stderr": byte_sink(stderr, 2)}
        self._wants_stream, self._wants_terminal = stream, terminal
        self._token = secrets.token_hex(16)
        self._before_boot()

    def _before_boot(self) -> None:
        self.ready = threading.Event()
        """Set when the command starts, or can no longer start."""
        self._began = False
        self._changed = threading.Condition()
        self._status: int | None = None
        self._dead = False
        self._open: set[str] = set()
        self._console: deque[str] = deque(maxlen=CONSOLE_KEPT)
        self._channels: list[Channel] = []
        self._sockets: list[socket.socket] = []
        self._bridge: Bridge | None = None
        self._terminal: Terminal | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._life_pipe = -1
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
        """The host's end of the stream; at end of file once the command has ended."""
        if self._bridge is None:
            raise MachineError("this VM has no stream port: create it with stream=True")
        return self._bridge.user

    @property
    def console(self) -> str:
        """The last lines of the kernel's console."""
        return "\n".join(self._console)

    def run(self) -> int:
        """Starts, waits and stops; returns the command's exit status.

        An emulated guest that dies before its command starts is booted once more: with a
        thread per CPU, QEMU's emulation may itself be at fault (see qemu.py).
        """
        try:
            with self:
                self.start()
                return self.wait()
        except MachineError as error:
            if self._process is None or self._began or self.accel != "tcg":
                raise
            self._progress(f"{error}\nbooting once more, because the command had not started")
        self._before_boot()
        with self:
            self.start()
            return self.wait()

    def start(self) -> None:
        """Starts the boot and returns.  Raises MachineError or KernelError."""
        if self._process is not None:
            raise MachineError("this VM has already been started")
        qemu = shutil.which(QEMU)
        if qemu is None:
            raise MachineError(f"{QEMU} is not installed: apt-get install qemu-system-x86")
        if self.accel is None:
            self.accel = kvm.accelerator(self.kernel, self._progress, boots_under_kvm)
        _compile_bytecode()
        self._progress(f"booting Linux {self.kernel.release} ({self.accel.upper()})")
        self._deadline = time.monotonic() + self.boot_limit
        with contextlib.ExitStack() as stack:
            initramfs = self._initramfs(stack)
            ends = self._ports(stack)
            guard_end, self._life_pipe = os.pipe()
            stack.callback(os.close, guard_end)
            passed = [guard_end, initramfs, *ends.values()]
            emulated = self.accel == "tcg" and not self.counted
            arguments = qemu_arguments(
                self.kernel,
                accel=self.accel,
                one_thread=self.one_thread,
                counted=self.counted,
                cpus=self.cpus,
                memory=self.memory,
                append=self.append,
                share=self.share,
                initramfs=initramfs,
                ports=ends,
                tsc_khz=host_tsc_khz() if emulated else None,
            )
            guarded = [sys.executable, "-I", "-S", guard.__file__, str(guard_end)]
            try:
                self._process = subprocess.Popen(
                    [*guarded, qemu, *arguments],
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
        """Returns the command's exit status, once all of its output is delivered.

        The VM stays up until :meth:`stop`, so that the stream can be read to
        its end.  Raises MachineError if the guest dies or does not boot in
        time, TimeoutError after ``timeout`` seconds, BrokenPipeError if the
        reader of the command's output is gone.
        """
        end = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while not (self._dead or (self._status is not None and not self._open)):
                self._raise_broken_pipe()
                now = time.monotonic()
                if not self.ready.is_set() and now > self._deadline:
                    raise MachineError(
                        self._with_console(f"the guest did not boot within {self.boot_limit:.0f} s")
                    )
                if end is not None and now > end:
                    raise TimeoutError(f"the command in the guest did not end within {timeout} s")
                self._changed.wait(0.5)
            self._raise_broken_pipe()
            if self._status is None:
                raise MachineError(self._with_console("the guest died"))
            return self._status

    def stop(self) -> None:
        """Ends the VM at once; may be called more than once."""
        if self._terminal:
            self._terminal.close()
        life_pipe, self._life_pipe = self._life_pipe, -1
        if life_pipe >= 0:
            os.close(life_pipe)
        if self._process is not None:
            self._process.wait()
            for channel in self._channels:
                channel.join()
        if self._bridge:
            self._bridge.close()
        while self._sockets:
            self._sockets.pop().close()
        self.ready.set()

    def _raise_broken_pipe(self) -> None:
        for channel in self._channels:
            if isinstance(channel.error, BrokenPipeError):
                raise channel.error

    def _initramfs(self, stack: contextlib.ExitStack) -> int:
        """Returns a descriptor of both archives in one anonymous file, which needs no clean-up."""
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
            terminal=terminal_size() if self._wants_terminal else None,
        )
        number = os.memfd_create("initramfs")
        stack.callback(os.close, number)
        with os.fdopen(os.dup(number), "wb") as file:
            file.write(base_archive(self.kernel))
            file.write(job)
        return number

    def _ports(self, stack: contextlib.ExitStack) -> dict[str, int]:
        """Returns, for each port's name, the descriptor of QEMU's end of its socket."""
        names = ["console", "status", "stdout", "stderr"] + ["stream"] * self._wants_stream
        names += ["stdin"] * self._wants_terminal
        ends: dict[str, int] = {}
        token = end_token(self._token)
        for name in names:
            ours, theirs = socket.socketpair()
            stack.callback(theirs.close)
            self._sockets.append(ours)
            ends[name] = theirs.fileno()
            if name == "stream":
                self._bridge = Bridge(ours, token)
                continue
            if name == "stdin":
                self._terminal = Terminal(ours)
                continue
            sink = self._sinks.get(name) or LineSink(getattr(self, f"_{name}_line"))
            channel = Channel(name, ours, token, sink, functools.partial(self._ended, name))
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
        # The ports are read to their end first: the exit status may still be in them.
        for channel in self._channels:
            channel.join()
        with self._changed:
            self._dead = True
            self.ready.set()
            self._changed.notify_all()

    def _ended(self, name: str, complete: bool) -> None:
        with self._changed:
            self._open.discard(name)
            self._changed.notify_all()

    def _status_line(self, line: str) -> None:
        with self._changed:
            if line == "ready":
                self._began = True
                self.ready.set()
            elif match := re.fullmatch(r"exit (\d{1,3})", line):
                self._status = int(match[1])
            self._changed.notify_all()

    def _console_line(self, line: str) -> None:
        self._console.append(line)
        if self.log:
            with self.log.open("a") as file:
                file.write(line + "\n")

    def _with_console(self, error: str) -> str:
        """Returns the error with lines of the console, safe for a terminal.

        The lines are those of a crash from its start, else the last ones.
        """
        lines = [line for line in self._console if line.strip()]
        crash = next((at for at, line in enumerate(lines) if CRASH.search(line)), None)
        lines = lines[-20:] if crash is None else lines[crash : crash + 20]
        tail = "".join(f"\n  {_printable(line)}" for line in lines)
        return f"{error}; its console:{tail}" if tail else f"{error}; its console is empty"


def _printable(line: str) -> str:
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in line)


def _print_progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _compile_bytecode() -> None:
    """Compiles on the host what each guest would otherwise compile in its overlay."""
    with contextlib.suppress(OSError):
        compileall.compile_dir(Path(__file__).resolve().parents[2], quiet=2)


def boots_under_kvm(kernel: Kernel) -> bool:
    """Returns whether a guest under KVM runs a command in time: the trial of kvm.accelerator()."""
    try:
        machine = Machine(
            kernel,
            ["true"],
            accel="kvm",
            boot_limit=kvm.TRIAL_LIMIT,
            cwd=Path("/"),
            progress=lambda text: None,
        )
        with machine:
            machine.start()
            return machine.wait(kvm.TRIAL_LIMIT * 2) == 0
    except (MachineError, TimeoutError):
        return False
