# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that take no unsigned module, booted for it: one clear line, and what to do.

Runs on the host, and boots a VM for each kernel argument.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile

import pytest

from ipttrace.capture.kernel import module as kmod
from ipttrace.lab import kernels
from ipttrace.lab.vm import Machine
from tests.paths import PROJECT

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the lab's kernels are for x86-64"
)

SERIES = os.environ.get("KERNEL", kernels.DEFAULT).split()

# In the guest: what a person sees, what the doctor says, and what the kernel itself
# answers to one that tries all the same.
TRY = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t securityfs security /sys/kernel/security || exit 8
modprobe -a iptable_filter ip6table_filter || exit 9
"$0" -m ipttrace print --engine kernel; echo "status $?"
"$0" -m ipttrace print --duration 0.1 2>&1 >/dev/null | tail -n 1
"$0" -m ipttrace doctor | grep -A1 signatures
"$0" -c '
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.errors import CaptureError
try:
    kmod.insert(kmod.find_or_build())
except CaptureError as error:
    print("kernel:", error)
'
ls -d /sys/module/ipttrace /sys/fs/bpf/ipttrace
exit 0
"""


def said(series: str, *append: str) -> list[str]:
    """The lines of TRY on that kernel."""
    kernel = kernels.ensure(series)
    kmod.build(kernel.headers, kernel.release)
    project = PROJECT
    with tempfile.TemporaryFile() as output:
        machine = Machine(
            kernel,
            ["sh", "-c", TRY, sys.executable],
            append=append,
            cwd=project,
            stdout=output,
            stderr=output,
            progress=lambda text: None,
        )
        assert machine.run() == 0
        output.seek(0)
        return [
            line.replace(kernel.release, "RELEASE") for line in output.read().decode().splitlines()
        ]


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize(
    ("argument", "reason", "kernel_says"),
    [
        ("module.sig_enforce=1", "module.sig_enforce", "kernel: the kernel takes signed modules"),
        (
            "lockdown=integrity",
            "kernel lockdown, Secure Boot",
            "kernel: the kernel refuses the module",
        ),
    ],
)
def test_a_kernel_that_takes_signed_modules_only_says_how_to_sign(
    series: str, argument: str, reason: str, kernel_says: str
) -> None:
    lines = said(series, argument)
    # THEN print says so in one line, with the command that signs
    first = lines[0]
    assert first.startswith(
        f"ipttrace: the kernel accepts signed modules only ({reason}), and ipttrace.ko is not"
        " signed: /lib/modules/RELEASE/build/scripts/sign-file sha256 MOK.priv MOK.der"
    ), lines
    assert lines[1] == "status 1"
    # AND without a word about the engine it traces over netlink, which needs no module of ours
    assert lines[2].endswith("engine=netlink"), lines
    # AND the doctor says the same, with the command below
    assert lines[3].split()[:2] == ["fail", "signatures"], lines
    assert "sign-file" in lines[4]
    # AND the kernel's own answer would have been made as clear
    assert lines[5].startswith(kernel_says), lines
    # AND nothing is left
    assert all("No such file" in line for line in lines[6:]), lines
    assert len(lines) == 8
