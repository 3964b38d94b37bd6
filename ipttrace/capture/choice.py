# SPDX-License-Identifier: GPL-2.0-only
"""Which engine runs: what the request asks for and the host allows.

An engine is imported only when it is chosen: bcc alone takes seconds.  Must not write
the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ipttrace.capture import doctor, netns
from ipttrace.capture.doctor.machine import Host
from ipttrace.capture.engine import Engine
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import pcap
from ipttrace.capture.request import Request

if TYPE_CHECKING:
    from ipttrace.capture.kernel.engine import KernelEngine
    from ipttrace.capture.netlink.engine import NetlinkEngine


def open_engine(request: Request) -> Engine:
    """The engine that `request` asks for, armed.  Raises CaptureError, FilterError.

    `auto` uses the kernel engine for legacy tables and the netlink engine for the rest;
    where the kernel engine cannot run, the netlink engine alone, with a warning.
    """
    program = pcap.compile(request.expr)
    if request.engine == "netlink":
        return _netlink(request, program)
    # Before anything is touched, and before bcc is imported.
    host = Host.here()
    lacking = doctor.why_not(host)
    if lacking is None:
        kernel = _kernel(request, program, host)
        return kernel if request.engine == "kernel" else _combined(request, program, kernel, host)
    if request.engine == "kernel":
        raise CaptureError(lacking.line())
    try:
        engine = _netlink(request, program)
    except CaptureError as error:
        raise CaptureError(f"{error}; the kernel engine cannot run: {lacking.text}") from error
    where = "" if request.netns else " in this network namespace (--netns all: in every one)"
    warning = f"tracing over netlink{where}; no kernel engine: {lacking.text}"
    engine.notes.insert(0, ("warn", warning))
    return engine


def _kernel(request: Request, program: bytes, host: Host) -> KernelEngine:
    if (pid := host.pins_holder) is not None:
        raise CaptureError(
            f"another ipttrace (pid {pid}) is already tracing on this host: stop it first"
        )
    from ipttrace.capture.kernel.engine import DEFAULT_BUFFER, KernelEngine, Options

    everywhere = request.netns in (None, netns.ALL)
    return KernelEngine(
        Options(
            program=program,
            netns=None if everywhere else netns.inode(request.netns or ""),
            buffer=request.buffer or DEFAULT_BUFFER,
            maxactive=request.maxactive,
        )
    )


def _combined(request: Request, program: bytes, kernel: KernelEngine, host: Host) -> Engine:
    """The kernel engine, with the netlink engine beside it for nftables where possible."""
    if "nf_tables" not in host.modules:
        return kernel  # not in use here, and asking for it would load it
    from ipttrace.capture import combined
    from ipttrace.capture.filter import nft
    from ipttrace.capture.netlink.engine import DEFAULT_BUFFER, NetlinkEngine, Options

    try:
        combined.refuse_inexact(nft.compile(program))
        scope = request.netns or netns.ALL  # the kernel engine's default
        options = Options(program, scope, DEFAULT_BUFFER, legacy=False, first=combined.FIRST)
        return combined.BothEngines(kernel, NetlinkEngine(options))
    except CaptureError as error:
        kernel.notes.append(("warn", f"nftables is not traced: {error}"))
        return kernel
    except BaseException:
        kernel.close()
        raise


def _netlink(request: Request, program: bytes) -> NetlinkEngine:
    from ipttrace.capture.netlink.engine import DEFAULT_BUFFER, NetlinkEngine, Options

    return NetlinkEngine(Options(program, request.netns, request.buffer or DEFAULT_BUFFER))
