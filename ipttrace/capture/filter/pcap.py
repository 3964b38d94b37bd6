# SPDX-License-Identifier: GPL-2.0-only
"""Compiles a pcap-filter expression to classic BPF, with libpcap.

The programs are for packets that begin with their network header (DLT_RAW: IPv4 and
IPv6).  libpcap resolves host names, which can take seconds.  It is called through
ctypes, and loaded only if there is an expression.  Must not import bcc, nor use the
kernel.
"""

from __future__ import annotations

import ctypes
import re
import struct
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import opcodes as bpf
from ipttrace.text import width

INSTRUCTION: Final = struct.Struct("=HBBI")  # struct sock_filter: code, jt, jf, k
MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS of linux/filter.h
# The time that libpcap's optimiser takes is quadratic: this takes some seconds.
MAX_EXPRESSION: Final = 32768  # bytes

_DLT_RAW: Final = 12
_SNAPLEN: Final = 65535
_NETMASK_UNKNOWN: Final = 0xFFFFFFFF
# Loads at these offsets do not read the packet, but what the kernel knows about the
# skb (SKF_LL_OFF, SKF_NET_OFF, SKF_AD_OFF of linux/filter.h).
_ANCILLARY: Final = 0xFFE00000

# Coarser than libpcap's own tokens: a boundary is never inside one of them.
_TOKEN: Final = re.compile(r"[\w.:\\-]+|&&|\|\||<<|>>|[<>=!]=|\S", re.ASCII)
# libpcap's scanner rejects this number, unless its parser has failed before: that is how
# the position of a syntax error is found.
_BEACON: Final = "99999999999"
_SHOWN: Final = 72  # characters of the expression in an error message

Instructions = tuple[tuple[int, int, int, int], ...]
"""A program: code, jt, jf and k of each instruction."""


