# SPDX-License-Identifier: GPL-2.0-only
"""The guest's end of the stream: a virtio-serial port.

Runs inside the throwaway VM.  Must not import anything of ipttrace, to keep its
start cheap in an emulated guest.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

STREAM: Final = "org.ipttrace.stream"
PORTS: Final = Path("/sys/class/virtio-ports")


def port_path(name: str = STREAM) -> Path | None:
    """Returns the device of the port ``name``; None if the VM has none."""
    link = Path("/dev/virtio-ports") / name
    if link.exists():
        return link
    for port in PORTS.glob("*/name"):
        if port.read_text(errors="replace").strip() == name:
            return Path("/dev") / port.parent.name
    return None


def open_stream_port(name: str = STREAM) -> int:
    """Opens the port for reading and writing; the caller closes the descriptor.

    Writes block until the host reads.  The driver accepts 32 KiB a write, so
    short writes are normal.  Raises FileNotFoundError if there is no such port,
    OSError (EBUSY) if it is already open.
    """
    path = port_path(name)
    if path is None:
        subprocess.run(["modprobe", "-q", "virtio_console"], check=False)
        path = port_path(name)
    if path is None:
        raise FileNotFoundError(f"no virtio port {name}: not a throwaway VM with a stream")
    return os.open(path, os.O_RDWR | os.O_CLOEXEC)
