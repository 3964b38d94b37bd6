# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that refuse unsigned modules trace by BPF, and say in one line what they refuse.

Runs on the host, and boots a VM with each kernel argument.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile

import pytest

from ipttrace.capture.kernel import module as kmod
from ipttrace.lab import kernels
from ipttrace.lab.vm.machine import Machine
from tests.paths import PROJECT

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the lab's kernels are for x86-64"
)

SERIES = os.environ.get("KERNEL", kernels.DEFAULT).split()

# In the guest: what a user sees, what the doctor reports, what happens if the module is
# inserted all the same, and what a lockdown that hides the kernel's memory leaves.
TRY = """
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t securityfs security /sys/kernel/security || exit 8
modprobe -a iptable_filter ip6table_filter || exit 9
"$0" -m ipttrace print --engine kernel; echo "status $?"
ip link set lo up
iptables-legacy -A OUTPUT -p icmp -j ACCEPT
(until [ -e /tmp/ready ]; do sleep 0.1; done; ping -c 1 127.0.0.1 >/dev/null) &
"$0" -m ipttrace print --count 1 --format jsonl --ready-file /tmp/ready icmp 2>/tmp/said | "$0" -c '
import json, sys
row = json.loads(sys.stdin.readline())
print(*(row[name] for name in ("engine", "table", "chain", "rulenum", "comm")), row["cost_ns"] > 0)
'
tail -n 1 /tmp/said
"$0" -m ipttrace doctor | grep -A1 signatures
"$0" -c '
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.errors import CaptureError
try:
    kmod.insert(kmod.find_or_build())
except CaptureError as error:
    print("kernel:", error)
'
echo confidentiality >/sys/kernel/security/lockdown
"$0" -m ipttrace print --duration 0.1 2>&1 >/dev/null
ls -d /sys/module/ipttrace /sys/fs/bpf/ipttrace
exit 0
"""


def output_of_try(series: str, *append: str) -> list[str]:
    """The lines that TRY prints on that kernel, booted with the arguments `append`."""
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
    ("argument", "reason", "insert_error"),
    [
        ("module.sig_enforce=1", "module.sig_enforce", "kernel: the kernel accepts signed modules"),
        (
            "lockdown=integrity",
            "kernel lockdown, Secure Boot",
            "kernel: the kernel refuses the module",
        ),
    ],
)
def test_on_a_kernel_for_signed_modules_the_error_names_the_command_that_signs(
    series: str, argument: str, reason: str, insert_error: str
) -> None:
    lines = output_of_try(series, argument)
    # THEN print fails with one line, which has the command that signs
    first = lines[0]
    assert first.startswith(
        f"ipttrace: the kernel accepts signed modules only ({reason}), and ipttrace.ko is not"
        " signed: /lib/modules/RELEASE/build/scripts/sign-file sha256 MOK.priv MOK.der"
    ), lines
    assert lines[1] == "status 1"
    # AND if no engine is chosen it traces by BPF, which needs no module
    assert lines[2] == "bpf filter OUTPUT 1 ping True", lines
    assert lines[3].endswith("engine=bpf"), lines
    # AND the doctor reports the same, with the command below
    assert lines[4].split()[:2] == ["fail", "signatures"], lines
    assert "sign-file" in lines[5]
    # AND the error of inserting the module is as clear
    assert lines[6].startswith(insert_error), lines
    # AND where BPF is refused too, one line says so, and it traces over netlink
    assert "tracing over netlink" in lines[7], lines
    assert "no bpf engine: lockdown=confidentiality keeps BPF from reading" in lines[7], lines
    assert lines[8].endswith("engine=netlink"), lines
    # AND nothing is left
    assert all("No such file" in line for line in lines[9:]), lines
    assert len(lines) == 11