class FilterError(CaptureError):
    """The expression, or the program, cannot be used.

    `message` is one line, libpcap's own if it has one; `position` is where in the
    expression the error is, in characters, or None if unknown.  str() is the message,
    followed by the expression with a caret under that position.
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


# A start asks for the same program several times.  Only the last one is kept, so that
# names are resolved again when a user returns to an earlier filter.
@lru_cache(maxsize=1)
def compile(expr: str) -> bytes:
    """The program for `expr`: an array of struct sock_filter in host order.

    b"" if `expr` is empty: every packet matches.  Raises FilterError.
    """
    if not expr.strip():
        return b""
    if "\0" in expr:
        raise FilterError("the expression contains a NUL character", expr, expr.index("\0"))
    try:
        size = len(expr.encode("utf-8", "surrogateescape"))
    except UnicodeEncodeError as error:
        raise FilterError("the expression is not valid UTF-8", expr, error.start) from None
    if size > MAX_EXPRESSION:
        raise FilterError(
            f"the expression is too long ({size} bytes, at most {MAX_EXPRESSION}): "
            "use networks instead of single hosts"
        )
    program, problem = _compile(expr, optimise=True)
    if problem:
        position = _position(expr, problem)
        if position is not None and position >= len(expr.rstrip()):
            problem += " (the expression ends too early)"
        elif "memory exhausted" in problem:
            problem += " (the expression is nested too deeply)"
        raise FilterError(problem, expr, position)
    if reason := _unusable(program):
        raise FilterError(reason)
    return program


@lru_cache(maxsize=4)
def instructions(program: bytes) -> Instructions:
    """The instructions of `program`.  Raises FilterError if it is not valid classic BPF."""
    count, rest = divmod(len(program), INSTRUCTION.size)
    if not rest:
        code = tuple(INSTRUCTION.iter_unpack(program))
        if all(op in bpf.ALL for op, *_ in code) and not _loops(code):
            buffer = ctypes.create_string_buffer(program, len(program))
            if _libpcap().bpf_validate(buffer, count):
                return code
    raise FilterError("not a valid classic BPF program")


def matches(program: bytes, packet: bytes) -> bool:
    """Whether `program` matches `packet`, a complete one from its network header on.

    Raises FilterError if `program` is not valid classic BPF.
    """
    if not program:
        return True
    count = len(instructions(program))
    code = ctypes.create_string_buffer(program, len(program))
    header = _PacketHeader(0, 0, len(packet), len(packet))
    head = _Program(count, ctypes.addressof(code))
    return bool(_libpcap().pcap_offline_filter(ctypes.byref(head), ctypes.byref(header), packet))


def _unusable(program: bytes) -> str:
    """Why a program made by libpcap cannot be used inside iptables; "" if it can."""
    code = tuple(INSTRUCTION.iter_unpack(program))
    if len(code) > MAX_INSTRUCTIONS:
        return (
            f"the expression needs {len(code)} instructions, the kernel allows "
            f"{MAX_INSTRUCTIONS}: use networks instead of single hosts"
        )
    if _loops(code):
        return "protochain needs a loop, which filters in the kernel cannot have: use proto"
    for op, _, _, k in code:
        if op & (bpf.CLASS | bpf.MODE) == bpf.LD | bpf.ABS and k >= _ANCILLARY:
            return (
                "not available inside iptables: "
                "inbound, outbound, ifindex and bytes far outside the packet"
            )
    return ""


def _loops(code: Instructions) -> bool:
    """Whether it jumps backwards, which libpcap allows itself and the kernel does not."""
    return any(op == bpf.GOTO and k >= len(code) - at - 1 for at, (op, _, _, k) in enumerate(code))


def _compile(expr: str, *, optimise: bool) -> tuple[bytes, str]:
    """(program, ""), or (b"", libpcap's message)."""
    lib = _libpcap()
    handle = lib.pcap_open_dead(_DLT_RAW, _SNAPLEN)
    if not handle:
        raise FilterError("libpcap is out of memory")
    program = _Program()
    raw = expr.encode("utf-8", "surrogateescape")
    try:
        if lib.pcap_compile(handle, ctypes.byref(program), raw, optimise, _NETMASK_UNKNOWN):
            message = lib.pcap_geterr(handle).decode("utf-8", "backslashreplace")
            return b"", _printable(message) or "libpcap rejects it and gives no reason"
        try:
            assert program.instructions is not None
            size = program.length * INSTRUCTION.size
            return ctypes.string_at(program.instructions, size), ""
        finally:
            lib.pcap_freecode(ctypes.byref(program))
    finally:
        lib.pcap_close(handle)


def _position(expr: str, problem: str) -> int | None:
    """Where in `expr` the token begins that caused `problem`; len(expr) for its end.

    libpcap reports what is wrong, not where.  Its parser reads from left to right and
    stops at the first error: if the first n tokens fail, so do the first n + 1, and
    bisection finds the smallest n.
    """
    tokens = list(_TOKEN.finditer(expr))
    if "syntax error" in problem:
        if _BEACON not in _compile(_BEACON, optimise=False)[1]:
            return None  # the scanner of this libpcap does not check numbers

        def fails(count: int) -> bool:
            start = expr[: tokens[count - 1].end()]
            return _BEACON not in _compile(f"{start} {_BEACON}", optimise=False)[1]

        count = _first(fails, len(tokens))
        return len(expr.rstrip()) if count is None else tokens[count - 1].start()

    named = re.search(r"unknown (?:host|network) '([^']+)'", problem)
    if named:
        # Each further attempt could wait for a name server that does not answer.
        for token in tokens:
            if token[0] == named[1]:
                return token.start()
        return None

    def has_problem(count: int) -> bool:
        return _compile(expr[: tokens[count - 1].end()], optimise=False)[1] == problem

    count = _first(has_problem, len(tokens))
    return None if count is None else tokens[count - 1].start()


def _first(test: Callable[[int], bool], end: int) -> int | None:
    """The smallest n in 1…`end` that passes `test`, as all greater ones do; None if none does."""
    low, high = 1, end
    if end < 1 or not test(end):
        return None
    while low < high:
        middle = (low + high) // 2
        if test(middle):
            high = middle
        else:
            low = middle + 1
    return low


def _printable(text: str) -> str:
    """`text` on one line, with as many characters, and no control characters."""
    return "".join(char if char.isprintable() else "?" if char.strip() else " " for char in text)


def _caret(expr: str, position: int) -> str:
    """Two lines: the expression, or the part of it around `position`, and the caret."""
    start = max(0, position - _SHOWN // 2)
    end = start + _SHOWN
    before, after = _printable(expr[start:position]), _printable(expr[position:end])
    lead = "…" if start else ""
    tail = "…" if end < len(expr) else ""
    columns = len(lead) + width(before)
    return f"  {lead}{before}{after.rstrip()}{tail}\n  {' ' * columns}^"
