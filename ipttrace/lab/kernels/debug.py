# SPDX-License-Identifier: GPL-2.0-only
"""Builds the debug kernel: Debian's source with the checks that find mistakes in the kernel.

Its options are those of ``debug.config`` on top of tinyconfig: KASAN, lockdep, kmemleak,
reference trackers.  Debian's package of the source is downloaded like those of other
kernels; the result has the layout of a kernel of the cache, in ``<cache>/kernels/debug``.
Two cores need a quarter of an hour, once; an interrupted build is continued.

Must not install anything, nor import tui, view or textual.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ipttrace.files import make_private_folder
from ipttrace.lab.kernels.apt import download, package_named
from ipttrace.lab.kernels.cache import (
    DEBUG,
    STAMP,
    Kernel,
    Progress,
    cache_dir,
    find,
    locked,
)
from ipttrace.lab.kernels.error import KernelError
from ipttrace.lab.kernels.tools import run, tool

SOURCE: Final = "linux-source-6.12"
OPTIONS: Final = Path(__file__).with_name("debug.config")

# What the build runs, and the packages that have it.
_TOOLS: Final = {
    "make": "make",
    "gcc": "gcc",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "pahole": "pahole",
    "xz": "xz-utils",
    "perl": "perl",
    "objcopy": "binutils",
}
_LIBELF: Final = "/usr/include/gelf.h"
_ROOM: Final = 8_000_000_000  # bytes, while it is built
_STEPS: Final = 2600  # files that make compiles and links, for the progress only
_LIMIT: Final = 6 * 3600.0  # seconds


def parse_options(text: str) -> dict[str, str]:
    """Returns option → value of a .config or a part of one; "n" for what is not set."""
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(CONFIG_\w+)=(.*)", line.rstrip()):
            found[match[1]] = match[2]
        elif match := re.fullmatch(r"# (CONFIG_\w+) is not set", line.rstrip()):
            found[match[1]] = "n"
    return found


def refused(wanted: Mapping[str, str], config: Mapping[str, str]) -> list[str]:
    """Returns the options of ``wanted`` that the kernel's ``config`` has not as wanted."""
    return [name for name, value in wanted.items() if config.get(name, "n") != value]


