# SPDX-License-Identifier: GPL-2.0-only
"""Finds, builds, inserts and removes the kernel module.

A built module is kept in the cache under the kernel's release and a hash of its sources,
so that it is never used with another kernel or another version of ipttrace.

Root inserts only what root alone can have made: file and folders belong to root, and no other
user can write there.  If the environment names another user's cache (sudo that keeps HOME),
root builds in /var/cache/ipttrace instead.  Not so in the throwaway VM, which is its
user's, like the cache: that user's build is inserted there.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Final

from ipttrace.capture import breakpoints
from ipttrace.capture.errors import CaptureError
from ipttrace.files import create, is_roots_file, is_roots_folder, make_private_folder

NAME: Final = "ipttrace"
LOADED: Final = Path("/sys/module") / NAME
_DEPENDS_ON: Final = Path("/sys/module/x_tables")
ROOTS_CACHE: Final = Path("/var/cache/ipttrace")

_SYSCALLS: Final = {  # finit_module(2), delete_module(2)
    "x86_64": (313, 176),
    "aarch64": (273, 106),
}


def cache_folder() -> Path:
    """Where built modules and unpacked kernels are kept."""
    if folder := os.environ.get("IPTTRACE_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipttrace"


def sources() -> Path:
    """The folder that contains kmod/ and bpf/: the checkout, or where they are installed."""
    for folder in (Path(__file__).resolve().parents[3], Path("/usr/src/ipttrace")):
        if (folder / "kmod" / "Kbuild").exists():
            return folder
    raise CaptureError("the sources of the kernel module are missing: reinstall ipttrace")


def _source_files(folder: Path) -> list[Path]:
    kmod = folder / "kmod"
    found = [kmod / "Kbuild", *kmod.glob("*.[ch]"), *(kmod / "uapi").glob("*.h")]
    return [*sorted(found), folder / "bpf" / "record.h"]


def built_path(release: str, folder: Path | None = None, cache: Path | None = None) -> Path:
    """The path in the cache of the module for the kernel `release`, built or not."""
    files = _source_files(folder or sources())
    digest = _digest(tuple((path, path.stat().st_mtime_ns, path.stat().st_size) for path in files))
    return (cache or cache_folder()) / "modules" / release / digest[:16] / f"{NAME}.ko"


@cache
def _digest(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of the files' contents; asked several times at a start.  With time in ns and size."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def build(kdir: Path, release: str, folder: Path | None = None, cache: Path | None = None) -> Path:
    """Builds the module with the headers in `kdir`, unless it is in the cache.

    Returns its path.  Raises CaptureError with the first error of the build.
    """
    folder = folder or sources()
    target = built_path(release, folder, cache)
    if _usable(target):
        return target
    for tool in ("make", "gcc"):
        if not shutil.which(tool):
            raise CaptureError(f"{tool} is needed to build the module: apt-get install {tool}")
    with tempfile.TemporaryDirectory(prefix="ipttrace-kmod-", dir=_workplace()) as work:
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
            raise CaptureError(f"the module does not build for {release}: {_reason(lines)}")
        try:
            make_private_folder(target.parent)
            copy = target.with_suffix(f".{os.getpid()}")
            copy.unlink(missing_ok=True)
            with built.open("rb") as file, os.fdopen(create(copy, exclusive=True), "wb") as into:
                shutil.copyfileobj(file, into)
            copy.rename(target)
        except OSError as error:
            raise CaptureError(f"cannot keep the module as {target}: {error.strerror}") from error
    return target


def _reason(lines: list[str]) -> str:
    """Why a build failed: what the sources say is missing (#error), else the first error."""
    for line in lines:
        if found := re.search(r'#error "(.*)"', line):
            return found[1]
    return next((line for line in lines if "error" in line.lower()), "make failed")


def _usable(path: Path) -> bool:
    """Whether a module is at `path`; for root: one that root may insert."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not _is_particular() or is_roots_file(fd)
    finally:
        os.close(fd)


def _is_particular() -> bool:
    """Whether it matters whose the module is: to root, but not in the throwaway VM."""
    return os.geteuid() == 0 and os.environ.get("IPTTRACE_GUEST") != "1"


def _workplace() -> str | None:
    """A folder to build in, where no other user can replace it; None for Python's own choice."""
    if not _is_particular() or is_roots_folder(Path(tempfile.gettempdir())):
        return None
    return "/tmp"


def _compiler(kdir: Path) -> list[str]:
    """An argument that chooses the kernel's own version of gcc, if it is installed."""
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
    """The module for the running kernel: from the cache, installed, or built now.

    Raises CaptureError with what to do if none of these is possible.
    """
    release = platform.release()
    cache = cache_folder()
    path = built_path(release, cache=cache)
    if _is_particular() and not is_roots_folder(path.parent):
        cache = ROOTS_CACHE
        path = built_path(release, cache=cache)
    if _usable(path):
        return path
    if (package := installed(release)) is not None:
        return package
    kdir = Path("/lib/modules") / release / "build"
    if not (kdir / "Makefile").exists():
        raise CaptureError(
            f"no module is built for {release}, and its headers are missing:"
            f" apt install linux-headers-{release}"
        )
    return build(kdir, release, cache=cache)


def loaded() -> bool:
    """Whether a module named ipttrace is loaded."""
    return LOADED.exists()


def _syscall(which: int, *arguments: object) -> int:
    """Calls finit_module (0) or delete_module (1) and returns the errno, or 0."""
    try:
        number = _SYSCALLS[platform.machine()][which]
    except KeyError:
        raise CaptureError(f"{platform.machine()} is not supported") from None
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(number), *arguments) == 0:
        return 0
    return ctypes.get_errno()


