# SPDX-License-Identifier: GPL-2.0-only
"""A compiled BPF object, loaded, with programs that are attached and detached together.

Links are held by this process and pinned nowhere: however it ends, nothing is attached.
Must not know what the programs do.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
from collections.abc import Mapping, Sequence
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf, object_file

# struct bpf_prog_info (linux/bpf.h): its size in Linux 6.1, and an offset.
_INFO_SIZE: Final = 232
_RECURSION_MISSES: Final = 208


class BpfObject:
    """The programs of one object that were asked for; attached from `attach` to `detach`."""

    def __init__(
        self,
        libbpf: Libbpf,
        name: str,
        programs: Sequence[str],
        *,
        sizes: Mapping[str, int] | None = None,
        shared: Mapping[str, int] | None = None,
        constants: bytes = b"",
        unattached: Sequence[str] = (),
        cgroup: int | None = None,
    ) -> None:
        """Loads `programs` of the object `name`, and those that are used otherwise, `unattached`.

        They are attached in reverse order, and detached in order.  `sizes`: entries of maps
        by name; `shared`: maps of other objects to use in place of its own, descriptors by
        name; `constants`: what its section .rodata contains, b"": zeros; `cgroup`: what they are
        attached to, a descriptor that stays open, if they are of that kind.  Raises CaptureError.
        """
        self._libbpf = libbpf
        self._lib = lib = libbpf.lib
        self._name = name
        self._links: list[int] = []
        self._cgroup = cgroup
        with contextlib.ExitStack() as stack:
            self._object = libbpf.open(object_file(name))
            stack.callback(lib.bpf_object__close, self._object)
            found = self._all_programs()
            if missing := {*programs, *unattached} - found.keys():
                raise CaptureError(f"{name} has no program {min(missing)}: run make setup")
            for each, program in found.items():
                lib.bpf_program__set_autoload(program, each in (*programs, *unattached))
            self._unattached = {each: found[each] for each in unattached}
            self._programs = [found[each] for each in programs]
            for each, size in (sizes or {}).items():
                lib.bpf_map__set_max_entries(self._map(each), size)
            for each, fd in (shared or {}).items():
                libbpf.check(
                    lib.bpf_map__reuse_fd(self._map(each), fd), f"cannot share the map {each}"
                )
            if constants:
                self._set_constants(constants)
            libbpf.check(lib.bpf_object__load(self._object), "the kernel rejected the BPF programs")
            stack.callback(self.detach)
            self._stack = stack.pop_all()

    def attach(self) -> None:
        """Attaches the programs, unless they are.  Raises CaptureError, with none attached."""
        if self._links:
            return
        try:
            for program in reversed(self._programs):
                self._attach(program)
        except CaptureError:
            self.detach()
            raise

    def attach_also(self, name: str) -> None:
        """Attaches a program of `unattached` too, until `detach`.  Raises CaptureError."""
        self._attach(self._unattached[name])

    def attach_each(self) -> None:
        """Attaches those programs that can be attached, unless some are."""
        if self._links:
            return
        for program in reversed(self._programs):
            if link := self._lib.bpf_program__attach(program):
                self._links.append(link)
        self._libbpf.warnings.clear()

    def detach(self) -> None:
        """Detaches them."""
        while self._links:
            self._lib.bpf_link__destroy(self._links.pop())

    def program_fd(self, name: str) -> int:
        """The descriptor of a program that is not attached."""
        found: int = self._lib.bpf_program__fd(self._unattached[name])
        return found

    def map_fd(self, name: str) -> int:
        """The descriptor of a map."""
        found: int = self._lib.bpf_map__fd(self._map(name))
        return found

    def clear(self, name: str, most: int) -> None:
        """Removes the entries of a map whose keys are of 8 bytes; at most `most`."""
        fd = self.map_fd(name)
        key = ctypes.c_uint64()
        for _ in range(most):
            if self._lib.bpf_map_get_next_key(fd, None, ctypes.byref(key)):
                return
            self._lib.bpf_map_delete_elem(fd, ctypes.byref(key))

    def recursion_misses(self) -> int:
        """How often a program could not run, since it was running on the same CPU."""
        return sum(map(self._misses, self._programs))

    def close(self) -> None:
        """Detaches and unloads the programs."""
        self._stack.close()

    def _attach(self, program: int) -> None:
        if self._cgroup is None:
            link = self._lib.bpf_program__attach(program)
        else:
            link = self._lib.bpf_program__attach_cgroup(program, self._cgroup)
        if not link:
            code = ctypes.get_errno()
            self._libbpf.check(-code or -errno.EINVAL, "cannot attach the BPF programs")
        self._links.append(link)

    def _all_programs(self) -> dict[str, int]:
        found = {}
        program = self._lib.bpf_object__next_program(self._object, None)
        while program:
            found[self._lib.bpf_program__name(program).decode()] = program
            program = self._lib.bpf_object__next_program(self._object, program)
        return found

    def _map(self, name: str) -> int:
        found: int | None = self._lib.bpf_object__find_map_by_name(self._object, name.encode())
        if not found:
            raise CaptureError(f"{self._name} has no map {name}: run make setup")
        return found

    def _set_constants(self, values: bytes) -> None:
        size = ctypes.c_size_t()
        at = self._lib.bpf_map__initial_value(self._map(".rodata"), ctypes.byref(size))
        if not at or size.value != len(values):
            raise CaptureError(f"{self._name} has other constants: run make setup")
        ctypes.memmove(at, values, len(values))

    def _misses(self, program: int) -> int:
        info = (ctypes.c_uint8 * _INFO_SIZE)()
        size = ctypes.c_uint32(_INFO_SIZE)
        fd = self._lib.bpf_program__fd(program)
        if self._lib.bpf_obj_get_info_by_fd(fd, info, ctypes.byref(size)):
            return 0
        return int.from_bytes(bytes(info[_RECURSION_MISSES : _RECURSION_MISSES + 8]), "little")