def is_current(kernel: Kernel) -> bool:
    """Returns whether the debug kernel was built with the options of today."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return bool(json.loads((kernel.root / STAMP).read_text())["options"] == _digest())
    return False


def _digest() -> str:
    return hashlib.sha256(OPTIONS.read_bytes()).hexdigest()


def build(progress: Progress | None = None) -> Kernel:
    """Returns the debug kernel; builds it if it is missing or has other options.

    Raises KernelError, one line, if that fails.
    """
    report = progress or (lambda text, share: None)
    kernels = cache_dir() / "kernels"
    try:
        make_private_folder(kernels)
        with locked(kernels / ".debug.lock"):
            if (kernel := find(DEBUG)) and is_current(kernel):
                return kernel
            _check_tools()
            return _build(kernels, report)
    except OSError as error:
        raise KernelError(f"cannot write to the cache {kernels}: {error}") from error


def _check_tools() -> None:
    missing = {package for name, package in _TOOLS.items() if not shutil.which(name)}
    if not os.path.exists(_LIBELF):
        missing.add("libelf-dev")
    if missing:
        raise KernelError(
            f"the debug kernel needs more tools: apt-get install {' '.join(sorted(missing))}"
        )


def _build(kernels: Path, report: Progress) -> Kernel:
    work = kernels / ".debug-build"
    make_private_folder(work)
    tree, root = work / "linux", work / "root"
    version = _unpack(work, tree, report)
    _configure(tree)
    _make(tree, report)
    report("keeping the debug kernel", None)
    shutil.rmtree(root, ignore_errors=True)
    release = _make_quietly(tree, "kernelrelease")
    _keep(tree, root, release)
    stamp = {SOURCE: version, "release": release, "options": _digest()}
    (root / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")
    root.chmod(0o755)
    final = kernels / DEBUG
    shutil.rmtree(final, ignore_errors=True)
    root.rename(final)
    shutil.rmtree(work, ignore_errors=True)
    report(f"Linux {release} is in the cache", 1.0)
    return Kernel(release, final)


def _unpack(work: Path, tree: Path, report: Progress) -> str:
    """Downloads and unpacks the source unless it is there; returns its version."""
    stamp = tree / ".ipttrace-version"
    with contextlib.suppress(FileNotFoundError):
        return stamp.read_text()
    free = shutil.disk_usage(work).free
    if free < _ROOM:
        raise KernelError(
            f"the debug kernel needs {_ROOM / 1e9:.0f} GB in {work} while it is built,"
            f" {free / 1e9:.1f} GB are free: free some space, or set IPTTRACE_CACHE"
        )
    package = package_named(SOURCE)
    (file,) = download(
        [package], work, lambda share: report("downloading the kernel's source", share)
    )
    report("unpacking the kernel's source", None)
    packed = work / "package"
    shutil.rmtree(packed, ignore_errors=True)
    run(["dpkg", "-x", str(file), str(packed)], f"cannot unpack {file.name}")
    archive = next((packed / "usr" / "src").glob("linux-source-*.tar.xz"), None)
    if archive is None:
        raise KernelError(f"{file.name} contains no archive of the source")
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    run(
        ["tar", "-xJf", str(archive), "-C", str(tree), "--strip-components=1"],
        f"cannot unpack {archive.name}",
    )
    shutil.rmtree(packed)
    file.unlink()
    stamp.write_text(package.version)
    return package.version


def _configure(tree: Path) -> None:
    """Writes the .config: tinyconfig, and all options of ours exactly as they are."""
    ours = OPTIONS.read_text()
    _make_quietly(tree, "tinyconfig")
    with (tree / ".config").open("a") as file:
        file.write(ours)
    _make_quietly(tree, "olddefconfig")
    bad = refused(parse_options(ours), parse_options((tree / ".config").read_text()))
    if bad:
        raise KernelError(f"this kernel source does not keep the options {', '.join(bad)}")


def _command(tree: Path, *targets: str) -> list[str]:
    # The kernel's build system must not see an outer make's settings.
    plain = [f"-u{name}" for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")]
    jobs = len(os.sched_getaffinity(0))
    return ["env", *plain, "nice", "-n", "10", "make", f"-j{jobs}", "-C", str(tree), *targets]


def _make_quietly(tree: Path, *targets: str) -> str:
    """Runs make; returns the last line of its output."""
    command = [*_command(tree, "-s", "--no-print-directory"), *targets]
    lines = run(command, f"make {targets[0]} failed for the debug kernel").strip().splitlines()
    return lines[-1] if lines else ""


def _make(tree: Path, report: Progress) -> None:
    log = tree.parent / "make.log"
    report("building the debug kernel", 0.0)
    end = time.monotonic() + _LIMIT
    with (
        log.open("w") as file,
        subprocess.Popen(
            _command(tree, "vmlinux", "modules"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        assert process.stdout is not None
        error = ""
        for number, line in enumerate(process.stdout):
            file.write(line)
            if not error and re.search(r"\berror\b|\*\*\*", line, re.IGNORECASE):
                error = line.strip()
            if number % 20 == 0:
                report("building the debug kernel", min(number / _STEPS, 0.99))
            if time.monotonic() > end:
                process.kill()
                error = f"not finished after {_LIMIT:.0f} s"
    if process.returncode:
        raise KernelError(f"the debug kernel does not build: {error or 'make failed'}; see {log}")


def _keep(tree: Path, root: Path, release: str) -> None:
    """Copies what the VM and the build of a module need, in the layout of Debian's packages."""
    boot = root / "boot"
    boot.mkdir(parents=True)
    image = boot / f"vmlinux-{release}"
    run(["objcopy", "--strip-debug", str(tree / "vmlinux"), str(image)], "cannot strip vmlinux")
    shutil.copyfile(tree / ".config", boot / f"config-{release}")
    shutil.copyfile(tree / "System.map", boot / f"System.map-{release}")
    install = [f"INSTALL_MOD_PATH={root}", "INSTALL_MOD_STRIP=1", f"DEPMOD={tool('depmod')}"]
    _make_quietly(tree, "modules_install", *install)
    headers = root / "usr" / "src" / f"linux-headers-{release}"
    headers.parent.mkdir(parents=True)
    script = f"scripts/package/install-extmod-build {headers}"
    _make_quietly(tree, "run-command", f"KBUILD_RUN_COMMAND={script}")
    for name in ("build", "source"):
        link = root / "lib" / "modules" / release / name
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../../usr/src/{headers.name}")
