# SPDX-License-Identifier: GPL-2.0-only
"""The kernel module: found, built, inserted, removed.

A built module is kept in the cache under the kernel's release and a hash of
its sources, so that neither another kernel nor another version ever meets it.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError

NAME: Final = "ipttrace"
LOADED: Final = Path("/sys/module") / NAME

_SYSCALLS: Final = {  # finit_module(2), delete_module(2)
    "x86_64": (313, 176),
    "aarch64": (273, 106),
}


def cache_folder() -> Path:
    """Where what was built or unpacked is kept."""
    if folder := os.environ.get("IPTTRACE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipttrace"


def sources() -> Path:
    """The folder that holds kmod/ and bpf/: the checkout, or where it is installed."""
    for folder in (Path(__file__).resolve().parents[3], Path("/usr/src/ipttrace")):
        if (folder / "kmod" / "Kbuild").exists():
            return folder
    raise CaptureError("the sources of the kernel module are missing: reinstall ipttrace")


def _source_files(folder: Path) -> list[Path]:
    kmod = folder / "kmod"
    found = [kmod / "Kbuild", *kmod.glob("*.[ch]"), *(kmod / "uapi").glob("*.h")]
    return [*sorted(found), folder / "bpf" / "record.h"]


def built_path(release: str, folder: Path | None = None) -> Path:
    """Where the module for the kernel `release` is, or would be, in the cache."""
    folder = folder or sources()
    digest = hashlib.sha256()
    for path in _source_files(folder):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return cache_folder() / "modules" / release / digest.hexdigest()[:16] / f"{NAME}.ko"


def build(kdir: Path, release: str, folder: Path | None = None) -> Path:
    """Builds the module against the headers in `kdir`, unless the cache has it.

    Returns its path.  Raises CaptureError with the compiler's first complaint.
    """
    folder = folder or sources()
    target = built_path(release, folder)
    if target.exists():
        return target
    for tool in ("make", "gcc"):
        if not shutil.which(tool):
            raise CaptureError(f"{tool} is missing, to build the module: apt-get install {tool}")
    with tempfile.TemporaryDirectory(prefix="ipttrace-kmod-") as work:
        for path in _source_files(folder):
            copy = Path(work) / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        command = ["make", "-s", "-C", str(kdir), f"M={work}/kmod", *_compiler(kdir), "modules"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
        built = Path(work) / "kmod" / f"{NAME}.ko"
        if done.returncode or not built.exists():
            lines = (done.stderr or done.stdout).strip().splitlines()
            why = next((line for line in lines if "error" in line.lower()), "make failed")
            raise CaptureError(f"the module does not build for {release}: {why}")
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = target.with_suffix(f".{os.getpid()}")
        shutil.copyfile(built, copy)
        copy.rename(target)
    return target


def _compiler(kdir: Path) -> list[str]:
    """The compiler that the kernel was built with; where it is not installed, gcc."""
    config = kdir / "include" / "config" / "auto.conf"
    try:
        text = config.read_text(errors="replace")
    except OSError:
        return []
    for line in text.splitlines():
        if line.startswith("CONFIG_GCC_VERSION="):
            major = int(line.partition("=")[2]) // 10000
            return [f"CC=gcc-{major}" if shutil.which(f"gcc-{major}") else "CC=gcc"]
    return []


def installed(release: str, root: Path = Path("/lib/modules")) -> Path | None:
    """The module that DKMS or a package installed for the kernel `release`."""
    folder = root / release
    for place in ("updates/dkms", "updates", "extra"):
        for path in sorted((folder / place).glob(f"{NAME}.ko*")):
            return path
    return None


def find_or_build() -> Path:
    """The module for the running kernel: of the cache, installed, or built now.

    Raises CaptureError with the one thing to do when it cannot be had.
    """
    release = platform.release()
    path = built_path(release)
    if path.exists():
        return path
    if (package := installed(release)) is not None:
        return package
    kdir = Path("/lib/modules") / release / "build"
    if not (kdir / "Makefile").exists():
        raise CaptureError(
            f"no module is built for {release}, and its headers are missing:"
            f" apt install linux-headers-{release}"
        )
    return build(kdir, release)


def loaded() -> bool:
    """Whether a module of our name is loaded."""
    return LOADED.exists()


def _syscall(which: int, *arguments: object) -> int:
    try:
        number = _SYSCALLS[platform.machine()][which]
    except KeyError:
        raise CaptureError(f"{platform.machine()} is not supported") from None
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) == 0:
        return 0
    return ctypes.get_errno()


def insert(path: Path) -> None:
    """Inserts the module.  Raises CaptureError; one line that says what to do."""
    if path.suffix != ".ko":
        # Compressed, as distributions have them: modprobe knows how.
        done = subprocess.run(["modprobe", NAME], capture_output=True, text=True, errors="replace")
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["failed"]
            raise CaptureError(f"{path} cannot be inserted: {said[-1]}")
        return
    with open(path, "rb") as file:
        code = _syscall(0, ctypes.c_int(file.fileno()), b"", ctypes.c_int(0))
    if code in (0, errno.EEXIST):
        return
    raise CaptureError(_why_not(code, path))


def _why_not(code: int, path: Path) -> str:
    release = platform.release()
    if code in (errno.EKEYREJECTED, errno.ENOKEY):
        return (
            "the kernel takes signed modules only (module.sig_enforce or Secure Boot): sign"
            f" {path} with a key that is enrolled (kmodsign, mokutil --import), or use dkms"
        )
    if code == errno.EPERM:
        if os.geteuid() == 0:
            return (
                "the kernel refuses the module (Secure Boot's lockdown, kernel.modules_disabled,"
                f" or a container): sign {path}, or run on the host"
            )
        return "inserting a module needs root: run with sudo"
    if code == errno.ENOSYS:
        return f"this kernel ({release}) cannot load modules (CONFIG_MODULES): see ipttrace doctor"
    if code == errno.ENOEXEC:
        return f"{path} was built for another kernel than {release}: remove it and start again"
    return f"inserting {path} failed: {os.strerror(code)}; dmesg says more"


def remove(patience: float = 2.0) -> None:
    """Removes the module if it is there.  Raises CaptureError when it stays in use.

    A process that was killed may still be closing its sockets: `patience` is
    the time in seconds that it is given.
    """
    deadline = time.monotonic() + patience
    while loaded():
        code = _syscall(1, NAME.encode(), ctypes.c_int(os.O_NONBLOCK))
        if code in (0, errno.ENOENT):
            return
        if code not in (errno.EAGAIN, errno.EBUSY) or time.monotonic() > deadline:
            raise CaptureError(
                f"the module is held by another program ({os.strerror(code)}): stop that"
            )
        time.sleep(0.02)
