# SPDX-License-Identifier: GPL-2.0-only
"""Which module is inserted: the cache's of this version, else an installed one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod


@pytest.mark.parametrize("place", ["updates/dkms/ipttrace.ko.xz", "extra/ipttrace.ko"])
def test_a_module_that_dkms_installed_is_found(tmp_path: Path, place: str) -> None:
    module = tmp_path / "6.1.0" / place
    module.parent.mkdir(parents=True)
    module.touch()
    assert kmod.installed("6.1.0", tmp_path) == module
    assert kmod.installed("6.2.0", tmp_path) is None


def test_another_version_of_the_sources_has_another_module(tmp_path: Path) -> None:
    # GIVEN a copy of the sources
    for folder in ("kmod", "bpf"):
        shutil.copytree(kmod.sources() / folder, tmp_path / folder)
    assert kmod.built_path("6.1.0", tmp_path) == kmod.built_path("6.1.0")
    # WHEN one line of them changes
    with (tmp_path / "bpf" / "record.h").open("a") as file:
        file.write("/* another */\n")
    # THEN a module built before is not taken for it
    assert kmod.built_path("6.1.0", tmp_path) != kmod.built_path("6.1.0")


def test_a_module_that_does_not_build_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN headers that are none
    monkeypatch.setenv("IPTTRACE_CACHE", str(tmp_path / "cache"))
    # THEN it is said in one line, and nothing is left in the cache
    with pytest.raises(CaptureError) as error:
        kmod.build(tmp_path, "6.1.0")
    assert "\n" not in str(error.value)
    assert "does not build for 6.1.0" in str(error.value)
    assert not list(tmp_path.glob("cache/**/*.ko"))
