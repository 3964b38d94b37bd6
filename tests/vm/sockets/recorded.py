# SPDX-License-Identifier: GPL-2.0-only
"""Records connections of every kind with their rows, for the picture of the sockets view.

In the lab VM: ``python -m tests.vm.sockets.recorded FILE``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.program import Command
from tests.vm.forked import until
from tests.vm.sockets.staged import (
    ADDRESS,
    CALLED,
    PORT,
    client,
    listener,
    start,
    wired,
)

CGROUP = Path("/sys/fs/cgroup") / f"docker-{'5e1f' + '0' * 60}.scope"
SERVING = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, b"nginx", 0, 0, 0)
one = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1)
print(flush=True)
for _ in range(2):
    other, _ = one.accept()
    other.recv(9)
    other.sendall(b"some")
sys.stdin.readline()
"""


def main(path: str) -> None:
    """Writes the recording."""
    with tempfile.TemporaryDirectory() as folder, wired():
        ready = Path(folder) / "ready"
        options = ["--engine", "bpf", "--netns", "all", "--sockets", "--ready-file", str(ready)]
        with Command(Path(folder), ["record", path, *options]) as command:
            command.wait_ready()
            _connect()
            command.process.send_signal(signal.SIGTERM)
            assert command.process.wait(60) == 0


def _connect() -> None:
    CGROUP.mkdir()
    own = CGROUP.parent / "cgroup.procs"
    (CGROUP / "cgroup.procs").write_text(str(os.getpid()))
    try:
        server = start(SERVING, [ADDRESS[4], str(PORT)], "unshare", "--pid", "--fork")
    finally:
        own.write_text(str(os.getpid()))
    assert server.stdout
    assert server.stdin
    server.stdout.readline()
    with contextlib.ExitStack() as stack:
        # Two that are served, and more than the accept queue has room for.
        for number in range(5):
            one = stack.enter_context(client())
            if number >= 4:
                one.settimeout(3.5)
                with contextlib.suppress(OSError):
                    one.connect((ADDRESS[4], CALLED))
                continue
            one.connect((ADDRESS[4], CALLED))
            if number < 2:
                one.sendall(b"hello")
                one.recv(9)
        # One to a port where no process listens, and one that is closed as it should be.
        other = stack.enter_context(client())
        with contextlib.suppress(ConnectionRefusedError):
            other.connect((ADDRESS[4], 81))
        with listener(port=22) as ssh, client() as user:
            user.connect((ADDRESS[4], 22))
            ssh.accept()[0].close()
        time.sleep(0.5)  # for the picture: the newest stages are not all at once
    server.stdin.close()
    server.wait(60)
    assert until(lambda: not (CGROUP / "cgroup.procs").read_text())
    CGROUP.rmdir()


if __name__ == "__main__":
    main(sys.argv[1])
