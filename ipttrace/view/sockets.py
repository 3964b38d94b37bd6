# SPDX-License-Identifier: GPL-2.0-only
"""Stages of sockets as lines of text, as CSV (RFC 4180) and as JSON objects.  Must not do I/O."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ipttrace.stream import record
from ipttrace.text import escape, width
from ipttrace.trace.sockets import Process, Stage
from ipttrace.trace.sockets.stage import End
from ipttrace.view.csv import cell
from ipttrace.view.values import clock, duration, hexadecimal, rfc3339

FORMATS: Final = ("text", "csv", "jsonl")
FIELDS: Final = (
    *("time", "stage", "connection", "side", "protocol", "family", "netns", "netns_name"),
    *("local_ip", "local_port", "remote_ip", "remote_port"),
    *("orig_dst", "orig_dport", "reply_src", "reply_sport"),
    *("sk", "listener", "request", "queue", "backlog", "requests", "error", "why"),
    *("since_ns", "repeated", "process", "pid", "tid", "pids", "tids", "comm", "exe", "uid"),
    *("runtime", "container", "pod", "unit"),
)
"""The columns of CSV and the names in JSON, in order; new ones only go to the end."""

_RED: Final = "\x1b[31m"
_GREEN: Final = "\x1b[32m"
_RESET: Final = "\x1b[0m"
_BAD: Final = (
    *(record.SYN_DROPPED, record.ACK_DROPPED, record.REFUSED, record.RESET),
    record.ABANDONED,
)
_GOOD: Final = (record.ACCEPTED, record.CONNECTED)
_REPEATED: Final = (record.CONNECTING, record.SYN_TAKEN, record.SYN_ACK_SENT)
# In which the addresses before and after NAT are shown.
_TRANSLATED: Final = (
    *(record.SYN_TAKEN, record.SYN_DROPPED, record.ACK_DROPPED, record.ACCEPTED),
    *(record.CONNECTED, record.REFUSED),
)
_NAME: Final = max(map(len, record.STAGES))
_ENDS: Final = 44  # cells, to begin with
_MOST_ERRORS: Final = 4096  # MAX_ERRNO of the kernel
_SHORT: Final = 12  # characters of a container's id

# What failed calls mean here; others have the kernel's own words.
_ERRORS: Final = {
    errno.ECONNREFUSED: "no process listens there: the answer is a reset, or ICMP's port"
    " unreachable",
    errno.ETIMEDOUT: "no answer to any SYN",
}


class StageView:
    """Lines of one format, one for each stage; all with their line ends."""

    def __init__(self, format: str, names: Mapping[int, str], *, colour: bool = False) -> None:
        """`format`: of FORMATS; `names`: of the network namespaces by inode, may grow later."""
        self._format = format
        self._names = names
        self._colour = colour
        self._width = _ENDS

    def header(self) -> str:
        """Returns what precedes the first line."""
        return ",".join(FIELDS) + "\r\n" if self._format == "csv" else ""

    def lines(self, stages: Iterable[Stage]) -> str:
        """Returns a line for each."""
        each = {"csv": self._csv, "jsonl": self._json}.get(self._format, self._text)
        return "".join(map(each, stages))

    def _json(self, stage: Stage) -> str:
        return json.dumps(as_json(stage, self._names), ensure_ascii=False) + "\n"

    def _csv(self, stage: Stage) -> str:
        out = io.StringIO()
        csv.writer(out).writerow(map(_cell, as_json(stage, self._names).values()))
        return out.getvalue()

    def _text(self, stage: Stage) -> str:
        name = f"{stage.name:{_NAME}}"
        if self._colour and (colour := _colour(stage)):
            name = f"{colour}{name}{_RESET}"
        ends = ends_text(stage)
        self._width = max(self._width, min(width(ends), 2 * _ENDS))
        netns = self._names.get(stage.netns) or str(stage.netns)
        since = "" if stage.since is None else f"+{duration(stage.since)}"
        parts = (
            *(clock(stage.time), name, stage.protocol_name, ends.ljust(self._width)),
            *(escape(netns), since.rjust(8), process_text(stage.process)),
        )
        return "  ".join(part for part in (*parts, _facts(stage)) if part).rstrip() + "\n"


def _colour(stage: Stage) -> str:
    if stage.stage in _BAD:
        return _RED
    return _GREEN if stage.stage in _GOOD else ""


def as_json(stage: Stage, names: Mapping[int, str]) -> dict[str, Any]:
    """The stage as FIELDS; what is not known is None.  `names`: of namespaces by inode."""
    process = stage.process or Process()
    ends = {"local": stage.local, "remote": stage.remote}
    found: dict[str, Any] = dict.fromkeys(FIELDS)
    found |= {
        "time": rfc3339(stage.time),
        "stage": stage.name,
        "connection": stage.connection or None,
        "side": None if stage.server is None else ("client", "server")[stage.server],
        "protocol": stage.protocol_name,
        "family": stage.family,
        "netns": stage.netns,
        "netns_name": names.get(stage.netns),
        "sk": hexadecimal(stage.sk or None) or None,
        "listener": hexadecimal(stage.listener or None) or None,
        "request": hexadecimal(stage.request or None) or None,
        "queue": stage.queue,
        "backlog": stage.queue_most,
        "requests": stage.requests,
        "error": errno.errorcode.get(stage.error, str(stage.error)) if stage.error else None,
        "why": explain(stage) or None,
        "since_ns": stage.since,
        "repeated": stage.repeated,
        "uid": process.uid,
    }
    for name, end in ends.items():
        if end is not None:
            found[f"{name}_ip"], found[f"{name}_port"] = end
    if stage.original is not None:
        found["orig_dst"], found["orig_dport"] = stage.original
    if stage.answers is not None:
        found["reply_src"], found["reply_sport"] = stage.answers
    if stage.process is not None:
        found["process"] = "caller" if stage.called else "owner"
        for name in ("pid", "tid", "comm", "exe", "runtime", "container", "pod", "unit"):
            found[name] = getattr(process, name) or None
        found["pids"], found["tids"] = list(process.pids) or None, list(process.tids) or None
    return found


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ">".join(map(str, value))
    return "" if value is None else cell(str(value))


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


def _facts(stage: Stage) -> str:
    """What CSV and JSON have in fields of their own."""
    parts = [explain(stage)]
    if stage.queue is not None and stage.stage == record.LISTENING:
        parts.append(f"backlog {stage.queue_most}")
    if stage.queue is not None and stage.stage in (record.ESTABLISHED, record.ACCEPTED):
        parts.append(f"accept queue {stage.queue} of {stage.queue_most}")
    if stage.stage in _TRANSLATED:
        if stage.original is not None and stage.original != stage.local:
            parts.append(f"called as {end_text(stage.original)}")
        if stage.answers is not None and stage.answers != stage.remote:
            parts.append(f"answered by {end_text(stage.answers)}")
    return "; ".join(filter(None, parts))


def _why(stage: Stage) -> str:
    of = stage.stage
    if of in (record.SYN_DROPPED, record.ACK_DROPPED):
        return _dropped(stage)
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
        return "a security module (SELinux, BPF LSM such as ipttrace guard) denies it"
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
    return "the kernel gives no reason"
