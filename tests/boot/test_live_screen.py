# SPDX-License-Identifier: GPL-2.0-only
"""The whole way: a lab VM, its traffic, and the screen in a terminal driven by keys.

What the screen shows of a packet's journey is compared with what scenarios.py
says that such a packet goes through.  Runs on the host, and boots one VM.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

import pytest

from ipttrace.lab import kernels
from ipttrace.lab.network import rules as at
from tests.lab import way
from tests.lab.scenarios import Traversal, scenarios
from tests.paths import PROJECT

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the lab's kernels are for x86-64"),
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]

SERIES = os.environ.get("KERNEL", kernels.DEFAULT).split()[0]
# Against a hang only: guests are emulated, and a machine may have other things to do.
HANG = 300.0

# One traversal as it is read from the screen: hook, table, path, verdict.
Seen = tuple[str, str, list[str], str]

Lines = list[str]


class Terminal:
    """A shell's command in a tmux of our own; a pipe of what is drawn wakes us."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self._tmux = ["tmux", "-u", "-L", f"ipttrace-test-{os.getpid()}", "-f", "/dev/null"]
        # Those of the terminal that the tests run in, if any, are not those of ours.
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in ("COLUMNS", "LINES", "TMUX", "NO_COLOR")
        } | {"LC_ALL": "C.UTF-8"}
        self._size = ["-x", str(width), "-y", str(height)]
        self._fifo = folder / "drawn"
        os.mkfifo(self._fifo)
        # For writing too: the pipe is never at its end.
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
        # The shell waits for us, so that nothing is drawn before the pipe is there.
        held = f"read begin; {command}"
        self.tmux("new-session", "-d", *self._size, "sh", "-c", held)
        self.shell = int(self.asked("#{pane_pid}"))
        self._socket = Path(self.asked("#{socket_path}"))
        self.tmux("pipe-pane", "-O", f"exec cat > {shlex.quote(str(self._fifo))}")
        self.press("Enter")

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", *keys)

    def write(self, text: str) -> None:
        self.tmux("send-keys", "-l", text)

    def lines(self) -> Lines:
        return self.tmux("capture-pane", "-p").split("\n")

    def asked(self, what: str) -> str:
        return self.tmux("display-message", "-p", what).strip()

    def until(self, so: Callable[[Lines], object], what: str) -> Lines:
        """Look at the screen each time that something was drawn, until it is so."""
        deadline = monotonic() + HANG
        while not so(lines := self.lines()):
            over = any(line.startswith("status ") for line in lines)
            left = deadline - monotonic()
            if over or not select.select([self._drawn], [], [], max(0.0, left))[0]:
                why = "the program ended" if over else f"not in {HANG:.0f} s"
                pytest.fail(f"never on the screen ({why}): {what}\n" + "\n".join(lines))
            with contextlib.suppress(BlockingIOError):
                while os.read(self._drawn, 1 << 16):
                    pass
        return lines

    def until_text(self, text: str) -> Lines:
        return self.until(lambda lines: any(text in line for line in lines), text)

    def ask(self, key: str, title: str, text: str) -> None:
        """Open this prompt by its key, and write this in place of what is there."""
        self.press(key)
        self.until(lambda lines: asked(lines, title) is not None, f"the prompt: {title}")
        self.rewrite(title, text)

    def rewrite(self, title: str, text: str) -> None:
        """As a person would: letters may overtake other keys in Textual's fields."""

        def empty(lines: Lines) -> bool:
            # Then it shows an example that ends so.
            return (asked(lines, title) or "").endswith(("packets)", "rows)"))

        if not empty(self.lines()):
            self.press("C-u")
            self.until(empty, f"an empty prompt: {title}")
        self.write(text)
        self.until(lambda lines: asked(lines, title) == text, text)
        self.press("Enter")

    def answered(self, title: str) -> Lines:
        return self.until(lambda lines: asked(lines, title) is None, f"no prompt: {title}")

    def close(self) -> list[str]:
        """End all of it; returns the names of what did not end when it was asked to."""
        there = below(self.shell) if self.shell else {}
        handles = {}
        for pid in there:
            with contextlib.suppress(ProcessLookupError):
                handles[pid] = os.pidfd_open(pid)
        shell = handles.pop(self.shell, None)
        # First what the shell started: it has the rest end.
        for handle in list(handles.values())[:1]:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(handle, signal.SIGTERM)
        deadline = monotonic() + 60.0
        left = []
        for pid, handle in handles.items():
            if not select.select([handle], [], [], max(0.0, deadline - monotonic()))[0]:
                left.append(there[pid])
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


