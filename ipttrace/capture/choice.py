# SPDX-License-Identifier: GPL-2.0-only
"""Which engine runs: what the request asks for and the host allows.

An engine is imported only when it is chosen: bcc alone takes seconds.  Must not write
the stream.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from ipttrace.capture import doctor, netns
from ipttrace.capture.doctor.check import Check
from ipttrace.capture.doctor.machine import Host
from ipttrace.capture.engine import Engine
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter import pcap
from ipttrace.capture.filter.pcap import FilterError
from ipttrace.capture.request import Request
from ipttrace.capture.rules.base import RuleTexts
from ipttrace.capture.sources import Sources

if TYPE_CHECKING:
    from ipttrace.capture.bpf.engine import BpfEngine
    from ipttrace.capture.kernel.engine import KernelEngine
    from ipttrace.capture.netlink.engine import NetlinkEngine
    from ipttrace.capture.sockets.source import Sockets as SocketStages


def open_engine(request: Request) -> Engine:
    """The engine that `request` asks for, armed.  Raises CaptureError, FilterError.

    `auto` uses the kernel engine for legacy tables and the BPF engine for nftables; where the
    kernel engine cannot run, the BPF engine for all; and where BPF is refused, the netlink
    engine in its place, with a note.
    """
    program = pcap.compile(request.expr)
    if request.engine == "none":
        from ipttrace.capture.drops.alone import NoEngine

        return NoEngine()
    if request.from_rules and request.engine == "auto":
        return _from_rules(request)
    if request.engine == "netlink":
        return _netlink(request, program)
    if request.engine == "bpf":
        return _bpf(request, program)
    # Before anything is touched, and before bcc is imported.
    host = Host.here()
    lacking = doctor.why_not(host)
    if lacking is None:
        open_it = _kernel if request.engine == "kernel" else _combined
        return open_it(request, program, host)
    if request.engine == "kernel":
        raise CaptureError(lacking.line())
    return _without_module(request, program, host, lacking)


def sources_of(request: Request, engine: Engine) -> Sources:
    """The engine, and drops and sockets beside it, armed, if the host allows it.

    Raises CaptureError if nothing else was asked for.
    """
    alone = request.engine == "none"
    program = pcap.compile(request.expr)
    make = functools.partial(_make_sockets, request, engine)
    sockets = _sockets(make, program, engine, alone=alone) if request.sockets else None
    wanted = request.drops or request.stations or (alone and sockets is None)
    build = functools.partial(
        Sources,
        engine,
        sockets=sockets,
        make_sockets=make,
        program=program,
        raw_addresses=request.raw_addresses,
    )
    if request.from_rules or not wanted:  # rules mark no drops
        return build()
    drops, why = None, ""
    try:
        if os.geteuid() != 0:
            raise CaptureError("recording drops needs root: run with sudo")
        from ipttrace.capture.drops.source import Drops

        drops = Drops(program, _only_inode(request, engine), stations=request.stations)
    except CaptureError as error:
        if alone and sockets is None:
            raise CaptureError(f"drops cannot be seen here: {error}") from error
        why = str(error)
        if request.stations:
            engine.notes.append(("warn", f"drops and stations are not recorded: {error}"))
    return build(drops, why)


def _make_sockets(request: Request, engine: Engine, program: bytes) -> SocketStages:
    """Stages of sockets, armed.  Raises CaptureError."""
    if os.geteuid() != 0:
        raise CaptureError("seeing sockets needs root: run with sudo")
    from ipttrace.capture.sockets.source import Sockets

    return Sockets(program, _only_inode(request, engine))


def _sockets(
    make: Callable[[bytes], SocketStages], program: bytes, engine: Engine, *, alone: bool
) -> SocketStages | None:
    """Stages of sockets, armed; None if the host does not allow it and a note says why.

    Raises CaptureError if nothing else was asked for.
    """
    try:
        made = make(program)
    except CaptureError as error:
        if alone:
            raise CaptureError(f"sockets cannot be seen here: {error}") from error
        engine.notes.append(("warn", f"sockets are not recorded: {error}"))
        return None
    if made.warning:
        engine.notes.append(("warn", made.warning))
    return made


def rule_texts(request: Request, engine: Engine) -> list[RuleTexts]:
    """The watches for the rules that the engine's rows refer to."""
    found: list[RuleTexts] = []
    if engine.name not in ("netlink", "bpf", "none"):
        from ipttrace.capture.rules.kernel_watch import KernelRules

        found.append(KernelRules(None if request.netns == netns.ALL else request.netns))
    if engine.name not in ("kernel", "none"):
        from ipttrace.capture.rules.netlink_watch import NetlinkRules, ReportsChanges

        assert isinstance(engine, ReportsChanges)
        found.append(NetlinkRules(engine.changes))
    return found


def only_netns(request: Request, engine: Engine) -> str | None:
    """The one namespace that is traced; None for several."""
    if request.netns is None and engine.name in ("netlink", "bpf"):
        return "/proc/self/ns/net"
    return None if request.netns == netns.ALL else request.netns


def _only_inode(request: Request, engine: Engine) -> int:
    name = only_netns(request, engine)
    if name is None:
        return 0
    with netns.opened(name) as fd:
        return os.fstat(fd).st_ino


