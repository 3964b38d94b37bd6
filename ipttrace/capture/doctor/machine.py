# SPDX-License-Identifier: GPL-2.0-only
"""A machine's properties, read from the files below one root folder.

From files only, so that a test can make up any machine as a folder; except whether the
kernel accepts the BPF programs, which only an attempt shows.  What cannot be read counts as
absent.  Must not change or run anything else, or import bcc (which takes seconds).
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.kernel.programs import OBJECT
from ipttrace.capture.libbpf import object_file

MODULE: Final = kmod.NAME
PINS: Final = "sys/fs/bpf/ipttrace"

_PIECE: Final = 64 << 10
_LARGEST: Final = 4 << 20
_LARGEST_KALLSYMS: Final = 64 << 20
_TOOL_FOLDERS: Final = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
_LIBRARY_FOLDERS: Final = ("usr/lib", "usr/lib64", "lib", "lib64", "usr/local/lib")
# Those that the engines need; kallsyms has some 200,000 others.
_SYMBOLS: Final = frozenset(
    (
        "register_kretprobe",
        "nf_log_trace",
        "ipt_do_table",
        "ip6t_do_table",
        "bpf_prog_create",
        "nft_register_expr",
        "nfulnl_log_packet",
    )
)
# Linux capability numbers, linux/capability.h.
CAPABILITIES: Final = {
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_ADMIN": 21,
    "CAP_PERFMON": 38,
    "CAP_BPF": 39,
}


def _find_bcc() -> bool:
    """Returns whether Debian's bcc can be imported; PyPI has another package of that name."""
    try:
        spec = importlib.util.find_spec("bcc")
    except (ImportError, ValueError):
        return False
    folders = (spec and spec.submodule_search_locations) or ()
    return any((Path(folder) / "libbcc.py").exists() for folder in folders)


def _accepted() -> tuple[bool, str]:
    """Of a machine made of files: its kernel accepts all programs."""
    return True, ""


def _attempt() -> tuple[bool, str]:
    """Whether this kernel accepts the BPF engine's programs.

    And why it refuses them, or why it accepts them for kprobes only.
    """
    from ipttrace.capture.bpf import programs

    try:
        return True, programs.attempt()
    except CaptureError as error:
        return False, str(error)


def _accepted_outside(*, stations: bool) -> tuple[bool, str]:
    return True, ""


def _attempt_outside(*, stations: bool) -> tuple[bool, str]:
    """Whether this kernel accepts the programs of drops, or those of stations as well.

    And why it refuses them, or the functions that it lacks.
    """
    from ipttrace.capture.drops import programs

    try:
        return True, ", ".join(sorted(programs.attempt(stations=stations)))
    except CaptureError as error:
        return False, str(error)


