# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace lab`: the throwaway VM, with the screen on its traffic or with a command as root."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ipttrace.cli import options, outcome
from ipttrace.cli.screen import load_settings
from ipttrace.cli.stdout import has_terminal, open_output

if TYPE_CHECKING:
    from ipttrace.lab.guest import TracedMachine


# As in lab/network/faults.py, which help does without.
FAULTS: Final = ("rp-filter", "forwarding", "route", "neighbour", "loss", "any")


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments before ``--``."""
    parser = options.Parser(
        prog="ipttrace lab",
        description="Boots a throwaway VM and opens the screen on its traffic.",
        epilog="-- COMMAND ...  runs COMMAND as root in the VM instead, and passes on"
        " its exit status",
    )
    parser.add_argument(
        "--kernel",
        default="6.1",
        metavar="RELEASE",
        help="kernel of the VM: 6.1 (default), 6.12, …",
    )
    parser.add_argument(
        "--fault",
        choices=FAULTS,
        metavar="NAME",
        help="plant a fault that is in no rule, to practise: "
        f"{', '.join(FAULTS[:-1])}; {FAULTS[-1]}: one of them",
    )
    options.add_show(parser)
    # argparse would take -- and COMMAND for arguments of its own.
    parser.usage = f"{parser.format_usage().removeprefix('usage: ').rstrip()} [-- COMMAND ...]"
    return parser


def run(argv: Sequence[str]) -> int:
    """Runs the VM; returns the exit status, that of COMMAND if there is one."""
    own, command = list(argv), []
    parser = build_parser()
    if "--" in own:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
        if not command:
            parser.parse_args(own)
            parser.error("no command after --; add the command to run in the VM")
    parsed = parser.parse_args(own)
    from ipttrace.lab import guest

    if command and parsed.fault:
        parser.error("--fault is for the lab's own network: leave it or COMMAND out")
    if command:
        return guest.run(parsed.kernel, command)
    lines = parsed.text or parsed.record or not has_terminal()
    if not lines:
        load_settings()
    with guest.traced(parsed.kernel, parsed.duration, parsed.fault) as (machine, stderr):
        if lines:
            status, began = _lines(machine, parsed.record)
        else:
            status, began = _screen(machine), True
        machine.stop()
        failed = outcome.print_kept(stderr)
        if not began and not failed:
            outcome.error("the VM ended before anything was traced")
        return failed or status


def _lines(machine: TracedMachine, record: str | None) -> tuple[int, bool]:
    """Returns the exit status, and whether the stream began or the user ended it."""
    from ipttrace.cli.pump import Pump
    from ipttrace.cli.recording import Recording

    names: dict[int, str] = {}
    output = None if record else open_output("text", names)
    copy = Recording(record) if record else None
    pump = Pump(output, copy=copy, stop=machine.ask_stop, names=names)
    status = pump.run(machine.socket) or (outcome.DONE if pump.rows else outcome.FAILED)
    return status, bool(pump.trace.hello) or pump.interrupted


def _screen(machine: TracedMachine) -> int:
    from ipttrace.cli.screen import show
    from ipttrace.link.base import STOP
    from ipttrace.tui.feed import StreamSource

    source = StreamSource(machine.socket, machine.socket, name="lab", farewell=STOP)
    machine.show_progress_on(source)
    return show(source, f"lab VM, Linux {machine.release}")
