# SPDX-License-Identifier: GPL-2.0-only
"""Kills the VM when the process that started it dies.

A script: ``guard.py FD COMMAND ...`` starts COMMAND and kills it as soon as the
other end of the pipe FD is closed, which the kernel does however the starter
dies, by SIGKILL too.  PR_SET_PDEATHSIG alone is not enough: it fires when the
forking thread ends, and the screen starts VMs from short-lived threads.  Here it
covers the death of the guard itself.

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
    """Returns COMMAND's exit status modulo 256; 256 - N if signal N killed it."""
    life_pipe = int(arguments[0])
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == guard:
                os.close(life_pipe)
                os.execvp(arguments[1], arguments[1:])
        except OSError as error:
            print(f"{arguments[1]}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
    poll = select.poll()
    poll.register(life_pipe, select.POLLIN)
    pidfd = os.pidfd_open(child)
    poll.register(pidfd, select.POLLIN)
    if all(fd != pidfd for fd, _ in poll.poll()):
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
