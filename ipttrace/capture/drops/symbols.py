# SPDX-License-Identifier: GPL-2.0-only
"""Names of addresses in the kernel's code: by bcc's symbol cache, else from /proc/kallsyms.

Both are read when the first name is wanted, and again once modules have come or gone.  bcc's
cache is its library's: importing the Python package would take a second.  Must not pass on an
address.
"""

from __future__ import annotations

import bisect
import ctypes
from pathlib import Path
from typing import Final

_MODULES: Final = Path("/proc/modules")
_SYMBOLS: Final = Path("/proc/kallsyms")
_MOST_OFFSET: Final = 1 << 20  # of a place in a function: beyond, the symbol is another one's
_MOST_NAME: Final = 128
_MOST_KNOWN: Final = 1 << 16


class _Symbol(ctypes.Structure):
    """struct bcc_symbol (bcc_syms.h)."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("demangled", ctypes.c_char_p),
        ("module", ctypes.c_char_p),
        ("offset", ctypes.c_uint64),
    )


class _BccCache:
    """Raises OSError without bcc's library."""

    def __init__(self) -> None:
        self._lib = lib = ctypes.CDLL("libbcc.so.0")
        lib.bcc_symcache_new.restype = ctypes.c_void_p
        lib.bcc_symcache_new.argtypes = [ctypes.c_int, ctypes.c_void_p]
        lib.bcc_free_symcache.argtypes = [ctypes.c_void_p, ctypes.c_int]
        lib.bcc_symcache_resolve_no_demangle.argtypes = [
            ctypes.c_void_p, ctypes.c_uint64, ctypes.POINTER(_Symbol),
        ]  # fmt: skip
        self._cache = lib.bcc_symcache_new(-1, None)  # -1: the kernel

    def find(self, address: int) -> tuple[bytes, bytes, int] | None:
        found = _Symbol()
        if self._lib.bcc_symcache_resolve_no_demangle(self._cache, address, ctypes.byref(found)):
            return None
        return found.name or b"", found.module or b"", int(found.offset)

    def close(self) -> None:
        self._lib.bcc_free_symcache(self._cache, -1)


class _Kallsyms:
    """Raises OSError if they cannot be read."""

    def __init__(self) -> None:
        # Address, type, name and, after a tab, the module in brackets.
        lines = _SYMBOLS.read_bytes().splitlines()
        found = ((int(line[:16], 16), line[19:]) for line in lines)
        self._symbols = sorted(one for one in found if one[0])
        self._starts = [start for start, _ in self._symbols]

    def find(self, address: int) -> tuple[bytes, bytes, int] | None:
        at = bisect.bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        start, text = self._symbols[at]
        name, _, module = text.partition(b"\t")
        return name, module.strip(b"[]"), address - start

    def close(self) -> None:
        pass


class Symbols:
    """The names; the same for an address until modules change."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}
        self._source: _BccCache | _Kallsyms | None = None
        self._modules = b""

    def name(self, address: int) -> str:
        """The function and the offset in it, such as "ip_rcv+0x1d2 [module]"; "": unknown."""
        known = self._names.get(address)
        if known is None:
            if len(self._names) >= _MOST_KNOWN:
                self._names.clear()
            known = self._names[address] = self._find(address)
        return known

    def _find(self, address: int) -> str:
        try:
            modules = _MODULES.read_bytes()
        except OSError:
            modules = b""  # a kernel without modules
        if self._source is None or modules != self._modules:
            self._modules = modules
            self._names.clear()
            if self._source is not None:
                self._source.close()
            self._source = _open()
        found = None if self._source is None else self._source.find(address)
        if found is None:
            return ""
        name, module, offset = found
        if not name or offset >= _MOST_OFFSET:
            return ""
        text = f"{name.decode(errors='replace')}+{offset:#x}"
        if module and module != b"kernel":
            text = f"{text} [{module.decode(errors='replace')}]"
        return text[:_MOST_NAME] if text.isprintable() else ""


def _open() -> _BccCache | _Kallsyms | None:
    for kind in (_BccCache, _Kallsyms):
        try:
            return kind()
        except (OSError, AttributeError, ValueError):
            continue
    return None
