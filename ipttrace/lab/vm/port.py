# SPDX-License-Identifier: GPL-2.0-only
"""The guest's end of the stream's channel: a virtio-serial port.

Runs inside the throwaway VM.  Must not import anything of ipttrace, so that a
guest under emulation does not pay for it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

STREAM: Final = "org.ipttrace.stream"
PORTS: Final = Path("/sys/class/virtio-ports")


def port_path(name: str = STREAM) -> Path | None:
    """The device of the port called ``name``; None where the machine has none."""
    link = Path("/dev/virtio-ports") / name
    if link.exists():
        return link
    for port in PORTS.glob("*/name"):
        if port.read_text(errors="replace").strip() == name:
            return Path("/dev") / port.parent.name
    return None


def open_stream_port(name: str = STREAM) -> int:
    """A file descriptor (read and write) of the port; the caller closes it.

    Writes block until the host takes them; the driver takes 32 KiB a write, so
    a short count is normal.  Raises FileNotFoundError where there is no such
    port, OSError (EBUSY) where it is open already.
    """
    path = port_path(name)
    if path is None:
        subprocess.run(["modprobe", "-q", "virtio_console"], check=False)
        path = port_path(name)
    if path is None:
        raise FileNotFoundError(f"this machine has no virtio port named {name}")
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
