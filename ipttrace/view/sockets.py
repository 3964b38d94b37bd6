# SPDX-License-Identifier: GPL-2.0-only
"""Stages of sockets as lines of text, as CSV (RFC 4180) and as JSON objects.  Must not do I/O."""

from __future__ import annotations

import csv
import errno
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ipttrace.stream import record
from ipttrace.text import escape, width
from ipttrace.trace.sockets import Process, Stage
from ipttrace.trace.sockets.stage import WOULD_DENY
from ipttrace.trace.sockets.words import (
    BAD,
    GOOD,
    end_text,
    ends_text,
    explain,
    process_text,
)
from ipttrace.view.csv import cell
from ipttrace.view.values import clock, duration, hexadecimal, rfc3339

FORMATS: Final = ("text", "csv", "jsonl")
FIELDS: Final = (
    *("time", "stage", "connection", "side", "protocol", "family", "netns", "netns_name"),
    *("local_ip", "local_port", "remote_ip", "remote_port"),
    *("orig_dst", "orig_dport", "reply_src", "reply_sport"),
    *("sk", "listener", "request", "queue", "backlog", "requests", "error", "why"),
    *("since_ns", "repeated", "process", "pid", "tid", "pids", "tids", "comm", "exe", "uid"),
    *("runtime", "container", "pod", "unit", "rule", "rule_text"),
)
"""The columns of CSV and the names in JSON, in order; new ones only go to the end."""

_RED: Final = "\x1b[31m"
_GREEN: Final = "\x1b[32m"
_RESET: Final = "\x1b[0m"
# In which the addresses before and after NAT are shown.
_TRANSLATED: Final = (
    *(record.SYN_TAKEN, record.SYN_DROPPED, record.ACK_DROPPED, record.ACCEPTED),
    *(record.CONNECTED, record.REFUSED),
)
_NAME: Final = max(map(len, (*record.STAGES, WOULD_DENY)))
_ENDS: Final = 44  # cells, to begin with


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
    if stage.stage in BAD and not stage.is_allowed:
        return _RED
    return _GREEN if stage.stage in GOOD else ""


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
    if stage.denial is not None:
        found["rule"], found["rule_text"] = stage.denial.rule, stage.denial.text or None
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
