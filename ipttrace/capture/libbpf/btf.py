# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel's BTF says of functions, tracepoints and enums.  Must not load programs."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf

BTF: Final = Path("/sys/kernel/btf")

# BTF_KIND_*
_POINTER: Final = 2
_STRUCT: Final = 4
_ENUM: Final = 6
_TYPEDEF: Final = 8
_CONST: Final = 10
_FUNC: Final = 12
_FUNC_PROTO: Final = 13


class _Type(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint32), ("info", ctypes.c_uint32), ("type", ctypes.c_uint32))

    @property
    def kind(self) -> int:
        return int(self.info) >> 24 & 0x1F


class _Parameter(ctypes.Structure):
    _fields_ = (("name", ctypes.c_uint32), ("type", ctypes.c_uint32))


def parameters(libbpf: Libbpf, module: str, function: str) -> list[str] | None:
    """What the function's parameters point to: the names of structs, "void", or "" for others.

    `module`: where it is unless it is built in, or "vmlinux" to look only there.  None if
    there is no such function.  Raises CaptureError if the BTF cannot be read.
    """
    lib = libbpf.lib
    with contextlib.ExitStack() as stack:
        kernel = lib.btf__load_vmlinux_btf()
        if not kernel:
            raise CaptureError(f"cannot read the kernel's BTF: {_reason()}")
        stack.callback(lib.btf__free, kernel)
        where = kernel
        found = lib.btf__find_by_name_kind(kernel, function.encode(), _FUNC)
        if found <= 0 and module != "vmlinux" and (BTF / module).exists():
            where = lib.btf__load_module_btf(module.encode(), kernel)
            if not where:
                raise CaptureError(f"cannot read the BTF of {module}: {_reason()}")
            stack.callback(lib.btf__free, where)
            found = lib.btf__find_by_name_kind(where, function.encode(), _FUNC)
        if found <= 0:
            return None
        address = lib.btf__type_by_id(where, _type(libbpf, where, found).type)
        proto = _Type.from_address(address)
        if proto.kind != _FUNC_PROTO:
            return None
        count = proto.info & 0xFFFF
        each = (_Parameter * count).from_address(address + ctypes.sizeof(_Type))
        return [_pointee(libbpf, where, one.type) for one in each]


def functions(libbpf: Libbpf, module: str, names: Iterable[str]) -> set[str]:
    """Which of these functions there are, in the kernel itself or in the module if it is loaded."""
    lib = libbpf.lib
    found: set[str] = set()
    with contextlib.ExitStack() as stack:
        kernel = lib.btf__load_vmlinux_btf()
        if not kernel:
            return found
        stack.callback(lib.btf__free, kernel)
        # Types of a module's BTF include the kernel's.
        where = lib.btf__load_module_btf(module.encode(), kernel) if (BTF / module).exists() else 0
        if where:
            stack.callback(lib.btf__free, where)
        for name in names:
            if lib.btf__find_by_name_kind(where or kernel, name.encode(), _FUNC) > 0:
                found.add(name)
    return found


def tracepoint_arguments(libbpf: Libbpf, name: str) -> int | None:
    """How many arguments a tracepoint of the kernel itself passes; None if there is none."""
    lib = libbpf.lib
    kernel = lib.btf__load_vmlinux_btf()
    if not kernel:
        raise CaptureError(f"cannot read the kernel's BTF: {_reason()}")
    try:
        found = lib.btf__find_by_name_kind(kernel, f"btf_trace_{name}".encode(), _TYPEDEF)
        if found <= 0:
            return None
        pointer = _type(libbpf, kernel, found).type
        proto = _type(libbpf, kernel, _type(libbpf, kernel, pointer).type)
        # The first one is the data that the tracepoint was registered with.
        return (proto.info & 0xFFFF) - 1 if proto.kind == _FUNC_PROTO else None
    finally:
        lib.btf__free(kernel)


def enumerators(libbpf: Libbpf, enum: str, module: str = "vmlinux") -> dict[int, str]:
    """The names of an enum's values, {} if there is no such enum; values modulo 2^32.

    `module`: which has it, or "vmlinux".
    """
    lib = libbpf.lib
    with contextlib.ExitStack() as stack:
        where = lib.btf__load_vmlinux_btf()
        if not where:
            return {}
        stack.callback(lib.btf__free, where)
        if module != "vmlinux":
            where = lib.btf__load_module_btf(module.encode(), where)
            if not where:
                return {}
            stack.callback(lib.btf__free, where)
        found = lib.btf__find_by_name_kind(where, enum.encode(), _ENUM)
        if found <= 0:
            return {}
        address = lib.btf__type_by_id(where, found)
        count = _Type.from_address(address).info & 0xFFFF
        each = (_Parameter * count).from_address(address + ctypes.sizeof(_Type))
        names = {}
        for one in each:  # struct btf_enum: its name, its value
            name: bytes | None = lib.btf__name_by_offset(where, one.name)
            names[int(one.type)] = (name or b"").decode(errors="replace")
        return names


def kernel_has_struct(libbpf: Libbpf, name: str) -> bool:
    """Whether the kernel itself, without modules, describes this struct's fields."""
    kernel = libbpf.lib.btf__load_vmlinux_btf()
    if not kernel:
        return False
    found = libbpf.lib.btf__find_by_name_kind(kernel, name.encode(), _STRUCT)
    libbpf.lib.btf__free(kernel)
    return bool(found > 0)


def _type(libbpf: Libbpf, btf: int, number: int) -> _Type:
    return _Type.from_address(libbpf.lib.btf__type_by_id(btf, number))


def _pointee(libbpf: Libbpf, btf: int, number: int) -> str:
    if not number:
        return ""  # "..."
    found = _type(libbpf, btf, number)
    if found.kind != _POINTER:
        return ""
    while found.type and found.kind in (_POINTER, _CONST):
        found = _type(libbpf, btf, found.type)
    if found.kind in (_POINTER, _CONST):
        return "void"
    name: bytes | None = libbpf.lib.btf__name_by_offset(btf, found.name)
    return (name or b"").decode()


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
