# SPDX-License-Identifier: GPL-2.0-only
"""The kernel cache: finds a kernel in it, or downloads and unpacks one.

A kernel is complete once its stamp file is there; it is unpacked beside its final
place and renamed, so an interrupted download leaves no incomplete kernel.

Must not install anything, nor import tui, view or textual.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipttrace.files import create, make_private_folder
from ipttrace.lab.kernels.apt import Package, download, packages_of
from ipttrace.lab.kernels.error import KernelError
from ipttrace.lab.kernels.image import extract_vmlinux

SERIES: Final = ("6.1", "6.12")
"""The series that the tests run on."""

DEFAULT: Final = "6.1"

Progress = Callable[[str, float | None], None]
"""Called with a line of text and the share done (0 to 1); None if that is unknown."""

STAMP: Final = "complete.json"


@dataclass(frozen=True)
class Kernel:
    """One kernel in the cache."""

    release: str
    root: Path

    @property
    def image(self) -> Path:
        """The file to boot: the unpacked ELF image if there is one, else the bzImage."""
        elf = self.root / "boot" / f"vmlinux-{self.release}"
        return elf if elf.exists() else self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """The folder to mount at ``/lib/modules/<release>``."""
        return self.root / "lib" / "modules" / self.release

    @property
    def headers(self) -> Path:
        """The folder for ``make -C``, which builds modules."""
        return self.root / "usr" / "src" / f"linux-headers-{self.release}"

    def matches(self, wanted: str) -> bool:
        """Returns whether ``wanted`` is this release or its series."""
        return self.release == wanted or self.release.startswith(wanted + ".")


def cache_dir() -> Path:
    """Returns the cache folder, which need not exist."""
    if own := os.environ.get("IPTTRACE_CACHE"):
        return Path(own).absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).absolute() / "ipttrace"
    return Path.home() / ".cache" / "ipttrace"


def _version_key(release: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", release))


def available() -> list[Kernel]:
    """Returns the complete kernels in the cache, oldest release first."""
    folder = cache_dir() / "kernels"
    if not folder.is_dir():
        return []
    found = [Kernel(stamp.parent.name, stamp.parent) for stamp in folder.glob(f"[0-9]*/{STAMP}")]
    return sorted(found, key=lambda kernel: _version_key(kernel.release))


def find(wanted: str) -> Kernel | None:
    """Returns the newest cached kernel of a release or series ("6.1"); None if there is none."""
    return next((kernel for kernel in reversed(available()) if kernel.matches(wanted)), None)


def ensure(wanted: str = DEFAULT, progress: Progress | None = None) -> Kernel:
    """Returns the cached kernel of a release or series; downloads and unpacks a missing one.

    Raises KernelError, one line, if that fails.
    """
    if kernel := find(wanted):
        return kernel
    if not re.fullmatch(r"\d[\w.+~-]*", wanted):
        raise KernelError(
            f"not a kernel release: {wanted!r}; use a series such as 6.1 or a complete release"
        )
    report = progress or (lambda text, share: None)
    kernels = cache_dir() / "kernels"
    try:
        make_private_folder(kernels)
        with _locked(kernels / ".lock"):
            if kernel := find(wanted):
                return kernel
            return _fetch(wanted, kernels, report)
    except OSError as error:
        raise KernelError(f"cannot write to the cache {kernels}: {error}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with os.fdopen(create(path), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(wanted: str, kernels: Path, report: Progress) -> Kernel:
    report(f"searching Debian's package lists for Linux {wanted}", None)
    release, packages = packages_of(wanted)
    _check_room(kernels, release, packages)
    for leftover in kernels.glob(".new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=kernels) as temporary:
        debs, root = Path(temporary) / "debs", Path(temporary) / "root"
        debs.mkdir()
        root.mkdir()
        files = download(
            packages, debs, lambda share: report(f"downloading Linux {release}", share)
        )
        for number, file in enumerate(files):
            report(f"unpacking Linux {release}", number / len(files))
            _run(["dpkg", "-x", str(file), str(root)], f"cannot unpack {file.name}")
        report(f"preparing Linux {release}", None)
        _make_relocatable(root, release)
        _run([_tool("depmod"), "-b", str(root), release], f"cannot run depmod for {release}")
        extract_vmlinux(root / "boot" / f"vmlinuz-{release}", root / "boot" / f"vmlinux-{release}")
        stamp = {package.name: package.version for package in packages}
        (root / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")
        root.chmod(0o755)
        final = kernels / release
        shutil.rmtree(final, ignore_errors=True)
        root.rename(final)
    report(f"Linux {release} is in the cache", 1.0)
    return Kernel(release, final)


def _check_room(folder: Path, release: str, packages: Sequence[Package]) -> None:
    # Plus the unpacked ELF image, which is in no package.
    need = sum(package.size + package.installed for package in packages) + 100_000_000
    free = shutil.disk_usage(folder).free
    if free < need:
        raise KernelError(
            f"Linux {release} needs {need / 1e6:.0f} MB in {folder}, {free / 1e6:.0f} MB are free:"
            " free some space, or set IPTTRACE_CACHE to another folder"
        )


def _make_relocatable(root: Path, release: str) -> None:
    """Replaces the headers package's absolute paths by relative ones inside ``root``."""
    source = root / "usr" / "src"
    makefile = source / f"linux-headers-{release}" / "Makefile"
    if match := re.search(r"/usr/src/(linux-headers-[\w.+~-]+)/Makefile", makefile.read_text()):
        makefile.write_text(f"include $(dir $(lastword $(MAKEFILE_LIST)))../{match[1]}/Makefile\n")
    for name in ("build", "source"):
        link = root / "lib" / "modules" / release / name
        if link.is_symlink():
            target = Path(os.readlink(link)).name
            link.unlink()
            link.symlink_to(f"../../../usr/src/{target}")


def _tool(name: str) -> str:
    """Returns the path of a system tool: an ordinary user's PATH lacks /sbin."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which(name, path=path) or name


def _run(command: Sequence[str], failure: str, limit: float = 600) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit
        )
    except FileNotFoundError:
        raise KernelError(f"{failure}: {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"{failure}: not finished after {limit:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        reason = lines[-1] if lines else f"exit status {done.returncode}"
        raise KernelError(f"{failure}: {reason}")


def show_progress(text: str, share: float | None) -> None:
    """A Progress on stderr: one line, rewritten, on a terminal; else each step once."""
    if sys.stderr.isatty():
        bar = "" if share is None else f" {share:4.0%}"
        ending = "\n" if share == 1.0 else ""
        sys.stderr.write(f"\r\x1b[K{text}{bar}{ending}")
        sys.stderr.flush()
    else:
        _print_once(text)


@functools.cache
def _print_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
