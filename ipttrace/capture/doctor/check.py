# SPDX-License-Identifier: GPL-2.0-only
"""One finding of the doctor, and how a command that mends it is written.

Must not look at anything but the `Host` it is given.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ipttrace.capture.doctor.machine import Host

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.  `remedy` is one command (or act) that mends it; empty: nothing to mend."""

    name: str
    status: Status
    text: str
    remedy: str = ""

    def line(self) -> str:
        """The finding as one line, for one who asked for something else."""
        return f"{self.text}: {self.remedy}" if self.remedy else self.text


def sudo(host: Host, command: str) -> str:
    """The command as one types it who is root, or is not."""
    return command if host.root_user else f"sudo {command}"


def install(host: Host, packages: str) -> str:
    """The command that installs these packages of Debian."""
    return sudo(host, f"apt install {packages}")
