# SPDX-License-Identifier: GPL-2.0-only
"""Ends a virtual machine together with the process that started it.

Run as a script: ``lab/vm/guard.py FD COMMAND ...``.  Starts COMMAND and kills it
as soon as the pipe FD reports that its other end is gone, which the kernel
does for every death of the starter, SIGKILL included.  PR_SET_PDEATHSIG alone
would not do: it follows the thread that forked, and a screen starts machines
from threads that end.  Here it covers the guard's own death.

Must import nothing of ipttrace: it runs isolated (``python -I -S``).
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Exit status of COMMAND; 128 + signal where one ended it."""
    life = int(arguments[0])
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == guard:
                os.close(life)
                os.execvp(arguments[1], arguments[1:])
        except OSError as error:
            print(f"{arguments[1]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
    poll = select.poll()
    poll.register(life, select.POLLIN)
    pidfd = os.pidfd_open(child)
    poll.register(pidfd, select.POLLIN)
    if all(fd != pidfd for fd, _ in poll.poll()):
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