def asked(lines: Lines, title: str) -> str | None:
    """What stands in the prompt that has this title; None: it is not open."""
    found = [line for line in lines[:4] if line.startswith(f" {title} ")]
    return found[0].removeprefix(f" {title} ").strip() if found else None


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    # High enough for a detail that has the whole of a journey.
    terminal = Terminal(tmp_path, 150, 80)
    left: list[str] = []
    try:
        yield terminal
    finally:
        left = terminal.close()
    assert left == []


def below(pid: int) -> dict[int, str]:
    """This process and all that came of it: their names by id."""
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
    """The virtual machines that run in the terminal."""
    return [pid for pid, name in below(terminal.shell).items() if name.startswith("qemu")]


# What a journey looks like.

TRAVERSAL = re.compile(
    r"^(?:▶| ) +\+\S+(?: +\S+[nµm]?s)? +(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)"
    r" +(\w+) +(policy|\S+ \d+↩?) +[✓✗] (\w+) "
)
STEP = re.compile(r"^ {4}(\S+ (?:\d+↩?|policy))(?: |$)")


def journey(lines: Lines) -> list[Seen]:
    """What the open detail shows of it; nothing while it does not show all."""
    starts = [y for y, line in enumerate(lines) if line.startswith("Journey")]
    if len(starts) != 1 or not any(line.startswith("Conntrack") for line in lines):
        return []
    seen: list[Seen] = []
    short = ""
    for line in lines[starts[0] :]:
        if line.startswith("Conntrack"):
            break
        if match := TRAVERSAL.match(line):
            hook, table, last, verdict = match.groups()
            seen.append((hook, table, [], verdict))
            short = f"{hook} policy" if last == "policy" else last
            # A path that has steps of its own lines replaces this.
            seen[-1][2].append(short)
        elif seen and (match := STEP.match(line)):
            if short:
                seen[-1][2].clear()
                short = ""
            seen[-1][2].append(match[1])
    return seen


def on_the_router(expected: tuple[Traversal, ...] | list[Traversal]) -> list[Seen]:
    """What the screen should show of it: `policy` and the sign of a return in place of words."""

    def text(chain: str, number: int, match: str) -> str:
        if match == "policy":
            return f"{chain} policy"
        return f"{chain} {number}{'↩' if match == 'return' else ''}"

    return [
        (
            one.hook,
            one.table,
            [text(step.chain, step.rulenum, step.match) for step in one.path],
            one.verdict,
        )
        for one in expected
        if one.role == "router"
    ]


KNOWN = {scenario.name: scenario.expected for scenario in scenarios(4)}
# How a person finds a packet of the lab's traffic, and what it went through.
JOURNEYS = {
    f"dst={at.ROUTER4} and chain=PORTFORWARD and rulenum=1": [
        *way.arrive(1, 1, mark="MARKING:2 MARKING:3/return", nat="PREROUTING:1 PORTFORWARD:1"),
        *way.forward(f"{way.VETTED} FORWARD:3 SERVICES:1 WEB:1", 1, syn=True),
        *way.leave(1, 1),
    ],
    "chain=BLOCKLIST and verdict=DROP": KNOWN["dropped by port in a chain below a chain"],
    f"src={at.GUEST4} and verdict=DROP": KNOWN["dropped by source in raw"],
    "dport=6667 and verdict=DROP": KNOWN["dropped by policy"],
    "dport=445 and verdict=DROP": KNOWN["logged and dropped"],
    f"dst={at.SERVER4} and chain=FORWARD and rulenum=4": [
        *way.arrive(1, 1, mark="MARKING:1 MARKING:3/return"),
        *way.forward(f"{way.VETTED_PING} FORWARD:3 SERVICES:11/return FORWARD:4", 1),
        *way.leave(1, 1),
    ],
}


