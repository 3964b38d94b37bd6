# SPDX-License-Identifier: GPL-2.0-only
"""libbpf through ctypes, and the compiled BPF objects, for all engines that load them.

Objects are compiled ahead of time; libbpf relocates them for the running kernel (CO-RE).
Beside it:

ring      reads a ring to which programs write
btf       what the kernel's BTF says of its functions and enums
filter    EXPR for programs that interpret it
counters  the counters of programs
objects   a compiled object, loaded; its programs, attached together

Must not import an engine.
"""

from __future__ import annotations

import ctypes
import itertools
import os
from pathlib import Path
from typing import Any, Final

from ipttrace.capture.errors import CaptureError

_SOCKET_FILTER: Final = 1  # BPF_PROG_TYPE_SOCKET_FILTER
_INSTRUCTION_SIZE: Final = 8  # struct bpf_insn
_LONGEST_WARNING: Final = 1 << 21  # bytes: the verifier gives its reason at the end
_POINTERS: Final = (  # functions that return a pointer, NULL on an error
    "bpf_object__open_file",
    "bpf_object__find_program_by_name",
    "bpf_object__find_map_by_name",
    "bpf_object__next_program",
    "bpf_program__attach",
    "bpf_program__attach_cgroup",
    "bpf_map__initial_value",
    "btf__load_vmlinux_btf",
    "btf__load_module_btf",
    "btf__type_by_id",
)
_STRINGS: Final = ("bpf_program__name", "btf__name_by_offset")
_ARGUMENTS: Final[dict[str, list[Any]]] = {
    "bpf_object__open_file": [ctypes.c_char_p, ctypes.c_void_p],
    "bpf_object__load": [ctypes.c_void_p],
    "bpf_object__close": [ctypes.c_void_p],
    "bpf_object__pin_programs": [ctypes.c_void_p, ctypes.c_char_p],
    "bpf_object__pin_maps": [ctypes.c_void_p, ctypes.c_char_p],
    "bpf_object__find_program_by_name": [ctypes.c_void_p, ctypes.c_char_p],
    "bpf_object__find_map_by_name": [ctypes.c_void_p, ctypes.c_char_p],
    "bpf_object__next_program": [ctypes.c_void_p, ctypes.c_void_p],
    "bpf_program__name": [ctypes.c_void_p],
    "bpf_program__set_autoload": [ctypes.c_void_p, ctypes.c_bool],
    "bpf_program__attach": [ctypes.c_void_p],
    "bpf_program__attach_cgroup": [ctypes.c_void_p, ctypes.c_int],
    "bpf_program__fd": [ctypes.c_void_p],
    "bpf_map__fd": [ctypes.c_void_p],
    "bpf_map__reuse_fd": [ctypes.c_void_p, ctypes.c_int],
    "bpf_map__set_max_entries": [ctypes.c_void_p, ctypes.c_uint32],
    "bpf_map__initial_value": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)],
    "bpf_map_lookup_elem": [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p],
    "bpf_map_get_next_key": [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p],
    "bpf_map_delete_elem": [ctypes.c_int, ctypes.c_void_p],
    "bpf_link__destroy": [ctypes.c_void_p],
    "bpf_obj_get_info_by_fd": [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p],
    "btf__load_vmlinux_btf": [],
    "btf__load_module_btf": [ctypes.c_char_p, ctypes.c_void_p],
    "btf__find_by_name_kind": [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint32],
    "btf__type_by_id": [ctypes.c_void_p, ctypes.c_uint32],
    "btf__name_by_offset": [ctypes.c_void_p, ctypes.c_uint32],
    "btf__free": [ctypes.c_void_p],
    "libbpf_num_possible_cpus": [],
}


def object_file(name: str) -> Path:
    """A compiled BPF object: of the checkout, or of the installed package."""
    here = Path(__file__).resolve()
    for path in (
        here.parents[3] / "build" / name,
        here.parents[2] / name,
        Path("/usr/lib/ipttrace") / name,
    ):
        if path.exists():
            return path
    raise CaptureError("the BPF object is not built: run make setup")


def load_socket_filter(instructions: bytes) -> int:
    """Loads struct bpf_insn[] as BPF_PROG_TYPE_SOCKET_FILTER; a descriptor that the caller closes.

    Raises CaptureError.
    """
    try:
        lib = ctypes.CDLL("libbpf.so.1")
    except OSError as error:
        raise CaptureError("libbpf.so.1 is missing: apt-get install libbpf1") from error
    load = lib.bpf_prog_load
    load.argtypes = [
        ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p,
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p,
    ]  # fmt: skip
    count = len(instructions) // _INSTRUCTION_SIZE
    found: int = load(_SOCKET_FILTER, b"ipttrace_expr", b"GPL", instructions, count, None)
    if found < 0:
        raise CaptureError(f"the kernel rejected the filter: {os.strerror(-found)}")
    return found


class Libbpf:
    """The library, and the warnings it has printed."""

    def __init__(self) -> None:
        """Raises CaptureError if it is not installed."""
        try:
            self.lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
        except OSError as error:
            raise CaptureError("libbpf.so.1 is missing: apt-get install libbpf1") from error
        libc = ctypes.CDLL(None)
        self.warnings: list[str] = []
        proto = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)

        def printed(level: int, fmt: bytes, args: int) -> int:
            if level == 0:  # LIBBPF_WARN
                text = ctypes.create_string_buffer(_LONGEST_WARNING)
                libc.vsnprintf(text, ctypes.c_size_t(_LONGEST_WARNING), fmt, ctypes.c_void_p(args))
                self.warnings.append(text.value.decode(errors="replace").strip())
            return 0

        self._printed = proto(printed)  # libbpf calls it later: it must stay alive
        self.lib.libbpf_set_print(self._printed)
        for name, arguments in _ARGUMENTS.items():
            getattr(self.lib, name).argtypes = arguments
        for name in _POINTERS:
            getattr(self.lib, name).restype = ctypes.c_void_p
        for name in _STRINGS:
            getattr(self.lib, name).restype = ctypes.c_char_p

    def open(self, path: Path) -> int:
        """The object in this file, which bpf_object__close frees.  Raises CaptureError."""
        found: int | None = self.lib.bpf_object__open_file(os.fsencode(path), None)
        if not found:
            raise CaptureError(f"cannot read {path}: {os.strerror(ctypes.get_errno())}")
        return found

    def check(self, result: int, failure: str) -> None:
        """Raises CaptureError with `failure` and the reason if `result` is an error."""
        if result >= 0:
            return
        reason = _reason(self.warnings) or os.strerror(-result)
        if not Path("/sys/kernel/btf/vmlinux").exists():
            reason = "this kernel has no BTF (/sys/kernel/btf/vmlinux, CONFIG_DEBUG_INFO_BTF)"
        raise CaptureError(f"{failure}: {reason}")


def _reason(warnings: list[str]) -> str:
    """The line with the reason: the verifier's last before its summary, else the first."""
    lines = "\n".join(warnings).splitlines()
    for before, line in itertools.pairwise(lines):
        if line.startswith("processed "):
            return f"the verifier says {before!r}"
    return lines[0] if lines else ""
