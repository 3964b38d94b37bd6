# SPDX-License-Identifier: GPL-2.0-only
"""The headers of a kernel that a newer compiler built can be used with this host's."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ipttrace.lab.kernels.fit import fit

RELEASE = "7.3.4+deb13-amd64"
CONFIG = "CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT=y\nCONFIG_PAHOLE_VERSION=130\nCONFIG_CC_HAS_SLS=y\n"


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    folder = tmp_path / "usr" / "src" / f"linux-headers-{RELEASE}"
    (folder / "include" / "config").mkdir(parents=True)
    (folder / "include" / "config" / "auto.conf").write_text(CONFIG)
    (folder / "vmlinux").write_text("BTF")
    return folder


def host(monkeypatch: pytest.MonkeyPatch, pahole: str, gcc: int) -> None:
    """A host with this version of pahole, whose gcc ends with this status."""

    def run(command: Sequence[str], **_: object) -> subprocess.CompletedProcess[str]:
        status = gcc if command[0] == "gcc" else 0
        return subprocess.CompletedProcess(command, status, pahole, "")

    monkeypatch.setattr(subprocess, "run", run)


def test_what_an_older_host_does_not_know_is_left_out(
    headers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(monkeypatch, "124", 1)
    fit(tmp_path, RELEASE, (), tmp_path)
    config = (headers / "include" / "config" / "auto.conf").read_text()
    assert config == "CONFIG_PAHOLE_VERSION=130\nCONFIG_CC_HAS_SLS=y\n"
    assert not (headers / "vmlinux").exists()


def test_on_a_host_as_new_nothing_changes(
    headers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host(monkeypatch, "130", 0)
    fit(tmp_path, RELEASE, (), tmp_path)
    assert (headers / "include" / "config" / "auto.conf").read_text() == CONFIG
    assert (headers / "vmlinux").exists()
