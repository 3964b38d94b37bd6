# SPDX-License-Identifier: GPL-2.0-only
"""Arranges unpacked packages: every release has the same layout, and none needs /usr/src.

Must not run anything.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


def arrange(root: Path, release: str) -> None:
    """Moves what is elsewhere since 7.0, and makes absolute paths of headers relative."""
    _move_image(root, release)
    source = root / "usr" / "src"
    makefile = source / f"linux-headers-{release}" / "Makefile"
    if match := re.search(r"/usr/src/(linux-headers-[\w.+~-]+)/Makefile", makefile.read_text()):
        common = f"$(dir $(lastword $(MAKEFILE_LIST)))../{match[1]}/Makefile"
        # Since 6.16 it also says where it is itself, as the scripts need to know.
        here = "KBUILD_OUTPUT" in makefile.read_text()
        prefix = "KBUILD_OUTPUT := $(abspath $(dir $(lastword $(MAKEFILE_LIST))))\n" if here else ""
        makefile.write_text(f"{prefix}include {common}\n")
    for name in ("build", "source"):
        link = root / "lib" / "modules" / release / name
        if link.is_symlink() and os.readlink(link).startswith("/"):
            target = Path(os.readlink(link)).name
            up = os.path.relpath(source, link.parent.resolve())
            link.unlink()
            link.symlink_to(f"{up}/{target}")


def _move_image(root: Path, release: str) -> None:
    # /usr/lib/modules since 6.16 or so, with the image in it since 7.0.
    modules = root / "usr" / "lib" / "modules"
    if modules.is_dir() and not (root / "lib").exists():
        (root / "lib").symlink_to("usr/lib")
    image = root / "lib" / "modules" / release / "vmlinuz"
    boot = root / "boot"
    boot.mkdir(exist_ok=True)
    if image.is_file() and not (boot / f"vmlinuz-{release}").exists():
        image.rename(boot / f"vmlinuz-{release}")
