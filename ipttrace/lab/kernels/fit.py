# SPDX-License-Identifier: GPL-2.0-only
"""Makes the headers of a newer Debian work with this host's compiler, pahole and libraries.

The kernel's build tools are run with libraries of their own suite where the host's are too
old; options that the compiler does not know are left out.  Only in the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from ipttrace.lab.kernels.apt import download, libraries
from ipttrace.lab.kernels.tools import run

# Options of .config that stand for one of gcc's, and a flag to try.
_FLAGS: Final = {"CONFIG_CC_HAS_MIN_FUNCTION_ALIGNMENT": "-fmin-function-alignment=16"}
_LIBRARIES: Final = "usr/lib/ipttrace-libraries"

_WRAPPER: Final = """#!/bin/sh
# The host's C library is older than the one that this tool needs.
self=$(readlink -f "$0")
libraries=$(dirname "$self")/{up}
exec "$libraries/ld-linux-x86-64.so.2" --library-path "$libraries" "$self.elf" "$@"
"""


def fit(root: Path, release: str, options: tuple[str, ...], folder: Path) -> None:
    """Changes what this host cannot use; ``folder``: for packages.  Raises KernelError."""
    headers = root / "usr" / "src" / f"linux-headers-{release}"
    config = headers / "include" / "config" / "auto.conf"
    if not config.exists():
        return
    _leave_out_flags(config)
    _leave_out_btf(headers, config.read_text(errors="replace"))
    tools = [tool for tool in _tools(root) if _lacks_library(tool)]
    if tools:
        _wrap(root, tools, options, folder)


def _leave_out_flags(config: Path) -> None:
    text = config.read_text(errors="replace")
    for option, flag in _FLAGS.items():
        if f"{option}=y" in text and not _compiles(flag):
            text = text.replace(f"{option}=y\n", "")
    config.write_text(text)


def _compiles(flag: str) -> bool:
    try:
        command = ["gcc", flag, "-x", "c", "-c", "-o", "/dev/null", "/dev/null"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return True  # the build will say what is missing


def _leave_out_btf(headers: Path, config: str) -> None:
    """Removes what the BTF of modules is made from, if pahole does not know its arguments."""
    wanted = re.search(r"^CONFIG_PAHOLE_VERSION=(\d+)", config, re.MULTILINE)
    try:
        version = subprocess.run(["pahole", "--numeric_version"], capture_output=True, text=True)
        own = int(version.stdout.strip() or 0)
    except (FileNotFoundError, ValueError):
        return
    if wanted and own < int(wanted[1]):
        (headers / "vmlinux").unlink(missing_ok=True)


def _tools(root: Path) -> list[Path]:
    found = []
    for folder in (root / "usr" / "lib").glob("linux-kbuild-*"):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink() and os.access(path, os.X_OK):
                with path.open("rb") as file:
                    if file.read(4) == b"\x7fELF":
                        found.append(path)
    return found


def _lacks_library(tool: Path) -> bool:
    """Whether a C library that is new enough is missing, not just some library."""
    done = subprocess.run(["ldd", str(tool)], capture_output=True, text=True, errors="replace")
    return re.search(r"GLIBC_[\d.]+. not found", done.stdout + done.stderr) is not None


def _wrap(root: Path, tools: list[Path], options: tuple[str, ...], folder: Path) -> None:
    target = root / _LIBRARIES
    unpacked = folder / "libraries"
    for file in download(libraries(options), folder, lambda share: None):
        run(["dpkg", "-x", str(file), str(unpacked)], f"cannot unpack {file.name}")
    shutil.copytree(unpacked / "usr" / "lib" / "x86_64-linux-gnu", target, symlinks=False)
    for tool in tools:
        tool.rename(tool.with_name(tool.name + ".elf"))
        tool.write_text(_WRAPPER.format(up=os.path.relpath(target, tool.parent)))
        tool.chmod(0o755)
