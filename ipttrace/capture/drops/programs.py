# SPDX-License-Identifier: GPL-2.0-only
"""The programs of drops (bpf/drops.bpf.c) and of stations (bpf/stations.bpf.c).

All of one process share one ring, one filter and one set of counters.  Must not interpret
records.
"""

from __future__ import annotations

import contextlib
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf
from ipttrace.capture.libbpf.btf import BTF, functions, tracepoint_arguments
from ipttrace.capture.libbpf.counters import Counters
from ipttrace.capture.libbpf.filter import Filter
from ipttrace.capture.libbpf.objects import BpfObject
from ipttrace.capture.libbpf.ring import Ring

# enum station_counter
DUE, LOST, REFUSED = range(3)

_LEAST_RING: Final = 1 << 16
_DROPS: Final = "drops.bpf.o"
_STATIONS: Final = "stations.bpf.o"
# By the number of arguments of skb:kfree_skb: before Linux 5.17, since then, since 6.11.
_DROP: Final = {2: "ipttrace_drop_old", 3: "ipttrace_drop", 4: "ipttrace_drop_sk"}
_SEEN: Final = 1 << 16  # entries of the map `seen`
_SHARED: Final = ("ring", "counters", "expr", "seen")
_PROBE: Final = "_probe"  # what the name of a program for kprobes ends with
_TRACEPOINTS: Final = ("ipttrace_received", "ipttrace_sent", "ipttrace_consumed")
# The programs of stations, by the function that each is attached to.
_FUNCTIONS: Final = {
    "ip_local_deliver": "ipttrace_input",
    "ip6_input": "ipttrace_input6",
    "ip_forward": "ipttrace_forward",
    "ip6_forward": "ipttrace_forward6",
    "ip_output": "ipttrace_output",
    "ip6_output": "ipttrace_output6",
    "__neigh_event_send": "ipttrace_queued",
    "__udp_enqueue_schedule_skb": "ipttrace_udp",
    "tcp_v4_do_rcv": "ipttrace_tcp",
    "tcp_v6_do_rcv": "ipttrace_tcp6",
    "tcp_child_process": "ipttrace_child",
    "sock_queue_rcv_skb_reason": "ipttrace_queue",
}
# Since Linux 5.18, and before.
_NEWER: Final = "sock_queue_rcv_skb_reason"
_OLD: Final = {"sock_queue_rcv_skb": "ipttrace_queue_old"}


def attempt(*, stations: bool) -> set[str]:
    """Loads and attaches the programs as tracing does, and removes them at once.

    Returns the functions that this kernel lacks, whose stations are left out.  Raises
    CaptureError if the kernel refuses the programs.
    """
    programs = Programs(_LEAST_RING, 0)
    try:
        programs.attach()
        return programs.attach_stations() if stations else set()
    finally:
        programs.close()


class Programs:
    """The programs of drops, attached when this is made; those of stations on request."""

    def __init__(self, buffer: int, only_netns: int) -> None:
        """`buffer`: bytes of the ring, a power of two; `only_netns`: an inode, 0: all.

        Raises CaptureError with what is missing.
        """
        if not (BTF / "vmlinux").exists():
            raise CaptureError(f"the kernel has no BTF ({BTF / 'vmlinux'})")
        self._libbpf = libbpf = Libbpf()
        self._constants = only_netns.to_bytes(4, "little")
        found = tracepoint_arguments(libbpf, "kfree_skb")
        if found not in _DROP:
            raise CaptureError("this kernel's tracepoint skb:kfree_skb is not supported")
        cpus = libbpf.lib.libbpf_num_possible_cpus()
        sizes = {"ring": buffer, "counters": cpus}
        with contextlib.ExitStack() as stack:
            self._drops = BpfObject(
                libbpf, _DROPS, (_DROP[found],), sizes=sizes, constants=self._constants
            )
            stack.callback(self._drops.close)
            self.ring = Ring(self._drops.map_fd("ring"), buffer)
            stack.callback(self.ring.close)
            self._counters = Counters(self._drops.map_fd("counters"), cpus)
            self._filter = Filter(self._drops.map_fd("expr"))
            self._stack = stack.pop_all()
        self._stations: BpfObject | None = None
        self._lacking: set[str] = set()

    def attach(self) -> None:
        """Attaches the program of drops.  Raises CaptureError."""
        self._drops.attach()

    def detach(self) -> None:
        """Detaches all programs."""
        self._drops.detach()
        self.detach_stations()

    def attach_stations(self) -> set[str]:
        """Attaches the programs of stations, loading them if they are not.

        Returns the functions that this kernel lacks.  Raises CaptureError.
        """
        if self._stations is None:
            self._stations = self._load_stations()
        self._stations.attach_each()
        return self._lacking

    def detach_stations(self) -> None:
        """Detaches them; drops continue no journey that they saw."""
        if self._stations is not None:
            self._stations.detach()
            self._drops.clear("seen", _SEEN)

    def _load_stations(self) -> BpfObject:
        found = functions(self._libbpf, "ipv6", (*_FUNCTIONS, *_OLD))
        wanted = _FUNCTIONS
        if _NEWER not in found:
            wanted = {**_FUNCTIONS, **_OLD}
            del wanted[_NEWER]
        self._lacking = wanted.keys() - found
        programs = [of for one, of in wanted.items() if one in found]
        shared = {name: self._drops.map_fd(name) for name in _SHARED}
        refusal: CaptureError | None = None
        for suffix in ("", _PROBE):
            names = (*_TRACEPOINTS, *(one + suffix for one in programs))
            try:
                loaded = BpfObject(
                    self._libbpf, _STATIONS, names, shared=shared, constants=self._constants
                )
            except CaptureError as error:
                refusal = refusal or error
                self._libbpf.warnings.clear()
                continue
            self._stack.callback(loaded.close)
            return loaded
        assert refusal is not None
        raise refusal

    def filter(self, program: bytes) -> None:
        """Replaces EXPR, a program of pcap.compile(), at once; empty: every packet matches."""
        self._filter.set(program)

    def counters(self) -> list[int]:
        """DUE to REFUSED, of all CPUs."""
        return self._counters.sums(REFUSED + 1)

    def missed(self) -> int:
        """How often a program could not run, since it was running on the same CPU."""
        stations = 0 if self._stations is None else self._stations.recursion_misses()
        return self._drops.recursion_misses() + stations

    def close(self) -> None:
        """Detaches and unloads the programs."""
        self._stack.close()
