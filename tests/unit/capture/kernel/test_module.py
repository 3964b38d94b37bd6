# SPDX-License-Identifier: GPL-2.0-only
"""Which module is inserted: that of this version from the cache, else an installed one."""

from __future__ import annotations

import contextlib
import os
import platform
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


def test_a_kernel_without_what_the_module_needs_is_named_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN headers of a kernel without the TRACE target, on which the sources give up
    monkeypatch.setenv("IPTTRACE_CACHE", str(tmp_path / "cache"))
    lacking = "this kernel cannot report rule hits (CONFIG_NETFILTER_XT_TARGET_TRACE)"
    assert f'#error "{lacking}"' in (kmod.sources() / "kmod" / "compat.h").read_text()
    (tmp_path / "Makefile").write_text(
        "modules:\n"
        "\t@echo 'record.c:9:1: error: no member named nf_trace' >&2\n"
        f"\t@echo 'compat.h:1:2: error: #error \"{lacking}\"' >&2\n"
        "\t@exit 2\n"
    )
    # THEN that is the reason
    with pytest.raises(CaptureError) as error:
        kmod.build(tmp_path, "6.1.0")
    assert str(error.value) == f"the module does not build for 6.1.0: {lacking}"


class _Inserted(Exception):
    """finit_module(2) was called."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host whose cache, below the folder, has a module of root's; nothing is inserted."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    monkeypatch.setenv("IPTTRACE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("IPTTRACE_GUEST", raising=False)
    monkeypatch.setattr(kmod, "ROOTS_CACHE", tmp_path / "roots")
    monkeypatch.setattr(kmod, "installed", lambda release: None)

    def syscall(*_: object) -> int:
        raise _Inserted

    monkeypatch.setattr(kmod, "_syscall", syscall)
    module = kmod.built_path(platform.release())
    module.parent.mkdir(parents=True, mode=0o755)
    module.write_bytes(b"")
    return tmp_path


def test_a_module_that_root_built_is_inserted_by_root(host: Path) -> None:
    assert kmod.find_or_build() == kmod.built_path(platform.release())
    with pytest.raises(_Inserted):
        kmod.insert(kmod.find_or_build())


@pytest.mark.parametrize("theirs", ["cache", "cache/modules", "file"])
def test_a_module_of_another_user_in_the_cache_is_not_inserted_by_root(
    host: Path, theirs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a module that another user made, or could exchange
    module = kmod.built_path(platform.release())
    os.chown(module if theirs == "file" else host / theirs, 65534, 65534)
    # THEN root does not insert it
    with pytest.raises(CaptureError, match=r"ipttrace\.ko .* belongs to another user"):
        kmod.insert(module)
    # AND does not choose it: root builds, in a cache of root's own
    caches = []

    def build(kdir: Path, release: str, *, cache: Path) -> Path:
        caches.append(cache)
        return cache

    monkeypatch.setattr(kmod, "build", build)
    with contextlib.suppress(CaptureError):  # no headers
        kmod.find_or_build()
    assert caches in ([], [host / ("cache" if theirs == "file" else "roots")])


def test_the_throwaway_vm_inserts_what_its_user_built(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.chown(host / "cache", 65534, 65534)
    monkeypatch.setenv("IPTTRACE_GUEST", "1")
    with pytest.raises(_Inserted):
        kmod.insert(kmod.find_or_build())
