# SPDX-License-Identifier: GPL-2.0-only
"""One finding of the doctor, and how its remedy is written.

Must not read anything except the `Host`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from ipttrace.capture.doctor.machine import Host

Status = Literal["ok", "warn", "fail"]

BOOT: Final = "boot a distribution's kernel, or trace in a VM: ipttrace lab"
ENABLE_MODULES: Final = "remove kernel.modules_disabled=1 from /etc/sysctl.d, and reboot"


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.  `remedy`: one command, or act, that helps; "" if there is none."""

    name: str
    status: Status
    text: str
    remedy: str = ""

    def line(self) -> str:
        """Returns the finding as one line, for the message of another command."""
        return f"{self.text}: {self.remedy}" if self.remedy else self.text


def sudo(host: Host, command: str) -> str:
    """Returns the command as this user has to type it: with sudo unless root."""
    return command if host.root_user else f"sudo {command}"


def install(host: Host, packages: str) -> str:
    """Returns the command that installs these packages of Debian."""
    return sudo(host, f"apt install {packages}")
