# SPDX-License-Identifier: GPL-2.0-only
"""Packages of newer kernels get the layout of older ones, and need nothing in /usr/src."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from ipttrace.lab.kernels.arrange import arrange

RELEASE = "7.3.4+deb13-amd64"


def test_a_kernel_of_split_packages_is_arranged_like_any_other(tmp_path: Path) -> None:
    # GIVEN what is unpacked since 7.0: all in /usr, the image beside the modules
    root = tmp_path / "root"
    modules = root / "usr" / "lib" / "modules" / RELEASE
    headers = root / "usr" / "src" / f"linux-headers-{RELEASE}"
    common = root / "usr" / "src" / "linux-headers-7.3.4+deb13-common"
    for folder in (modules, headers, common):
        folder.mkdir(parents=True)
    (modules / "vmlinuz").write_text("image")
    (modules / "build").symlink_to(f"../../../src/{headers.name}")
    (headers / "Makefile").write_text(
        f"KBUILD_OUTPUT=/usr/src/{headers.name}\ninclude /usr/src/{common.name}/Makefile\n"
    )
    (common / "Makefile").write_text("all:\n\t@echo $(KBUILD_OUTPUT)\n")
    # WHEN it is arranged, and then moved
    arrange(root, RELEASE)
    moved = root.rename(tmp_path / "elsewhere")
    # THEN image and modules are where the VM looks, and make knows where it is
    assert (moved / "boot" / f"vmlinuz-{RELEASE}").read_text() == "image"
    build = moved / "lib" / "modules" / RELEASE / "build"
    place = moved / "usr" / "src" / headers.name
    assert os.path.samefile(build, place)
    done = subprocess.run(["make", "-s", "-C", place], capture_output=True, text=True)
    assert done.stdout == f"{place}\n"
