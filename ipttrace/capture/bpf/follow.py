# SPDX-License-Identifier: GPL-2.0-only
"""The programs that follow packets (bpf/follow.bpf.c) where the kernel clears nf_trace.

They share the packets of the programs that see runs.  Must not interpret records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf
from ipttrace.capture.libbpf.btf import functions
from ipttrace.capture.libbpf.objects import BpfObject

_FOLLOW: Final = "follow.bpf.o"
SHARED: Final = ("packets", "ring", "counters")
_CARRIED: Final = "ipttrace_carried"
_TRACEPOINTS: Final = ("ipttrace_dropped", "ipttrace_consumed")
# The functions that clear nf_trace, or free packets without a tracepoint, and their programs.
_NEEDED: Final = {
    "skb_scrub_packet": "ipttrace_scrubbed",
    "__kfree_skb": "ipttrace_freed",
    "kfree_skb_partial": "ipttrace_freed_partly",
    "napi_skb_free_stolen_head": "ipttrace_merged",
}
# Kernels have one of them: before Linux 6.6, and since.
_EITHER: Final = {
    "__kfree_skb_defer": "ipttrace_merged_old",
    "__napi_kfree_skb": "ipttrace_merged_new",
}
_COPIES: Final = {
    "skb_clone": "ipttrace_cloned",
    "__pskb_copy_fclone": "ipttrace_headers_copied",
    "skb_copy": "ipttrace_all_copied",
}


class Follower:
    """The programs, attached from `attach` to `detach`.

    `carried`: the descriptor of a socket filter that matches packets whose nf_trace was cleared.
    """

    def __init__(self, shared: Mapping[str, int], *, report: bool) -> None:
        """`shared`: descriptors of SHARED; `report`: the ring has what they see.

        Raises CaptureError if the kernel refuses them, or lacks a function without which a
        packet could be taken for another one.
        """
        libbpf = Libbpf()
        wanted = {**_NEEDED, **_EITHER, **_COPIES}
        found = functions(libbpf, "vmlinux", wanted)
        lacking = _NEEDED.keys() - found or (set() if found & _EITHER.keys() else set(_EITHER))
        if lacking:
            raise CaptureError(f"this kernel has no {min(lacking)}()")
        programs = [program for name, program in wanted.items() if name in found]
        # The one that begins to follow is attached last.
        self._object = BpfObject(
            libbpf,
            _FOLLOW,
            (*programs, *_TRACEPOINTS),
            shared=shared,
            constants=bytes([report]),
            unattached=[_CARRIED],
        )
        self.carried: Final = self._object.program_fd(_CARRIED)

    def attach(self) -> None:
        """Attaches the programs, unless they are.  Raises CaptureError."""
        self._object.attach()

    def detach(self) -> None:
        """Detaches them."""
        self._object.detach()

    def close(self) -> None:
        """Detaches and unloads them."""
        self._object.close()
