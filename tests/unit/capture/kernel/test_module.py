# SPDX-License-Identifier: GPL-2.0-only
"""Which module is inserted: that of this version from the cache, else an installed one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod


@pytest.mark.parametrize("file", ["updates/dkms/ipttrace.ko.xz", "extra/ipttrace.ko"])
def test_a_module_installed_by_dkms_is_found(tmp_path: Path, file: str) -> None:
    module = tmp_path / "6.1.0" / file
    module.parent.mkdir(parents=True)
    module.touch()
    assert kmod.installed("6.1.0", tmp_path) == module
    assert kmod.installed("6.2.0", tmp_path) is None


def test_a_module_is_not_used_after_its_sources_changed(tmp_path: Path) -> None:
    # GIVEN a copy of the sources
    for folder in ("kmod", "bpf"):
        shutil.copytree(kmod.sources() / folder, tmp_path / folder)
    assert kmod.built_path("6.1.0", tmp_path) == kmod.built_path("6.1.0")
    # WHEN one line of them changes
    with (tmp_path / "bpf" / "record.h").open("a") as file:
        file.write("/* another */\n")
    # THEN the module is expected at another path
    assert kmod.built_path("6.1.0", tmp_path) != kmod.built_path("6.1.0")


def test_a_failed_build_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a folder without kernel headers
    monkeypatch.setenv("IPTTRACE_CACHE", str(tmp_path / "cache"))
    # THEN the error is one line, and nothing is left in the cache
    with pytest.raises(CaptureError) as error:
        kmod.build(tmp_path, "6.1.0")
    assert "\n" not in str(error.value)
    assert "does not build for 6.1.0" in str(error.value)
    assert not list(tmp_path.glob("cache/**/*.ko"))
