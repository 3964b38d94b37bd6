# SPDX-License-Identifier: GPL-2.0-only
"""If tracing cannot start, a command prints the reason in one line and leaves nothing behind."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipttrace.capture.choice import open_engine
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel.engine import DEFAULT_BUFFER, KernelEngine, Options
from ipttrace.capture.kernel.module import find_or_build
from ipttrace.capture.request import Request
from tests.program import NO_BTF, ipttrace
from tests.vm.conftest import SHARED, captured
from tests.vm.forked import fork

pytestmark = SHARED

RELEASE = os.uname().release
NEWNS = 0x00020000  # linux/sched.h: CLONE_NEWNS


def cannot(done: subprocess.CompletedProcess[str], why: str) -> None:
    """Checks that it failed with that line on stderr and nothing on stdout."""
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"ipttrace: {why}\n")


def test_a_second_ipttrace_reports_the_first_and_does_not_disturb_it() -> None:
    # GIVEN an ipttrace that traces
    with captured() as capture:
        # WHEN a second is started
        done = ipttrace("print")
        # THEN it reports the pid of the first, which continues
        why = f"another ipttrace (pid {os.getpid()}) is already tracing on this host: stop it first"
        cannot(done, why)
        capture.wait_until(lambda: False, 1.5)
        assert capture.books["state"] == "armed"
        # AND a second engine in the same process is refused, by the lock
        with pytest.raises(CaptureError, match="another ipttrace"):
            open_engine(Request())


def test_without_root_it_asks_for_sudo() -> None:
    def as_nobody(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
                *(sys.executable, "-m", "ipttrace", *arguments),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "HOME": "/nonexistent", "IPTTRACE_CACHE": "/nonexistent"},
        )

    cannot(as_nobody("print"), "tracing needs root: run with sudo")
    done = as_nobody("agent")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    # The reasons of both engines.
    assert "tracing with nf_tables needs CAP_NET_ADMIN" in done.stderr
    assert "not root, and without CAP_NET_ADMIN" in done.stderr
    assert "sudo" in done.stderr


def test_without_btf_it_reports_that() -> None:
    done = ipttrace("print", "--engine", "kernel", hidden="/sys/kernel/btf")
    cannot(done, f"{NO_BTF}: boot a kernel built with CONFIG_DEBUG_INFO_BTF=y")

    # AND the engine itself reports it too, in place of libbpf's message
    def run() -> int:
        assert ctypes.CDLL(None).unshare(NEWNS) == 0
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", "/sys/kernel/btf"], check=True)
        try:
            KernelEngine(Options(b"", None, DEFAULT_BUFFER, None))
        except CaptureError as error:
            return 0 if "this kernel has no BTF" in str(error) else print(error) or 3
        return 4

    assert os.waitpid(fork(run), 0)[1] == 0


def test_without_a_module_and_headers_it_names_the_package_to_install(tmp_path: Path) -> None:
    cache = {"IPTTRACE_CACHE": str(tmp_path)}
    done = ipttrace("print", "--engine", "kernel", hidden="/usr/src", env=cache)
    why = f"no module is built for {RELEASE}, and its headers are missing"
    cannot(done, f"{why}: apt install linux-headers-{RELEASE}")


def test_a_broken_module_in_the_cache_is_named(tmp_path: Path) -> None:
    # GIVEN a cache with a file that is not a module
    good = find_or_build()
    broken = tmp_path / good.relative_to(good.parents[3])
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\x7fELF nothing")
    # WHEN it is inserted
    done = ipttrace("print", env={"IPTTRACE_CACHE": str(tmp_path)})
    # THEN one line names the file, and what to do
    cannot(done, f"{broken} was built for a kernel other than {RELEASE}: remove it and start again")


def test_the_doctor_finds_no_fault_here() -> None:
    done = ipttrace("doctor")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["ok", "engine:", "kernel", "yes"] in lines
    netlink = "ok engine: netlink yes: iptables-nft, nftables and legacy"
    assert netlink.split() in lines
    assert [line for line in lines if line[0] == "fail"] == []