def insert(path: Path) -> None:
    """Inserts the module, for root only one of root's.  Raises CaptureError with what to do."""
    if path.suffix != ".ko":
        # Compressed, as in distributions: modprobe can read it.
        done = subprocess.run(["modprobe", NAME], capture_output=True, text=True, errors="replace")
        if done.returncode:
            errors = done.stderr.strip().splitlines() or ["modprobe failed"]
            raise CaptureError(f"cannot insert {path}: {errors[-1]}")
        return
    with open(path, "rb") as file:
        if _is_particular() and not is_roots_file(file.fileno()):
            raise CaptureError(
                f"{path} or a folder above it belongs to another user, or others can write there:"
                " remove it and start again"
            )
        if not _DEPENDS_ON.exists():
            subprocess.run(["modprobe", "-q", _DEPENDS_ON.name], check=False)
        code = _syscall(0, ctypes.c_int(file.fileno()), b"", ctypes.c_int(0))
    if code in (0, errno.EEXIST):
        return
    raise CaptureError(_insert_error(code, path))


def _insert_error(code: int, path: Path) -> str:
    release = platform.release()
    if code in (errno.EKEYREJECTED, errno.ENOKEY):
        return (
            "the kernel accepts signed modules only (module.sig_enforce or Secure Boot): sign"
            f" {path} with an enrolled key (kmodsign, mokutil --import), or use dkms"
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
        return f"{path} was built for a kernel other than {release}: remove it and start again"
    return f"cannot insert {path}: {os.strerror(code)}; see dmesg"


def remove(patience: float = 2.0) -> None:
    """Removes the module if it is loaded.  Raises CaptureError if it stays in use.

    `patience`: seconds to wait for a killed process to close its sockets, and for the rules of
    a namespace that is gone.
    """
    deadline = time.monotonic() + patience
    while loaded():
        code = _syscall(1, NAME.encode(), ctypes.c_int(os.O_NONBLOCK))
        if code in (0, errno.ENOENT):
            return
        if code not in (errno.EAGAIN, errno.EBUSY) or time.monotonic() > deadline:
            if found := breakpoints.tables():
                raise CaptureError(
                    f"the module stays loaded: {breakpoints.described(found)} use it;"
                    " delete them first"
                )
            raise CaptureError(
                f"the module is in use by another program ({os.strerror(code)}): stop it first"
            )
        time.sleep(0.02)
