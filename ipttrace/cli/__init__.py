# SPDX-License-Identifier: GPL-2.0-only
"""The commands: each parses its arguments, calls what does the work, returns the exit status.

    commands    the table of commands, the help made from it, and "did you mean"
    options     options and checks that several commands share
    outcome     error lines and exit statuses
    interrupts  Ctrl-C before a stream is read
    descriptors standard descriptors that were closed at the start
    ssh         --ssh: agents on other hosts
    stdin       a recording from stdin
    stdout      rows on stdout, and what must not go to a terminal
    recording   the file that a stream is recorded to
    pump        from a stream to lines: print, drops, sockets, record, replay, export, lab, demo
    lines       what print and drops have in common
    asking      what the screen asks about a row: what if, why not
    editor      the user's editor on a copy of the rules
    copies      what commands that make copies of rules have in common

    screen, print, drops, sockets, record, replay, export, lab, demo, doctor, config, agent, whatif,
    whynot, compare, test, snapshot, guard: a command each

Imports of the other packages are inside the functions: `agent` must not pay for the
screen, nor `replay` for the kernel.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ipttrace.cli import commands, descriptors, outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line `argv`; returns the exit status."""
    descriptors.fill_closed()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = commands.find(arguments[0]) if arguments else None
    from ipttrace.link.base import LinkError

    try:
        if command is None:
            return commands.SCREEN.run(arguments)
        return command.run(arguments[1:])
    except outcome.BadUsage as error:
        outcome.error(str(error))
        return outcome.BAD_USAGE
    except outcome.Failed as error:
        outcome.error(str(error))
        return outcome.FAILED
    except LinkError as error:
        if not error.printed:
            outcome.error(str(error))
        return outcome.FAILED
    except KeyboardInterrupt:
        return outcome.INTERRUPTED
