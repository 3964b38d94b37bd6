# SPDX-License-Identifier: GPL-2.0-only
"""The command line of ssh, and the shell script that becomes the agent on the other host.

Must not start a process.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Final

from ipttrace.link.base import LinkError
from ipttrace.text import clean

# The script reports its state on stdout in one line: this tag, then READY, SUDO or
# a key of PROBLEMS.
TAG: Final = b"ipttrace-link:"
READY: Final = "ready"
SUDO: Final = "sudo"
PROBLEMS: Final = {
    "missing": "{command} is not installed there: install it, or name it with --remote-command",
    "no-sudo": "tracing needs root, and there is no sudo there: log in as root (root@…)",
}
PROMPT: Final = b"ipttrace-link: sudo asks"  # of sudo there, on stderr

_OPTIONS: Final = (
    "-T",  # no terminal: the stream is binary
    "-a",
    "-x",
    # Do not become a master for others, and ignore what is set up for shells.
    *("-o", "ControlMaster=no"),
    *("-o", "ClearAllForwardings=yes"),
    *("-o", "RemoteCommand=none"),
    # A host that does not answer is given up, also one that accepts and says nothing.
    *("-o", "ConnectTimeout=30"),
    # A connection that dies silently is noticed within half a minute.
    *("-o", "ServerAliveInterval=10"),
    *("-o", "ServerAliveCountMax=3"),
)
# POSIX sh, without newlines, backslashes and exclamation marks, because the login
# shell that parses it may be any.  It reports its state, waits for a line, and becomes
# the agent; `read` consumes no more than its line.
_SCRIPT: Final = "; ".join(
    (
        'say() { echo "ipttrace-link: $1"; }',
        'p=$(command -v "$1" || PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/opt/ipttrace/bin'
        ' command -v "$1") || { say missing; exit 127; }',
        "shift",
        'if [ "$(id -u)" = 0 ]; then say ready; read -r _ || exit 1; exec "$p" "$@"; fi',
        "command -v sudo >/dev/null || { say no-sudo; exit 126; }",
        "say sudo",
        "read -r _ || exit 1",
        f'exec sudo -S -p "{PROMPT.decode()}" -- "$p" "$@"',
    )
)


# Likewise, for a command that ends by itself: sudo may not ask, because stdout is data.
_ONCE: Final = "; ".join(
    (
        'p=$(command -v "$1" || PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/opt/ipttrace/bin'
        ' command -v "$1") || { echo "ipttrace is not installed there" >&2; exit 127; }',
        "shift",
        'if [ "$(id -u)" = 0 ]; then exec "$p" "$@"; fi',
        'exec sudo -n -- "$p" "$@"',
    )
)


def check_host(host: str) -> None:
    """Raises LinkError unless `host` may be passed to ssh as a destination."""
    if not host or host.startswith("-") or not host.isprintable() or " " in host:
        raise LinkError(f"--ssh {clean(host, 80)!r}: not a valid host name; use HOST or USER@HOST")


def ssh_command(host: str, program: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Returns the command that starts an agent on `host`.

    `program`: the words of the ipttrace command there; `arguments`: those of
    ``ipttrace agent``.
    """
    # The shell there starts in the home folder.
    words = [program[0].removeprefix("~/"), *program[1:], "agent", "--control", *arguments]
    command = shlex.join(["exec", "sh", "-c", _SCRIPT, "sh", *words])
    return ["ssh", *_OPTIONS, "--", host, command]


def one_command(host: str, program: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Returns the command that runs ``ipttrace`` with `arguments` on `host`, as root, once."""
    words = [program[0].removeprefix("~/"), *program[1:], *arguments]
    return ["ssh", *_OPTIONS, "--", host, shlex.join(["exec", "sh", "-c", _ONCE, "sh", *words])]