def _from_rules(request: Request) -> Engine:
    """The BPF engine, which sees all kinds of rules, and where it is refused, netlink."""
    refused = doctor.why_not_bpf(Host.here())
    refusal = ""
    if refused is None:
        try:
            return _bpf(request, b"")
        except CaptureError as error:
            refusal = str(error)
    else:
        refusal = _why(refused)
    engine = _netlink(request, b"")
    engine.notes.insert(0, ("info", f"tracing over netlink; no bpf engine: {refusal}"))
    return engine


def _without_module(request: Request, program: bytes, host: Host, lacking: Check) -> Engine:
    """The BPF engine, and where it is refused, the netlink engine; a note says why."""
    engine: Engine
    where = "" if request.netns else " in this network namespace (--netns all: in every one)"
    reasons = f"no kernel engine: {lacking.text}"
    refused = doctor.why_not_bpf(host)
    try:
        if refused is None:
            engine = _bpf(request, program)
            engine.notes.insert(0, ("info", f"tracing by BPF{where}; {reasons}"))
            return engine
        refusal = _why(refused)
    except FilterError:
        raise
    except CaptureError as error:
        refusal = str(error)
    if host.root_user:  # others cannot use BPF anyway
        reasons = f"no bpf engine: {refusal}; {reasons}"
    try:
        engine = _netlink(request, program)
    except CaptureError as error:
        raise CaptureError(f"{error}; the kernel engine cannot run: {lacking.text}") from error
    engine.notes.insert(0, ("warn", f"tracing over netlink{where}; {reasons}"))
    return engine


def _kernel(
    request: Request, program: bytes, host: Host, *, raw_addresses: bool = False
) -> KernelEngine:
    if (pid := host.pins_holder) is not None:
        raise CaptureError(
            f"another ipttrace (pid {pid}) is already tracing on this host: stop it first"
        )
    from ipttrace.capture.kernel.engine import DEFAULT_BUFFER, KernelEngine, Options

    everywhere = request.netns in (None, netns.ALL)
    return KernelEngine(
        Options(
            program=program,
            netns=None if everywhere else request.netns,
            buffer=request.buffer or DEFAULT_BUFFER,
            maxactive=request.maxactive,
            raw_addresses=raw_addresses or request.raw_addresses,
            from_rules=request.from_rules,
        )
    )


def _combined(request: Request, program: bytes, host: Host) -> Engine:
    """The kernel engine, with another one beside it for nftables: bpf, otherwise netlink."""
    if "nf_tables" not in host.modules:
        return _kernel(request, program, host)  # not in use here, and asking for it would load it
    refused = doctor.why_not_bpf(host)
    if refused is None:
        try:
            return _with_bpf(request, program, host)
        except CaptureError as error:
            why = str(error)
    else:
        why = _why(refused)
    engine = _with_netlink(request, program, host)
    if engine.name != "kernel":
        engine.notes.append(("info", f"nftables is traced over netlink; no bpf engine: {why}"))
    return engine


def _why(refused: Check) -> str:
    return refused.text.removeprefix("no, because ")


def _with_bpf(request: Request, program: bytes, host: Host) -> Engine:
    """Raises CaptureError, with nothing started."""
    from ipttrace.capture.bpf.engine import DEFAULT_BUFFER, BpfEngine, Options
    from ipttrace.capture.combined_bpf import KernelAndBpf
    from ipttrace.capture.two_engines import refuse_inexact

    refuse_inexact(program)
    scope = request.netns or netns.ALL  # the kernel engine's default
    options = Options(program, scope, DEFAULT_BUFFER, raw_addresses=True, legacy=False)
    kernel = _kernel(request, program, host, raw_addresses=True)
    try:
        bpf = BpfEngine(options)
    except BaseException:
        kernel.close()
        raise
    return KernelAndBpf(kernel, bpf, raw_addresses=request.raw_addresses)


def _with_netlink(request: Request, program: bytes, host: Host) -> Engine:
    kernel = _kernel(request, program, host)
    from ipttrace.capture import combined
    from ipttrace.capture.netlink.engine import DEFAULT_BUFFER, NetlinkEngine, Options
    from ipttrace.capture.two_engines import refuse_inexact

    try:
        refuse_inexact(program)
        scope = request.netns or netns.ALL  # the kernel engine's default
        first = combined.FIRST
        options = Options(
            program, scope, DEFAULT_BUFFER, legacy=False, first=first, beside_module=True
        )
        return combined.KernelAndNetlink(kernel, NetlinkEngine(options))
    except CaptureError as error:
        kernel.notes.append(("warn", f"nftables is not traced: {error}"))
        return kernel
    except BaseException:
        kernel.close()
        raise


def _bpf(request: Request, program: bytes) -> BpfEngine:
    from ipttrace.capture.bpf.engine import DEFAULT_BUFFER, BpfEngine, Options

    if os.geteuid() != 0:
        raise CaptureError("tracing with BPF needs root: run with sudo")
    return BpfEngine(
        Options(
            program,
            request.netns,
            request.buffer or DEFAULT_BUFFER,
            request.raw_addresses,
            from_rules=request.from_rules,
        )
    )


def _netlink(request: Request, program: bytes) -> NetlinkEngine:
    from ipttrace.capture.netlink.engine import DEFAULT_BUFFER, NetlinkEngine, Options

    buffer = request.buffer or DEFAULT_BUFFER
    return NetlinkEngine(Options(program, request.netns, buffer, from_rules=request.from_rules))