@dataclass(frozen=True)
class Host:
    """A machine: the files below `root`, and an environment.

    `bcc`, `bpf_object`: whether bcc can be imported and the BPF programs are compiled.
    `source_hash`: name of the folder in the cache for this version's module; None for any.
    `try_bpf`: tries the BPF engine's programs: whether the kernel accepts them, and why it
    refuses them, or accepts them for kprobes only, or "".
    `try_outside`: the same for drops and stations: with the functions that the kernel lacks.
    """

    root: Path
    env: Mapping[str, str] = field(default_factory=dict)
    bcc: bool = True
    bpf_object: bool = True
    source_hash: str | None = None
    try_bpf: Callable[[], tuple[bool, str]] = _accepted
    try_outside: Callable[..., tuple[bool, str]] = _accepted_outside

    @staticmethod
    def here() -> Host:
        """Returns the machine that this process runs on."""
        try:
            source_hash = kmod.built_path("any").parent.name
        except (CaptureError, OSError):
            source_hash = None
        try:
            built = object_file(OBJECT).exists()
        except CaptureError:
            built = False
        return Host(
            Path("/"), os.environ, _find_bcc(), built, source_hash, _attempt, _attempt_outside
        )

    def read(self, path: str) -> str | None:
        """Returns the text of a file, 4 MB at most; None if it cannot be read."""
        try:
            with open(self.root / path, "rb") as file:
                # In pieces: /proc/sys fails with ENOMEM if megabytes are requested.
                pieces = list(islice(iter(partial(file.read1, _PIECE), b""), _LARGEST // _PIECE))
        except OSError:
            return None
        return b"".join(pieces).decode("utf-8", "replace")

    def word(self, path: str) -> str | None:
        """Returns the one word or line in a file under /proc/sys or /sys; None if unreadable."""
        text = self.read(path)
        return None if text is None else text.strip()

    def exists(self, path: str) -> bool:
        """Returns whether a file or folder exists."""
        try:
            return (self.root / path).exists()
        except OSError:
            return False

    def link(self, path: str) -> str:
        """Returns the target of a symbolic link, unresolved; "" if it is none."""
        try:
            return os.readlink(self.root / path)
        except OSError:
            return ""

    def owner(self, path: str) -> int | None:
        """Returns the user id of a file's owner; None if it does not exist."""
        try:
            return (self.root / path).stat().st_uid
        except OSError:
            return None

    def has_module(self, name: str) -> bool:
        """Returns whether this kernel's modules include `name`, such as net/netfilter/nf_tables."""
        path = self.root / "lib/modules" / self.release / "kernel" / name
        try:
            return any(path.parent.glob(f"{path.name}.ko*"))
        except OSError:
            return False

    def tool(self, name: str) -> bool:
        """Returns whether a command is installed."""
        return any(self.exists(f"{folder}/{name}") for folder in _TOOL_FOLDERS)

    def library(self, name: str) -> bool:
        """Returns whether a shared library is installed, by its soname."""
        for folder in _LIBRARY_FOLDERS:
            try:
                if any((self.root / folder).glob(f"*-linux-gnu*/{name}")):
                    return True
            except OSError:
                continue
            if self.exists(f"{folder}/{name}"):
                return True
        return False

    @cached_property
    def release(self) -> str:
        """As `uname -r`."""
        return self.word("proc/sys/kernel/osrelease") or "unknown"

    @cached_property
    def version(self) -> tuple[int, int] | None:
        """Major and minor number of the kernel; None if the release does not begin with them."""
        parts = self.release.split("-")[0].split(".")
        if len(parts) < 2 or not (parts[0].isdecimal() and parts[1].isdecimal()):
            return None
        return int(parts[0]), int(parts[1])

    @cached_property
    def _status(self) -> dict[str, str]:
        lines = (self.read("proc/self/status") or "").splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

    @cached_property
    def root_user(self) -> bool:
        """Whether the effective user is root."""
        return self._status.get("Uid", "").split()[1:2] == ["0"]

    @cached_property
    def capabilities(self) -> frozenset[str]:
        """Those of CAPABILITIES that are effective in this process."""
        try:
            bits = int(self._status.get("CapEff", "0"), 16)
        except ValueError:
            bits = 0
        return frozenset(name for name, bit in CAPABILITIES.items() if bits >> bit & 1)

    @cached_property
    def in_user_namespace(self) -> bool:
        """Whether this process is in a user namespace, whose root is not the host's."""
        fields = (self.read("proc/self/uid_map") or "").split()
        return bool(fields) and fields != ["0", "0", "4294967295"]

    @cached_property
    def symbols(self) -> frozenset[str] | None:
        """Those of the kernel's symbols that the engines need; None if the kernel hides them."""
        try:
            with open(self.root / "proc/kallsyms", "rb") as file:
                text = file.read(_LARGEST_KALLSYMS)
        except OSError:
            return None
        if not text.strip():
            return None
        # A line: address, type, name; of a module's symbol also a tab and the module.
        return frozenset(
            name
            for name in _SYMBOLS
            if f" {name}\n".encode() in text or f" {name}\t".encode() in text
        )

    @cached_property
    def config(self) -> dict[str, str] | None:
        """The kernel's configuration (`CONFIG_X` → value); None if it cannot be found."""
        text = self._packed_config()
        for path in (
            f"boot/config-{self.release}",
            f"lib/modules/{self.release}/config",
            f"lib/modules/{self.release}/build/.config",
        ):
            text = text if text is not None else self.read(path)
        if text is None:
            return None
        pairs = (line.partition("=") for line in text.splitlines() if line.startswith("CONFIG_"))
        return {name: value for name, _, value in pairs}

    def _packed_config(self) -> str | None:
        try:
            with gzip.open(self.root / "proc/config.gz") as file:
                return file.read(_LARGEST).decode("utf-8", "replace")
        except (OSError, EOFError, zlib.error):
            return None

    @cached_property
    def modules(self) -> frozenset[str]:
        """Names of the loaded modules, and of built-in ones that appear in /sys/module."""
        names = {line.split(" ")[0] for line in (self.read("proc/modules") or "").splitlines()}
        with contextlib.suppress(OSError):
            names.update(os.listdir(self.root / "sys/module"))
        return frozenset(names)

    @cached_property
    def mounts(self) -> dict[str, str]:
        """Mount point → file system type."""
        lines = (self.read("proc/self/mounts") or "").splitlines()
        return {parts[1]: parts[2] for parts in map(str.split, lines) if len(parts) > 2}

    @cached_property
    def module_folder(self) -> Path:
        """The cache of modules built for this kernel, below `root`."""
        if folder := self.env.get("IPTTRACE_CACHE"):
            cache = Path(folder)
        elif folder := self.env.get("XDG_CACHE_HOME"):
            cache = Path(folder) / "ipttrace"
        else:
            cache = Path(self.env.get("HOME") or "/root") / ".cache" / "ipttrace"
        return self.root / str(cache).lstrip("/") / "modules" / self.release

    @cached_property
    def built_module(self) -> Path | None:
        """The module for this kernel and this version, from the cache or installed; or None."""
        try:
            found = sorted(self.module_folder.glob(f"{self.source_hash or '*'}/{MODULE}.ko"))
            return found[0] if found else kmod.installed(self.release, self.root / "lib/modules")
        except OSError:
            return None

    @cached_property
    def pins_holder(self) -> int | None:
        """Process id of the run that has locked the folder of pins; None if none or unknown."""
        try:
            pins = (self.root / PINS).stat()
        except OSError:
            return None
        device = f"{os.major(pins.st_dev):02x}:{os.minor(pins.st_dev):02x}:{pins.st_ino}"
        for line in (self.read("proc/locks") or "").splitlines():
            parts = line.split()
            if len(parts) > 5 and parts[1] == "FLOCK" and parts[5] == device:
                return int(parts[4]) if parts[4].isdecimal() else None
        return None
