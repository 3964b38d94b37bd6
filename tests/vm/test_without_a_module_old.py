# SPDX-License-Identifier: GPL-2.0-only
"""Kernels without BTF for their modules are traced over netlink, and one line says why.

Before Linux 5.11, that is: `make vm-test KERNEL=5.10`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.program import ipttrace
from tests.vm.test_without_a_module_refused import engine_bpf

RELEASE = os.uname().release
pytestmark = pytest.mark.skipif(
    tuple(map(int, RELEASE.split(".")[:2])) >= (5, 11), reason="this kernel has BTF for its modules"
)
WHY = f"kernel {RELEASE} has no BTF for its modules"


def test_it_falls_back_to_netlink_and_says_why_in_one_line() -> None:
    subprocess.run(["modprobe", "nf_tables"], check=True)
    # GIVEN root that may not load modules, as in a container
    without = ("setpriv", "--inh-caps=-sys_module", "--bounding-set=-sys_module")
    # WHEN no engine is chosen
    done = subprocess.run(
        [*without, sys.executable, "-m", "ipttrace", "print", "--duration", "0.1"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    # THEN it traces over netlink, with the reason
    said = done.stderr.splitlines()
    assert done.returncode == 0, said
    (line,) = [line for line in said if "no bpf engine" in line]
    assert "tracing over netlink" in line
    assert f"no bpf engine: {WHY}; no kernel engine: " in line
    assert said[-1].endswith("engine=netlink")


def test_bpf_alone_is_refused_with_that_reason_which_the_doctor_gives_too() -> None:
    subprocess.run(["modprobe", "nf_tables"], check=True)
    status, text = engine_bpf(ipttrace("doctor").stdout)
    assert (status, text) == ("fail", f"no, because {WHY}")
    done = ipttrace("print", "--engine", "bpf", "--duration", "0.1")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "has no BTF for nf_tables" in done.stderr
