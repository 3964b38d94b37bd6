# SPDX-License-Identifier: GPL-2.0-only
"""A pcap-filter expression as the classic BPF that the kernel side runs.

libpcap compiles it, for packets that begin with their network header
(DLT_RAW, IPv4 and IPv6).  libpcap resolves host names as it always does.
Called through ctypes, loaded only when there is an expression.  Must not
import bcc, nor touch the kernel.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable
from functools import cache
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.text import width

INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS of linux/filter.h
# libpcap's optimiser takes time by the square: this much is some seconds.
MAX_EXPRESSION: Final = 32768  # bytes

_DLT_RAW: Final = 12
_SNAPLEN: Final = 65535
_NETMASK_UNKNOWN: Final = 0xFFFFFFFF
# Loads from here on are no packet bytes but the kernel's own answers about the
# skb (SKF_LL_OFF, SKF_NET_OFF, SKF_AD_OFF of linux/filter.h).
_ANCILLARY: Final = 0xFFE00000
_LD: Final = 0x00
_ABS: Final = 0x20
_JA: Final = 0x05
# The instructions that classic BPF has (bpf_check_classic of net/core/filter.c).
# libpcap's interpreter aborts the whole process at any other.
_CODES: Final = frozenset(
    (
        *(0x00, 0x20, 0x28, 0x30, 0x40, 0x48, 0x50, 0x60, 0x80),  # ld
        *(0x01, 0x61, 0x81, 0xB1, 0x02, 0x03),  # ldx, st, stx
        # alu; to negate with a source (0x8C) is none: libpcap takes it for one and aborts.
        *{op | source | 0x04 for op in range(0, 0xB0, 0x10) for source in (0, 8)} - {0x8C},
        *(0x05, 0x15, 0x25, 0x35, 0x45, 0x1D, 0x2D, 0x3D, 0x4D),  # jmp
        *(0x06, 0x16, 0x07, 0x87),  # ret, tax, txa
    )
)

# Coarser than libpcap's own tokens, and never in the middle of one.
_TOKEN: Final = re.compile(r"[\w.:\\-]+|&&|\|\||<<|>>|[<>=!]=|\S", re.ASCII)
# Where libpcap's scanner meets this number it says so, unless its parser has
# stumbled over something before: that is how the place is found.
_BEACON: Final = "99999999999"
_SHOWN: Final = 72


class FilterError(CaptureError):
    """An expression that cannot be used.

    `message` is one line, libpcap's own words where it has some; `position`
    the place in the expression (characters), None where there is none to
    point at.  str() is the message, and the expression with a caret under it.
    """

    def __init__(self, message: str, expr: str = "", position: int | None = None) -> None:
        self.message = f"filter: {message}"
        self.position = position
        text = self.message
        if position is not None:
            text += "\n" + _caret(expr, position)
        super().__init__(text)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_uint), ("instructions", ctypes.c_void_p))


class _PacketHeader(ctypes.Structure):
    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


@cache
def _libpcap() -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL("libpcap.so.0.8")
    except OSError:
        try:
            lib = ctypes.CDLL("libpcap.so.1")
        except OSError:
            raise FilterError("libpcap is missing: apt install libpcap0.8") from None
    program = ctypes.POINTER(_Program)
    lib.pcap_open_dead.restype = ctypes.c_void_p
    lib.pcap_open_dead.argtypes = (ctypes.c_int, ctypes.c_int)
    lib.pcap_close.restype = None
    lib.pcap_close.argtypes = (ctypes.c_void_p,)
    lib.pcap_compile.argtypes = (
        ctypes.c_void_p,
        program,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_uint32,
    )
    lib.pcap_geterr.restype = ctypes.c_char_p
    lib.pcap_geterr.argtypes = (ctypes.c_void_p,)
    lib.pcap_freecode.restype = None
    lib.pcap_freecode.argtypes = (program,)
    lib.bpf_validate.argtypes = (ctypes.c_void_p, ctypes.c_int)
    lib.pcap_offline_filter.argtypes = (program, ctypes.POINTER(_PacketHeader), ctypes.c_char_p)
    return lib


def compile(expr: str) -> bytes:
    """The program for `expr`: an array of struct sock_filter in host order.

    b"" for an empty expression: everything matches.  Raises FilterError.
    """
    if not expr.strip():
        return b""
    if "\0" in expr:
        raise FilterError("the expression holds a NUL character", expr, expr.index("\0"))
    try:
        size = len(expr.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise FilterError("the expression is not text", expr, error.start) from None
    if size > MAX_EXPRESSION:
        raise FilterError(
            f"the expression is too long ({size} bytes, at most {MAX_EXPRESSION}): "
            "name networks instead of single hosts"
        )
    program, problem = _compile(expr, optimise=True)
    if problem:
        position = _position(expr, problem)
        if position is not None and position >= len(expr.rstrip()):
            problem += " (the expression ends too early)"
        elif "memory exhausted" in problem:
            problem += " (it is nested too deeply)"
        raise FilterError(problem, expr, position)
    if why := _refusal(program):
        raise FilterError(why)
    return program


def matches(program: bytes, packet: bytes) -> bool:
    """Would `program` take `packet` (from its network header on)?

    Raises FilterError for bytes that are no valid program.
    """
    if not program:
        return True
    lib = _libpcap()
    count, rest = divmod(len(program), INSTRUCTION.size)
    code = ctypes.create_string_buffer(program, len(program))
    known = not rest and all(op in _CODES for op, *_ in INSTRUCTION.iter_unpack(program))
    if not known or _loops(program) or not lib.bpf_validate(code, count):
        raise FilterError("these bytes are no classic BPF program")
    header = _PacketHeader(0, 0, len(packet), len(packet))
    head = _Program(count, ctypes.addressof(code))
    return bool(lib.pcap_offline_filter(ctypes.byref(head), ctypes.byref(header), packet))


def _refusal(program: bytes) -> str:
    """Why this program of libpcap's is of no use inside iptables; empty when it is."""
    count = len(program) // INSTRUCTION.size
    if count > MAX_INSTRUCTIONS:
        return (
            f"the expression makes {count} instructions, the kernel takes {MAX_INSTRUCTIONS}: "
            "name networks instead of single hosts"
        )
    if _loops(program):
        return "protochain needs a loop, which filters in the kernel cannot have: use proto"
    for code, _, _, k in INSTRUCTION.iter_unpack(program):
        if code & 0xE7 == _LD | _ABS and k >= _ANCILLARY:
            return (
                "it asks for what iptables has no answer to: "
                "inbound, outbound, ifindex or a byte far outside the packet"
            )
    return ""


