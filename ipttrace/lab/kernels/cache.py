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
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipttrace.files import create, make_private_folder
from ipttrace.lab.kernels.apt import Package, download, matches, packages_of, version_key
from ipttrace.lab.kernels.arrange import arrange
from ipttrace.lab.kernels.error import KernelError
from ipttrace.lab.kernels.fit import fit
from ipttrace.lab.kernels.image import extract_vmlinux
from ipttrace.lab.kernels.tools import run, tool

SERIES: Final = ("6.1", "6.12")
"""The series that the tests run on."""

DEFAULT: Final = "6.1"

DEBUG: Final = "debug"
"""The name of the debug kernel, which ``debug.py`` builds."""

Progress = Callable[[str, float | None], None]
"""Called with a line of text and the share done (0 to 1); None if that is unknown."""

STAMP: Final = "complete.json"


@dataclass(frozen=True)
class Kernel:
    """One kernel in the cache."""

    release: str
    root: Path

    @property
    def arguments(self) -> tuple[str, ...]:
        """What this kernel's command line has besides that of all kernels."""
        return ("kmemleak=on",) if self.root.name == DEBUG else ()

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
        return matches(self.release, wanted)


def cache_dir() -> Path:
    """Returns the cache folder, which need not exist."""
    if own := os.environ.get("IPTTRACE_CACHE"):
        return Path(own).absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).absolute() / "ipttrace"
    return Path.home() / ".cache" / "ipttrace"


def available() -> list[Kernel]:
    """Returns the complete kernels in the cache, oldest release first."""
    folder = cache_dir() / "kernels"
    if not folder.is_dir():
        return []
    found = [Kernel(stamp.parent.name, stamp.parent) for stamp in folder.glob(f"[0-9]*/{STAMP}")]
    return sorted(found, key=lambda kernel: version_key(kernel.release))


def find(wanted: str) -> Kernel | None:
    """Returns the newest cached kernel of a release or series ("6.1"); None if there is none.

    The debug kernel is found by its name only.
    """
    if wanted == DEBUG:
        return _debug_kernel()
    return next((kernel for kernel in reversed(available()) if kernel.matches(wanted)), None)


def _debug_kernel() -> Kernel | None:
    root = cache_dir() / "kernels" / DEBUG
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return Kernel(str(json.loads((root / STAMP).read_text())["release"]), root)
    return None


def ensure(wanted: str = DEFAULT, progress: Progress | None = None) -> Kernel:
    """Returns the cached kernel of a release or series; downloads and unpacks a missing one.

    Raises KernelError, one line, if that fails.
    """
    if kernel := find(wanted):
        return kernel
    if wanted == DEBUG:
        raise KernelError("the debug kernel is not built yet: run `make debug-kernel`")
    if not re.fullmatch(r"\d[\w.+~-]*", wanted):
        raise KernelError(
            f"not a kernel release: {wanted!r}; use a series such as 6.1 or a complete release"
        )
    report = progress or (lambda text, share: None)
    kernels = cache_dir() / "kernels"
    try:
        make_private_folder(kernels)
        with locked(kernels / ".lock"):
            if kernel := find(wanted):
                return kernel
            return _fetch(wanted, kernels, report)
    except OSError as error:
        raise KernelError(f"cannot write to the cache {kernels}: {error}") from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock file ``path`` during the block."""
    with os.fdopen(create(path), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(wanted: str, kernels: Path, report: Progress) -> Kernel:
    report(f"searching Debian's package lists for Linux {wanted}", None)
    release, packages = packages_of(wanted, cache_dir() / "apt")
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
            run(["dpkg", "-x", str(file), str(root)], f"cannot unpack {file.name}")
        report(f"preparing Linux {release}", None)
        arrange(root, release)
        fit(root, release, packages[0].options, debs)
        run([tool("depmod"), "-b", str(root), release], f"cannot run depmod for {release}")
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
