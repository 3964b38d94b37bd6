# SPDX-License-Identifier: GPL-2.0-only
"""The lab's kernels: Debian's kernel packages, unpacked into the cache.

A kernel is never installed: its packages are downloaded with ``apt-get
download`` and unpacked with ``dpkg -x`` into
``<cache>/kernels/<release>/{boot,lib/modules,usr}``, headers and kbuild
included, so that ``make -C kernel.headers M=...`` builds modules for it.  The
cache is ``$IPTTRACE_CACHE``, else ``$XDG_CACHE_HOME/ipttrace``, else
``~/.cache/ipttrace``.

Must not change what the host boots or has installed, and must not import
anything of the tui.
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

from ipttrace.lab.kernels.apt import Package, download, packages_of
from ipttrace.lab.kernels.error import KernelError
from ipttrace.lab.kernels.image import extract_vmlinux

__all__ = [
    "DEFAULT",
    "SERIES",
    "Kernel",
    "KernelError",
    "Progress",
    "available",
    "cache_dir",
    "ensure",
    "find",
    "show_progress",
]

SERIES: Final = ("6.1", "6.12")
"""The series that the tests run on."""

DEFAULT: Final = "6.1"

Progress = Callable[[str, float | None], None]
"""Called with a sentence and, where it can be known, the share done (0 to 1)."""

STAMP: Final = "complete.json"


@dataclass(frozen=True)
class Kernel:
    """One kernel in the cache."""

    release: str
    root: Path

    @property
    def image(self) -> Path:
        """What to boot: the unpacked ELF image where there is one, else the bzImage."""
        elf = self.root / "boot" / f"vmlinux-{self.release}"
        return elf if elf.exists() else self.root / "boot" / f"vmlinuz-{self.release}"

    @property
    def modules(self) -> Path:
        """The folder that belongs at ``/lib/modules/<release>``."""
        return self.root / "lib" / "modules" / self.release

    @property
    def headers(self) -> Path:
        """The folder for ``make -C``."""
        return self.root / "usr" / "src" / f"linux-headers-{self.release}"

    def is_of(self, wanted: str) -> bool:
        """Whether ``wanted`` names this release, or the series that it is of."""
        return self.release == wanted or self.release.startswith(wanted + ".")


def cache_dir() -> Path:
    """The cache folder; it need not exist."""
    if own := os.environ.get("IPTTRACE_CACHE"):
        return Path(own).absolute()
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg).absolute() / "ipttrace"
    return Path.home() / ".cache" / "ipttrace"


def _version_key(release: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", release))


def available() -> list[Kernel]:
    """The kernels that are complete in the cache, oldest release first."""
    folder = cache_dir() / "kernels"
    if not folder.is_dir():
        return []
    found = [Kernel(stamp.parent.name, stamp.parent) for stamp in folder.glob(f"[0-9]*/{STAMP}")]
    return sorted(found, key=lambda kernel: _version_key(kernel.release))


def find(wanted: str) -> Kernel | None:
    """The newest cached kernel of a release or series ("6.1"); None where there is none."""
    return next((kernel for kernel in reversed(available()) if kernel.is_of(wanted)), None)


def ensure(wanted: str = DEFAULT, progress: Progress | None = None) -> Kernel:
    """The cached kernel of a release or series, downloaded and unpacked when missing.

    Raises KernelError, one line, when it cannot be had.
    """
    if kernel := find(wanted):
        return kernel
    if not re.fullmatch(r"\d[\w.+~-]*", wanted):
        raise KernelError(
            f"{wanted!r} is no kernel release: give a series such as 6.1, or a release in full"
        )
    report = progress or (lambda text, share: None)
    kernels = cache_dir() / "kernels"
    try:
        kernels.mkdir(parents=True, exist_ok=True)
        with _locked(kernels / ".lock"):
            if kernel := find(wanted):
                return kernel
            return _fetch(wanted, kernels, report)
    except OSError as error:
        raise KernelError(f"cannot fill the cache {kernels}: {error}") from error


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(wanted: str, kernels: Path, report: Progress) -> Kernel:
    report(f"looking for Linux {wanted} in Debian's package lists", None)
    release, packages = packages_of(wanted)
    _check_room(kernels, release, packages)
    for left in kernels.glob(".new-*"):
        shutil.rmtree(left, ignore_errors=True)
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
        _run([_tool("depmod"), "-b", str(root), release], f"depmod for {release}")
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
    # The ELF image comes on top of what the packages say.
    need = sum(package.size + package.installed for package in packages) + 100_000_000
    free = shutil.disk_usage(folder).free
    if free < need:
        raise KernelError(
            f"Linux {release} needs {need / 1e6:.0f} MB in {folder}, {free / 1e6:.0f} MB are free:"
            " make room, or set IPTTRACE_CACHE to another folder"
        )


def _make_relocatable(root: Path, release: str) -> None:
    """Turn the absolute paths of the headers package into paths inside ``root``."""
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
    """An administrator's tool: /sbin is not in everybody's PATH."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which(name, path=path) or name


def _run(command: Sequence[str], what: str, limit: float = 600) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit
        )
    except FileNotFoundError:
        raise KernelError(f"{what}: {command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise KernelError(f"{what}: not done within {limit:.0f} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        why = lines[-1] if lines else f"exit status {done.returncode}"
        raise KernelError(f"{what}: {why}")


def show_progress(text: str, share: float | None) -> None:
    """A Progress that writes to stderr: one changing line on a terminal, else each step once."""
    if sys.stderr.isatty():
        bar = "" if share is None else f" {share:4.0%}"
        ending = "\n" if share == 1.0 else ""
        sys.stderr.write(f"\r\x1b[K{text}{bar}{ending}")
        sys.stderr.flush()
    else:
        _say_once(text)


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
