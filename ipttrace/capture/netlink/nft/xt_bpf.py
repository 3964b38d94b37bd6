# SPDX-License-Identifier: GPL-2.0-only
"""Any filter as a match of an nf_tables rule: x_tables' match bpf, through nft_compat.

It runs classic BPF on the packet from its network header on (net/netfilter/xt_bpf.c, struct
xt_bpf_info_v1 of linux/netfilter/xt_bpf.h).  A program that it does not take as it is
is translated to eBPF, and passed by its descriptor.  Must not know tables or packets.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from functools import cache
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import ebpf, pcap
from ipttrace.capture.filter import opcodes as bpf
from ipttrace.capture.libbpf import load_socket_filter
from ipttrace.capture.netlink.nft import wire
from ipttrace.capture.netlink.nft.wire import NftSocket, Refused, Request
from ipttrace.netfilter import NFPROTO_IPV4

REFUSAL: Final = "nftables cannot express this filter, and xt_bpf cannot run it here"

_MATCH: Final = b"bpf"
_REVISION: Final = 1
_MOST_INSTRUCTIONS: Final = 64  # XT_BPF_MAX_NUM_INSTR
_BYTECODE: Final = 0  # enum xt_bpf_modes
_DESCRIPTOR: Final = 2
# Mode, number of instructions, descriptor; instructions; a pointer of the kernel's own.
_INFO: Final = struct.Struct("=HHi512sQ")


@contextlib.contextmanager
def expression(program: bytes) -> Iterator[bytes | None]:
    """The nft expression that `program` matches, None if this host cannot run it.

    Valid inside the with statement; a rule that was made of it stays as it is.
    """
    if not _is_there():
        yield None
    elif _runs_as_it_is(program):
        yield _match(_BYTECODE, len(program) // pcap.INSTRUCTION.size, -1, program)
    else:
        try:
            descriptor = load_socket_filter(ebpf.translate(program))
        except CaptureError:  # such as without CAP_BPF
            yield None
            return
        try:
            yield _match(_DESCRIPTOR, 0, descriptor, b"")
        finally:
            os.close(descriptor)


def of_descriptor(descriptor: int) -> bytes:
    """The nft expression that a loaded socket filter matches; b"" if the kernel has no xt_bpf.

    Valid while the descriptor is open; a rule that was made of it stays as it is.
    """
    return _match(_DESCRIPTOR, 0, descriptor, b"") if _is_there() else b""


def can_run(program: bytes) -> bool:
    """Whether this host can run `program` so."""
    with expression(program) as found:
        return found is not None


def _match(mode: int, count: int, descriptor: int, program: bytes) -> bytes:
    return wire.match(_MATCH, _REVISION, _INFO.pack(mode, count, descriptor, program, 0))


def _runs_as_it_is(program: bytes) -> bool:
    """Whether the kernel runs it as classic BPF, with the results that libpcap has."""
    code = pcap.instructions(program)
    return len(code) <= _MOST_INSTRUCTIONS and not any(_differs(op, k) for op, _, _, k in code)


def _differs(op: int, k: int) -> bool:
    """Of shifts by 32 or more the kernel takes the lowest five bits, or rejects the program."""
    if op & bpf.CLASS != bpf.ALU:
        return False
    operation = op & bpf.OPERATION
    if operation in (bpf.LSH, bpf.RSH):
        return bool(op & bpf.X) or k >= 32
    return operation in (bpf.DIV, bpf.MOD) and not op & bpf.X and k == 0


@cache
def _is_there() -> bool:
    """Whether the kernel has the match; loads its module, which a rule of family inet does not."""
    wanted = wire.text(1, _MATCH) + wire.number(2, _REVISION) + wire.number(3, 0)
    request = Request(wire.COMPAT_GET, NFPROTO_IPV4, wanted, wire.ACK, subsystem=wire.NFT_COMPAT)
    with contextlib.suppress(Refused, CaptureError), contextlib.closing(NftSocket()) as nft:
        return bool(nft.ask(request))
    return False
