# SPDX-License-Identifier: GPL-2.0-only
"""From end to end: a lab VM, its traffic, and the screen in a terminal driven by keys.

The journeys on the screen are compared with those that scenarios.py expects.  Runs on the
host, and boots one VM.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ipttrace.lab import kernels
from ipttrace.lab.network import addresses as at
from tests.boot.terminal import ON_A_TERMINAL, Lines, Terminal, machines
from tests.lab import stages
from tests.lab.scenarios import Traversal, scenarios
from tests.paths import PROJECT

pytestmark = ON_A_TERMINAL

SERIES = os.environ.get("KERNEL", kernels.DEFAULT).split()[0]
# One traversal as read from the screen: hook, table, path, verdict.
Seen = tuple[str, str, list[str], str]


# A journey in the detail.

TRAVERSAL = re.compile(
    r"^(?:▶| ) +\+\S+(?: +\S+[nµm]?s)? +(PREROUTING|INPUT|FORWARD|OUTPUT|POSTROUTING)"
    r" +(\w+) +(policy|\S+ \d+↩?) +[✓✗] (\w+) "
)
STEP = re.compile(r"^ {4}(\S+ (?:\d+↩?|policy))(?: |$)")


def journey(lines: Lines) -> list[Seen]:
    """The journey in the open detail; empty until all of it is visible."""
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
            # Replaced if the steps of the path follow on lines of their own.
            seen[-1][2].append(short)
        elif seen and (match := STEP.match(line)):
            if short:
                seen[-1][2].clear()
                short = ""
            seen[-1][2].append(match[1])
    return seen


def any_line(pattern: re.Pattern[str], lines: Lines) -> bool:
    """Whether the pattern is in a line."""
    return any(pattern.search(line) for line in lines)


def filtered(query: str, lines: Lines) -> bool:
    """Whether the list shows a row that the query matches."""
    begins = any(line.startswith(f" ▼ {query}") for line in lines)
    return begins and any(re.search(r"(ACCEPT|DROP) ", line) for line in lines)


def has_journey(wanted: list[Seen], lines: Lines) -> bool:
    """Whether the open detail shows this journey."""
    return journey(lines) == wanted


def on_the_router(expected: Sequence[Traversal]) -> list[Seen]:
    """The router's traversals as the screen should show them."""

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
# Queries for packets of the lab's traffic, and the journeys of these packets.
JOURNEYS = {
    f"dst={at.ROUTER4} and chain=PORTFORWARD and rulenum=1": [
        *stages.arrive(1, 1, mark="MARKING:2 MARKING:3/return", nat="PREROUTING:1 PORTFORWARD:1"),
        *stages.forward(f"{stages.VETTED} FORWARD:3 SERVICES:1 WEB:1", 1, syn=True),
        *stages.leave(1, 1),
    ],
    "chain=BLOCKLIST and verdict=DROP": KNOWN["dropped by port in a chain below a chain"],
    f"src={at.GUEST4} and verdict=DROP": KNOWN["dropped by source in raw"],
    "dport=6667 and verdict=DROP": KNOWN["dropped by policy"],
    "dport=445 and verdict=DROP": KNOWN["logged and dropped"],
    f"dst={at.SERVER4} and chain=FORWARD and rulenum=4": [
        *stages.arrive(1, 1, mark="MARKING:1 MARKING:3/return"),
        *stages.forward(f"{stages.VETTED_PING} FORWARD:3 SERVICES:11/return FORWARD:4", 1),
        *stages.leave(1, 1),
    ],
}