def _loops(program: bytes) -> bool:
    """Does it jump backwards, which libpcap allows itself and the kernel does not?"""
    count = len(program) // INSTRUCTION.size
    return any(
        code == _JA and k >= count - at - 1
        for at, (code, _, _, k) in enumerate(INSTRUCTION.iter_unpack(program))
    )


def _compile(expr: str, *, optimise: bool) -> tuple[bytes, str]:
    """(program, ""), or (b"", libpcap's message)."""
    lib = _libpcap()
    handle = lib.pcap_open_dead(_DLT_RAW, _SNAPLEN)
    if not handle:
        raise FilterError("libpcap has no memory left")
    program = _Program()
    raw = expr.encode("utf-8", "surrogateescape")
    try:
        if lib.pcap_compile(handle, ctypes.byref(program), raw, optimise, _NETMASK_UNKNOWN):
            said = lib.pcap_geterr(handle).decode("utf-8", "backslashreplace")
            return b"", _shown(said) or "libpcap refuses it and does not say why"
        try:
            assert program.instructions is not None
            size = program.length * INSTRUCTION.size
            return ctypes.string_at(program.instructions, size), ""
        finally:
            lib.pcap_freecode(ctypes.byref(program))
    finally:
        lib.pcap_close(handle)


def _position(expr: str, problem: str) -> int | None:
    """Where in `expr` the token stands that libpcap stumbled over; its length for the end.

    libpcap says what, not where.  Its parser reads from left to right and stops
    at the first error, so whether the first n tokens are enough to fail only
    ever changes once, and bisection finds where.
    """
    tokens = list(_TOKEN.finditer(expr))
    if "syntax error" in problem:
        if _BEACON not in _compile(_BEACON, optimise=False)[1]:
            return None  # a libpcap whose scanner does not look at numbers

        def fails(count: int) -> bool:
            start = expr[: tokens[count - 1].end()]
            return _BEACON not in _compile(f"{start} {_BEACON}", optimise=False)[1]

        count = _first(fails, len(tokens))
        return len(expr.rstrip()) if count is None else tokens[count - 1].start()

    named = re.search(r"unknown (?:host|network) '([^']+)'", problem)
    if named:
        # Each further try could ask a name server that does not answer.
        for token in tokens:
            if token[0] == named[1]:
                return token.start()
        return None

    def says_so(count: int) -> bool:
        return _compile(expr[: tokens[count - 1].end()], optimise=False)[1] == problem

    count = _first(says_so, len(tokens))
    return None if count is None else tokens[count - 1].start()


def _first(true: Callable[[int], bool], end: int) -> int | None:
    """The smallest n in 1…`end` for which `true`, which stays so; None where there is none."""
    low, high = 1, end
    if end < 1 or not true(end):
        return None
    while low < high:
        middle = (low + high) // 2
        if true(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _shown(text: str) -> str:
    """`text` on one line, as many characters as before, with nothing a terminal obeys."""
    return "".join(char if char.isprintable() else "?" if char.strip() else " " for char in text)


def _caret(expr: str, position: int) -> str:
    """Two lines: the expression, or the part of it around `position`, and the caret."""
    start = max(0, position - _SHOWN // 2)
    end = start + _SHOWN
    before, after = _shown(expr[start:position]), _shown(expr[position:end])
    lead = "…" if start else ""
    tail = "…" if end < len(expr) else ""
    columns = len(lead) + width(before)
    return f"  {lead}{before}{after.rstrip()}{tail}\n  {' ' * columns}^"