def test_from_a_command_to_the_rule_that_drops_and_back(terminal: Terminal) -> None:
    # GIVEN a shell on a terminal
    program = shlex.join([sys.executable, "-m", "ipttrace", "lab", "--kernel", SERIES])
    terminal.start(
        f"cd {shlex.quote(str(PROJECT))}; before=$(stty -g); {program}; status=$?;"
        ' [ "$before" = "$(stty -g)" ] && echo terminal as before; echo status $status; read end'
    )
    # WHEN the lab is started THEN rows come by themselves
    terminal.until(
        lambda lines: (
            any("ARMED" in line for line in lines) and sum("ACCEPT" in line for line in lines) > 40
        ),
        "rows",
    )
    started = machines(terminal)
    assert len(started) == 1

    # WHEN a person makes a slip in a filter
    terminal.ask(":", "filter", "chain=BLOCKLIST and verdct=DROP")
    # THEN it is pointed at
    lines = terminal.until_text("^ there is no field verdct")
    y = next(y for y, line in enumerate(lines) if "verdct=DROP" in line)
    assert lines[y + 1].index("^") == lines[y].index("verdct")
    terminal.press("Escape")
    terminal.answered("filter")

    # WHEN packets of the lab's traffic are looked for
    for query, expected in JOURNEYS.items():
        terminal.ask(":", "filter", query)
        terminal.answered("filter")
        terminal.until(
            lambda lines, query=query: (
                any(line.startswith(f" ▼  {query}") for line in lines)
                and any(re.search(r"(ACCEPT|DROP) ", line) for line in lines)
            ),
            f"a row: {query}",
        )
        terminal.press("Home", "Enter")
        # THEN the detail has the whole journey in order, as it must be
        wanted = on_the_router(expected)
        terminal.until(
            lambda lines, wanted=wanted: journey(lines) == wanted,
            f"of {query}\n" + "\n".join(map(str, wanted)),
        )
        terminal.press("Enter")
        terminal.until(lambda lines: not any("Journey" in line for line in lines), "no detail")

    # WHEN the filters are taken back, one by one, and the flow of the first is asked for
    for _ in JOURNEYS:
        terminal.press("BSpace")
    terminal.until_text("▽ all rows")
    terminal.press("f")
    terminal.until_text("▼  flow=0x")
    # THEN both of its directions are there, on both sides of the NAT
    for source, target in (
        (f"{at.CLIENT4}:", f"{at.ROUTER4}:8080"),
        (f"{at.CLIENT4}:", f"{at.SERVER4}:80 "),
        (f"{at.UPLINK4}:", f"{at.SERVER4}:80 "),
        (f"{at.SERVER4}:80 ", f"{at.UPLINK4}:"),
        (f"{at.ROUTER4}:8080 ", f"{at.CLIENT4}:"),
    ):
        way_ = re.compile(rf" {re.escape(source)}\d* ?→ ?{re.escape(target)}")
        terminal.until(
            lambda lines, way_=way_: any(way_.search(line) for line in lines), way_.pattern
        )

    # WHEN the rules are looked at THEN the one that drops has its hits beside it
    terminal.press("2")
    blocks = re.compile(r"^ +1 [▏▎▍▌▋▊▉█ ]+ +([1-9]\d*) .* -p udp -m udp --dport 4444 -j DROP")
    terminal.until(lambda lines: any(blocks.match(line) for line in lines), blocks.pattern)
    terminal.press("1")
    terminal.until_text("▼  flow=0x")

    # WHEN a filter is given to the kernel
    terminal.ask("K", "kernel filter", "udp port 4444")
    terminal.answered("kernel filter")
    # THEN the bar says what the kernel now takes
    terminal.until_text("traced: udp port 4444")
    # AND in a terminal that became small, once all is shown again, no other rows come
    terminal.press("BSpace")
    terminal.until_text("▽ all rows")
    terminal.press("End")
    terminal.tmux("resize-window", "-x", "80", "-y", "24")
    terminal.until(
        lambda lines: (
            len(lines) <= 26
            and any("ARMED" in line and "missed 0" in line for line in lines)
            and len(found := [line for line in lines if re.search("ACCEPT|DROP", line)]) > 15
            and all(":4444" in line for line in found)
        ),
        "nothing but what the kernel takes, in 80 × 24",
    )

    # WHEN disarmed THEN it says so
    terminal.press("A")
    terminal.until_text("DISARMED")
    # WHEN quit THEN the terminal is given back, with one line of what was done
    terminal.press("q")
    lines = terminal.until(
        lambda lines: any(line.startswith("status ") for line in lines), "its end"
    )
    assert "status 0" in lines, "\n".join(lines)
    assert "terminal as before" in lines, "\n".join(lines)
    (summary,) = [line for line in lines if line.startswith("rows=")]
    counts = dict(part.split("=") for part in summary.split())
    assert int(counts["rows"]) > 100
    assert int(counts["records"]) > 3 * int(counts["rows"]) - 10
    assert (counts["lost"], counts["missed"]) == ("0", "0")
    assert "kernel" in counts["engine"].split("+")
    assert not any("Traceback" in line for line in lines)
    assert terminal.asked("#{alternate_on} #{cursor_flag} #{mouse_any_flag}") == "0 1 0"
    # AND no machine is left
    assert machines(terminal) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
