# SPDX-License-Identifier: GPL-2.0-only
"""What stages of sockets mean, in words, for lines and for the screen.  Must not do I/O."""

from __future__ import annotations

import errno
import os
from typing import Final

from ipttrace.stream import record
from ipttrace.text import escape
from ipttrace.trace.sockets.stage import End, Process, Stage

BAD: Final = (
    *(record.SYN_DROPPED, record.ACK_DROPPED, record.REFUSED, record.RESET),
    *(record.ABANDONED, record.DENIED),
)
"""Stages in which a connection comes to nothing."""
GOOD: Final = (record.ACCEPTED, record.CONNECTED)
"""Stages in which a process has its connection."""
_REPEATED: Final = (record.CONNECTING, record.SYN_TAKEN, record.SYN_ACK_SENT)
_MOST_ERRORS: Final = 4096  # MAX_ERRNO of the kernel
_DENIES: Final = "a security module (SELinux, BPF LSM such as ipttrace guard) denies"
_SHORT: Final = 12  # characters of a container's id

# What failed calls mean here; others have the kernel's own words.
_ERRORS: Final = {
    errno.ECONNREFUSED: "no process listens there: the answer is a reset, or ICMP's port"
    " unreachable",
    errno.ETIMEDOUT: "no answer to any SYN",
}


def end_text(end: End | None) -> str:
    """Returns `192.0.2.7:80`, `[2001:db8::7]:80`, or `*`."""
    if end is None:
        return "*"
    address, port = end
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def ends_text(stage: Stage) -> str:
    """Returns who calls whom: `192.0.2.7:41000 > 198.51.100.5:80`; of a listener, its end."""
    if stage.remote is None:
        return end_text(stage.local)
    ends = (stage.remote, stage.local) if stage.server else (stage.local, stage.remote)
    return " > ".join(map(end_text, ends))


def process_text(process: Process | None) -> str:
    """Returns `nginx (pid 4711, 7 inside) in docker 0123456789ab`; "" if it is unknown."""
    if process is None:
        return ""
    inside = process.pids[-1] if len(process.pids) > 1 else 0
    pid = f"pid {process.pid}" + (f", {inside} inside" if inside else "")
    text = f"{escape(process.comm) or '?'} ({pid})"
    if process.container:
        text += f" in {escape(process.runtime or 'container')} {escape(process.container[:_SHORT])}"
    elif process.pod:
        text += f" in pod {escape(process.pod)}"
    elif process.unit:
        text += f" in {escape(process.unit)}"
    if process.others:
        text += f" and {process.others} more"
    return text


def explain(stage: Stage) -> str:
    """Returns why the stage was reached, and what is special about it; "" if there is nothing."""
    parts = [_why(stage)]
    if stage.repeated and stage.stage in _REPEATED:
        parts.append(f"again ({stage.repeated + 1})")
    if stage.has(record.SK_F_FASTOPEN):
        parts.append("TCP Fast Open")
    if stage.has(record.SK_F_MPTCP):
        parts.append("a subflow of MPTCP")
    return "; ".join(filter(None, parts))


def _why(stage: Stage) -> str:
    of = stage.stage
    if of in (record.SYN_DROPPED, record.ACK_DROPPED):
        return _dropped(stage)
    if stage.denial is not None:
        rule = f"rule {stage.denial.rule}"
        text = f": {escape(stage.denial.text)}" if stage.denial.text else ""
        verb = "would be denied" if stage.is_allowed else "denied"
        return f"{verb} by ipttrace guard, {rule}{text}"
    if of == record.DENIED:
        call = "accept()" if stage.remote is None else "connect()"
        return f"{_DENIES} {call}"
    if of == record.SYN_ACK_SENT and stage.has(record.SK_F_COOKIE):
        return "with a cookie: the SYN queue is full, and no request is kept"
    if of == record.REFUSED:
        if stage.has(record.SK_F_SENT):
            return f"no process listens on {end_text(stage.local)}"
        return _ERRORS.get(stage.error, _error(stage.error))
    if of == record.RESET:
        return "by this host" if stage.has(record.SK_F_SENT) else "by the other end"
    if of == record.ABANDONED:
        return "the last ACK of the handshake did not come, or the listener is gone"
    if of == record.CLOSED:
        if stage.has(record.SK_F_LISTENER):
            return "the listener"
        return _error(stage.error)
    return ""


def _error(number: int) -> str:
    """The kernel's words for an error; "" for none."""
    if not number:
        return ""
    return os.strerror(number) if number < _MOST_ERRORS else f"error {number}"


def _dropped(stage: Stage) -> str:
    if stage.has(record.SK_F_DENIED):
        return f"{_DENIES} it"
    if stage.has(record.SK_F_ACCEPT_FULL):
        return (
            f"the accept queue is full ({stage.queue} of {stage.queue_most}): the process does not"
            " accept fast enough; see `ss -ltn`, sysctl net.core.somaxconn"
        )
    if stage.has(record.SK_F_SYN_FULL):
        return (
            f"there are as many handshakes as may be ({stage.requests} of {stage.queue_most});"
            " see sysctl net.ipv4.tcp_max_syn_backlog, net.ipv4.tcp_syncookies"
        )
    return "no reason is known as yet; its repetition may show one"
