# SPDX-License-Identifier: GPL-2.0-only
"""The doctor says of BPF what a start would show, on kernels that accept and refuse it.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

import subprocess

from tests.program import ipttrace
from tests.vm.bpf_links import links
from tests.vm.conftest import SHARED
from tests.vm.denied import ipttrace_denied

pytestmark = SHARED


def engine_bpf(printed: str) -> list[str]:
    """Status, and text, of the doctor's line for the BPF engine."""
    line = next(line for line in printed.splitlines() if "engine: bpf" in line)
    status, text = line.split("engine: bpf")
    return [status.strip(), text.strip()]


def test_the_doctor_loads_the_programs_and_leaves_none_behind() -> None:
    # GIVEN nf_tables in use
    subprocess.run(["modprobe", "nf_tables"], check=True)
    before = links()
    # WHEN the doctor is asked
    done = ipttrace("doctor")
    # THEN it has found that BPF can trace, and nothing stays attached
    assert engine_bpf(done.stdout) == ["ok", "yes: iptables-nft, nftables and legacy"], done
    assert links() == before


def test_where_bpf_is_refused_the_doctor_gives_the_reason_that_a_start_gives() -> None:
    # GIVEN root to whom bpf(2) is denied, as in a container
    doctor = ipttrace_denied("doctor")
    start = ipttrace_denied("print", "--engine", "bpf", "--duration", "1")
    # THEN a start fails with one line
    assert (start.returncode, start.stdout) == (1, "")
    (line,) = start.stderr.splitlines()
    assert "Operation not permitted" in line
    # AND the doctor has the same reason
    assert engine_bpf(doctor.stdout) == [
        "fail",
        "no, because " + line.removeprefix("ipttrace: "),
    ]
