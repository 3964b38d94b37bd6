# SPDX-License-Identifier: GPL-2.0-only
"""A terminal of a test's own, driven by keys, and what runs in it."""

from __future__ import annotations

import contextlib
import os
import platform
import select
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from time import monotonic

import pytest

ON_A_TERMINAL = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the lab's kernels are for x86-64"),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
# Seconds.  Against hangs only: guests are emulated, and the host may be busy.
HANG = 300.0

Lines = list[str]


class Terminal:
    """A shell command in a tmux of its own; a pipe of the output wakes `until`."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self._tmux = ["tmux", "-u", "-L", f"ipttrace-test-{os.getpid()}", "-f", "/dev/null"]
        # Without the settings of the terminal in which the tests run.
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("COLUMNS", "LINES", "TMUX", "NO_COLOR")
        } | {"LC_ALL": "C.UTF-8"}
        self._size = ["-x", str(width), "-y", str(height)]
        self._fifo = folder / "drawn"
        os.mkfifo(self._fifo)
        # For writing too, so that reading never meets the end of the pipe.
        self._drawn = os.open(self._fifo, os.O_RDWR | os.O_NONBLOCK)
        self.shell = 0
        self._socket: Path | None = None

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._tmux, *arguments], capture_output=True, text=True, env=self._environment
        )
        assert done.returncode == 0, f"tmux {shlex.join(arguments)}: {done.stderr}"
        return done.stdout

    def start(self, command: str) -> None:
        # The shell waits for Enter, so that nothing is drawn before the pipe is connected.
        held = f"read begin; {command}"
        self.tmux("new-session", "-d", *self._size, "sh", "-c", held)
        self.shell = int(self.display("#{pane_pid}"))
        self._socket = Path(self.display("#{socket_path}"))
        self.tmux("pipe-pane", "-O", f"exec cat > {shlex.quote(str(self._fifo))}")
        self.press("Enter")

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def write(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)

    def lines(self) -> Lines:
        return self.tmux("capture-pane", "-p").split("\n")

    def display(self, format: str) -> str:
        """What tmux makes of a format, see FORMATS in tmux(1)."""
        return self.tmux("display-message", "-p", format).strip()

    def until(self, reached: Callable[[Lines], object], what: str) -> Lines:
        """Reads the screen after each output until `reached`; returns its lines."""
        deadline = monotonic() + HANG
        while not reached(lines := self.lines()):
            ended = any(line.startswith("status ") for line in lines)
            left = deadline - monotonic()
            if ended or not select.select([self._drawn], [], [], max(0.0, left))[0]:
                reason = "the program ended" if ended else f"not in {HANG:.0f} s"
                pytest.fail(f"never on the screen ({reason}): {what}\n" + "\n".join(lines))
            with contextlib.suppress(BlockingIOError):
                while os.read(self._drawn, 1 << 16):
                    pass
        return lines

    def until_text(self, text: str) -> Lines:
        return self.until(lambda lines: any(text in line for line in lines), text)

    def enter(self, key: str, title: str, text: str) -> None:
        """Opens a prompt by its key, and replaces its content."""
        self.press(key)
        self.until(lambda lines: prompt(lines, title) is not None, f"the prompt: {title}")
        self.rewrite(title, text)

    def rewrite(self, title: str, text: str) -> None:
        """Replaces the content of a prompt step by step.

        In Textual's fields, letters may overtake other keys.
        """

        def empty(lines: Lines) -> bool:
            # Then it shows an example that ends like this.
            return (prompt(lines, title) or "").endswith(("packets)", "rows)"))

        if not empty(self.lines()):
            self.press("C-u")
            self.until(empty, f"an empty prompt: {title}")
        self.write(text)
        self.until(lambda lines: prompt(lines, title) == text, text)
        self.press("Enter")

    def closed(self, title: str) -> Lines:
        """Waits until the prompt is closed."""
        return self.until(lambda lines: prompt(lines, title) is None, f"no prompt: {title}")

    def close(self) -> list[str]:
        """Ends everything; returns the names of processes that ignored SIGTERM."""
        processes = below(self.shell) if self.shell else {}
        handles = {}
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)
        shell = handles.pop(self.shell, None)
        # The first is what the shell started, which ends the others.
        for handle in list(handles.values())[:1]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGTERM)
        deadline = monotonic() + 60.0
        left = []
        for pid, handle in handles.items():
            if not select.select([handle], [], [], max(0.0, deadline - monotonic()))[0]:
                left.append(processes[pid])
                signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.close(handle)
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, env=self._environment)
        if shell is not None:
            select.select([shell], [], [], 30.0)
            os.close(shell)
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
        os.close(self._drawn)
        return left


def prompt(lines: Lines, title: str) -> str | None:
    """The content of the prompt with this title; None if it is not open."""
    found = [line for line in lines[:4] if line.startswith(f" {title} ")]
    return found[0].removeprefix(f" {title} ").strip() if found else None


def below(pid: int) -> dict[int, str]:
    """The process and all its descendants: their names by pid."""
    parents: dict[int, tuple[int, str]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            head, _, tail = (folder / "stat").read_text().rpartition(")")
            parents[int(folder.name)] = int(tail.split()[1]), head.partition("(")[2]
    found: dict[int, str] = {}
    new = {pid} & set(parents)
    while new:
        found.update((one, parents[one][1]) for one in new)
        new = {one for one, (parent, _) in parents.items() if parent in new} - set(found)
    return found


def machines(terminal: Terminal) -> list[int]:
    """The virtual machines that run below the terminal's shell."""
    return [pid for pid, name in below(terminal.shell).items() if name.startswith("qemu")]
