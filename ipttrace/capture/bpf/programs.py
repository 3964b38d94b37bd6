# SPDX-License-Identifier: GPL-2.0-only
"""The BPF programs of the engine: of nftables (bpf/nft.bpf.c), of legacy (bpf/legacy.bpf.c).

Those of nftables are always there.  Those of a legacy family come with its module, which may
be loaded at any time, and share the others' ring and counters.  Where the kernel refuses
fentry, kprobes take its place.  Must not interpret records.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Mapping, Sequence
from typing import Final

from ipttrace.capture.bpf.follow import SHARED, Follower
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf
from ipttrace.capture.libbpf.btf import BTF, kernel_has_struct, parameters
from ipttrace.capture.libbpf.counters import Counters
from ipttrace.capture.libbpf.filter import Filter
from ipttrace.capture.libbpf.objects import BpfObject
from ipttrace.capture.libbpf.ring import Ring

# enum ipttrace_counter
RUNS, RULES, LOST_RUNS, LOST_RULES, MISSED, REFUSED = range(6)

_NFT: Final = "nft.bpf.o"
_LEGACY: Final = "legacy.bpf.o"
# By the number of parameters of nft_trace_notify(): since Linux 6.4, and before.
_NOTIFY: Final = {4: "ipttrace_nft_notify", 1: "ipttrace_nft_notify_old"}
# The module and the function of each family of legacy tables, and the programs for it.
_FAMILIES: Final = {
    4: ("ip_tables", "ipt_do_table", "ipttrace_ip_entry", "ipttrace_ip_exit"),
    6: ("ip6_tables", "ip6t_do_table", "ipttrace_ip6_entry", "ipttrace_ip6_exit"),
}
_LOG: Final = "ipttrace_log"  # of a kprobe in any case
_PROBE: Final = "_probe"  # what the name of a program for kprobes ends with
# Since Linux 5.16; before, the table came last.
_TABLE_FIRST: Final = ["void", "sk_buff", "nf_hook_state"]
_LEAST_RING: Final = 1 << 16
_LARGEST_RING: Final = 1 << 30


def conntrack_is_loaded() -> bool:
    """Whether conntrack is a module that is loaded now."""
    return (BTF / "nf_conntrack").exists()


def attempt() -> str:
    """Loads and attaches the programs as the engine does, and removes them at once.

    Returns why they need kprobes; "" if they do not.  Raises CaptureError if the kernel
    refuses them.  No module is loaded for it: without nf_tables only the program of the
    kernel's own nf_log_trace() is tried.
    """
    libbpf = Libbpf()
    if parameters(libbpf, "nf_tables", "nft_trace_notify") is not None:
        programs = Programs(_LEAST_RING)
        programs.close()
        return programs.probed
    one = BpfObject(libbpf, _LEGACY, (_LOG,), sizes={"ring": _LEAST_RING})
    try:
        one.attach()
    finally:
        one.close()
    return ""


class Programs:
    """The programs, attached when this is made, until `detach`, and again by `attach`.

    `probed`: why kprobes take the place of fentry, or "".
    """

    def __init__(self, buffer: int, *, legacy: bool = True, from_rules: bool = False) -> None:
        """`buffer`: bytes of the ring, at most.  Raises CaptureError with what is missing.

        Without `legacy`, another engine traces the legacy tables: the ring has the flips too.
        `from_rules`: runs begin at a rule of the user's that sets nf_trace.
        """
        self._wants_legacy = legacy
        self._from_rules = from_rules
        if not (BTF / "vmlinux").exists():
            raise CaptureError(f"the kernel has no BTF ({BTF / 'vmlinux'})")
        self._libbpf = Libbpf()
        # Their programs find its fields when they are loaded.
        self.sees_conntrack = conntrack_is_loaded() or kernel_has_struct(self._libbpf, "nf_conn")
        self.probed = ""
        self._attached = True
        self._families: set[int] = set()  # of legacy tables that are traced
        self._refused: set[int] = set()
        self._shared: dict[str, int] = {}
        self._built_in = {
            family
            for family, (_, function, _, _) in _FAMILIES.items()
            if parameters(self._libbpf, "vmlinux", function) is not None
        }
        with contextlib.ExitStack() as stack:
            found = parameters(self._libbpf, "nf_tables", "nft_trace_notify")
            if found is None:
                raise CaptureError(f"the kernel has no BTF for nf_tables ({BTF / 'nf_tables'})")
            notify = len(found)
            if notify not in _NOTIFY:
                raise CaptureError(
                    "this kernel's nf_tables reports traced packets in a way that this version"
                    " of ipttrace does not support: use --engine netlink"
                )
            size = min(max(buffer, _LEAST_RING), _LARGEST_RING)
            size = 1 << size.bit_length() - 1
            cpus = self._libbpf.lib.libbpf_num_possible_cpus()
            self._objects: list[BpfObject] = []
            stack.callback(self._close_objects)
            # That at the beginning of a run is attached last, so that none is seen in part.
            names = ("ipttrace_nft_entry", _NOTIFY[notify])
            sizes = {"ring": size, "counters": cpus}
            # from_rules of bpf/state.h, report_flips of bpf/nft.bpf.c
            first = self._load(_NFT, names, sizes, bytes([from_rules, not legacy]))
            self._share(first, "packets", "ring", "counters", "runs", "buckets")
            self.ring = Ring(first.map_fd("ring"), size)
            stack.callback(self.ring.close)
            self._counters = Counters(first.map_fd("counters"), cpus)
            self._filter = Filter(first.map_fd("expr"))
            self._stack = stack.pop_all()

    def trace_legacy(self) -> list[str]:
        """Loads the programs of legacy families whose module is loaded by now.

        Attaches them if the others are.  Returns, once, why a family cannot be traced.
        """
        failures: list[str] = []
        if not self._wants_legacy:
            return failures
        for family, (module, _, _, _) in _FAMILIES.items():
            if family in self._families | self._refused:
                continue
            if not (BTF / module).exists() and family not in self._built_in:
                continue
            try:
                self._load_legacy(family)
            except CaptureError as error:
                self._refused.add(family)
                failures.append(f"legacy tables of IPv{family} are not traced: {error}")
        return failures

    def _load_legacy(self, family: int) -> None:
        module, function, entry, leave = _FAMILIES[family]
        if platform.machine() != "x86_64":
            raise CaptureError("nf_log_trace()'s arguments can be read on x86-64 only")
        if parameters(self._libbpf, module, function) != _TABLE_FIRST:
            raise CaptureError(
                f"this version of ipttrace does not support {function}() of this kernel"
            )
        # The kprobe sees the hits of both families.
        names = (entry, leave) if self._families else (entry, _LOG, leave)
        self._load(_LEGACY, names, {}, bytes([self._from_rules]))
        self._families.add(family)

    def _load(
        self, name: str, programs: Sequence[str], sizes: Mapping[str, int], constants: bytes = b""
    ) -> BpfObject:
        """An object with these programs of fentry, or those of kprobes, attached once.

        It stays attached if the others are.  Raises CaptureError with why fentry is refused,
        if kprobes are as well.
        """
        probes = [one if one == _LOG else one + _PROBE for one in programs]
        refusal: CaptureError | None = None
        for names in (programs, probes):
            try:
                loaded = BpfObject(
                    self._libbpf,
                    name,
                    names,
                    sizes=sizes,
                    shared=self._shared,
                    constants=constants,
                )
                try:
                    loaded.attach()
                except CaptureError:
                    loaded.close()
                    raise
            except CaptureError as error:
                refusal = refusal or error
                self._libbpf.warnings.clear()
                continue
            if refusal is not None:
                self.probed = self.probed or str(refusal)
            if not self._attached:
                loaded.detach()
            self._objects.append(loaded)
            return loaded
        assert refusal is not None
        raise refusal

    def follower(self) -> Follower:
        """The programs that follow packets, not attached.  Raises CaptureError."""
        shared = {name: self._shared[name] for name in SHARED}
        return Follower(shared, report=not self._wants_legacy)

    def _share(self, loaded: BpfObject, *names: str) -> None:
        for name in names:
            self._shared.setdefault(name, loaded.map_fd(name))

    @property
    def legacy(self) -> bool:
        """Whether legacy tables are wanted, and no family of them was refused."""
        return self._wants_legacy and not self._refused

    def attach(self) -> None:
        """Attaches the programs again.  Raises CaptureError, with none attached."""
        if self._attached:
            return
        try:
            for one in self._objects:
                one.attach()
        except CaptureError:
            self.detach()
            raise
        self._attached = True

    def detach(self) -> None:
        """Detaches them."""
        self._attached = False
        for one in self._objects:
            one.detach()

    def filter(self, program: bytes) -> None:
        """Lets the programs refuse packets that `program` does not match; empty: none."""
        self._filter.set(program)

    def counters(self) -> list[int]:
        """RUNS to REFUSED, of all CPUs; programs that could not run are MISSED as well."""
        found = self._counters.sums(REFUSED + 1)
        found[MISSED] += sum(one.recursion_misses() for one in self._objects)
        return found

    def close(self) -> None:
        """Detaches and unloads the programs."""
        self._stack.close()

    def _close_objects(self) -> None:
        for one in reversed(self._objects):
            one.close()
