# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's verifier is far from its limit with every program, so that starting is quick."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.capture.bpf import programs as bpf
from ipttrace.capture.drops import programs as drops
from ipttrace.capture.sockets import programs as sockets
from ipttrace.guard import programs as guard
from tests.vm.refused import refuse_fentry

# Of the million that the kernel allows a program.
MOST = 60_000


def verified() -> Iterator[int]:
    """How many instructions the verifier has processed, of each program of this process."""
    for name in os.listdir("/proc/self/fdinfo"):
        with contextlib.suppress(FileNotFoundError):
            text = Path("/proc/self/fdinfo", name).read_text()
            fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
            if "verified_insns" in fields:
                yield int(fields["verified_insns"])


@pytest.mark.parametrize("refuses_fentry", [False, True], ids=["fentry", "kprobes"])
def test_no_program_is_a_long_read(refuses_fentry: bool) -> None:
    subprocess.run(["modprobe", "-a", "nf_tables", "nf_conntrack"], check=True)
    with contextlib.ExitStack() as stack:
        if refuses_fentry:
            stack.enter_context(refuse_fentry())
        tables = bpf.Programs(1 << 16)
        stack.callback(tables.close)
        assert tables.trace_legacy() == []
        stack.callback(tables.follower().close)
        places = drops.Programs(1 << 16, 0)
        stack.callback(places.close)
        places.attach_stations()
        stack.callback(guard.Programs().close)
        stack.callback(sockets.Programs(1 << 16, 0).close)
        found = list(verified())
    assert len(found) > 20
    assert max(found) < MOST, sorted(found)
