# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that lack an option: the module builds without it, or says in a line what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.lab import kernels
from tests.paths import PROJECT

Build = Callable[..., Path]


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """Builds the module as for a kernel of the lab that was made without some options."""
    kernel = kernels.find(kernels.SERIES[-1])
    if kernel is None:
        pytest.skip(f"Linux {kernels.SERIES[-1]} is not in the cache: make setup")

    def without(*options: str) -> Path:
        header = tmp_path / "without.h"
        names = [f"{option}{kind}" for option in options for kind in ("", "_MODULE")]
        header.write_text("".join(f"#undef CONFIG_{name}\n" for name in names))
        # kbuild puts it behind the kernel's own configuration
        monkeypatch.setenv("KCFLAGS", f"-include {header}")
        return kmod.build(kernel.headers, kernel.release, PROJECT, tmp_path / "cache")

    return without


def test_it_builds_without_what_only_some_columns_need(build: Build) -> None:
    conntrack = ("NF_CONNTRACK", "NF_CONNTRACK_MARK", "NF_CONNTRACK_ZONES")
    assert build(*conntrack, "NF_TABLES", "BRIDGE_NETFILTER").exists()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("NETFILTER_XT_TARGET_TRACE",), "this kernel cannot report rule hits"),
        (("IP_NF_IPTABLES", "IP_NF_IPTABLES_LEGACY"), "this kernel has no legacy iptables"),
        (("KRETPROBES",), "this kernel has no kretprobes"),
        (("BPF_SYSCALL",), "this kernel runs no BPF programs"),
    ],
    ids=["TRACE", "iptables", "kretprobes", "bpf"],
)
def test_without_what_it_cannot_do_without_the_error_names_the_option(
    build: Build, options: tuple[str, ...], why: str
) -> None:
    with pytest.raises(CaptureError) as caught:
        build(*options)
    assert str(caught.value).endswith(f": {why} (CONFIG_{options[0]})")