def test_a_user_finds_the_rule_that_drops_and_returns_to_the_shell(terminal: Terminal) -> None:
    # GIVEN a shell on a terminal
    program = shlex.join([sys.executable, "-m", "ipttrace", "lab", "--kernel", SERIES])
    terminal.start(
        f"cd {shlex.quote(str(PROJECT))}; before=$(stty -g); {program}; status=$?;"
        ' [ "$before" = "$(stty -g)" ] && echo terminal as before; echo status $status; read end'
    )
    # WHEN the lab is started THEN rows appear by themselves
    terminal.until(
        lambda lines: (
            any("ARMED" in line for line in lines) and sum("ACCEPT" in line for line in lines) > 40
        ),
        "rows",
    )
    started = machines(terminal)
    assert len(started) == 1

    # WHEN a user makes a mistake in a filter
    terminal.enter(":", "filter", "chain=BLOCKLIST and verdct=DROP")
    # THEN a caret points at it
    lines = terminal.until_text("^ there is no field verdct")
    y = next(y for y, line in enumerate(lines) if "verdct=DROP" in line)
    assert lines[y + 1].index("^") == lines[y].index("verdct")
    terminal.press("Escape")
    terminal.closed("filter")

    # WHEN packets of the lab's traffic are filtered
    for query, expected in JOURNEYS.items():
        terminal.enter(":", "filter", query)
        terminal.closed("filter")
        terminal.until(partial(filtered, query), f"a row: {query}")
        terminal.press("Home", "Enter")
        # THEN the detail shows the complete journey in order
        wanted = on_the_router(expected)
        terminal.until(
            partial(has_journey, wanted),
            f"the journey of {query}\n" + "\n".join(map(str, wanted)),
        )
        terminal.press("Enter")
        terminal.until(lambda lines: not any("Journey" in line for line in lines), "no detail")

    # WHEN the filters are removed one by one, and the flow of the first is chosen
    for _ in JOURNEYS:
        terminal.press("BSpace")
    terminal.until_text("▽ all rows")
    terminal.press("f")
    terminal.until_text("▼ flow ")
    # THEN both directions are shown, on both sides of the NAT
    for source, target in (
        (f"{at.CLIENT4}:", f"{at.ROUTER4}:8080"),
        (f"{at.CLIENT4}:", f"{at.SERVER4}:80 "),
        (f"{at.UPLINK4}:", f"{at.SERVER4}:80 "),
        (f"{at.SERVER4}:80 ", f"{at.UPLINK4}:"),
        (f"{at.ROUTER4}:8080 ", f"{at.CLIENT4}:"),
    ):
        between = re.compile(rf" {re.escape(source)}\d* ?→ ?{re.escape(target)}")
        terminal.until(partial(any_line, between), between.pattern)

    # WHEN all rules are shown THEN the rule that drops has its hits beside it
    terminal.press("BSpace")
    terminal.until_text("▽ all rows")
    terminal.press("2")
    blocks = re.compile(r"^ +1 [▏▎▍▌▋▊▉█ ]+ +([1-9]\d*) .* -p udp -m udp --dport 4444 -j DROP")
    terminal.until(partial(any_line, blocks), blocks.pattern)
    terminal.press("1")
    terminal.until_text("▽ all rows")

    # WHEN a kernel filter is set
    terminal.enter("K", "kernel filter", "udp port 4444")
    terminal.closed("kernel filter")
    # THEN the bar shows it
    terminal.until_text("traced: udp port 4444")
    # AND in a small terminal no other rows arrive
    terminal.press("End")
    terminal.tmux("resize-window", "-x", "80", "-y", "24")
    terminal.until(
        lambda lines: (
            len(lines) <= 26
            and any("ARMED" in line and "missed 0" in line for line in lines)
            and len(found := [line for line in lines if re.search("ACCEPT|DROP", line)]) > 15
            and all(":4444" in line for line in found)
        ),
        "only rows that match the kernel filter, in 80 × 24",
    )

    # WHEN disarmed THEN the bar shows it
    terminal.press("A")
    terminal.until_text("DISARMED")
    # WHEN quit THEN the terminal is restored, with one line of summary
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
    assert terminal.display("#{alternate_on} #{cursor_flag} #{mouse_any_flag}") == "0 1 0"
    # AND no virtual machine is left
    assert machines(terminal) == []
    assert not any(Path(f"/proc/{pid}").exists() for pid in started)
