# SPDX-License-Identifier: GPL-2.0-only
"""Stages as lines: who calls whom, whose it is, and why it came to nothing."""

from __future__ import annotations

import csv
import errno
import io
import json
from typing import Any

import numpy as np
import pytest

from ipttrace.stream import record
from ipttrace.trace.sockets import Process, Sockets, Stage
from ipttrace.trace.sockets.stage import End
from ipttrace.trace.sockets.words import explain, process_text
from ipttrace.view.sockets import FIELDS, FORMATS, StageView

SERVER: End = ("10.0.0.1", 80)
CLIENT: End = ("10.0.0.2", 40000)
NAMES = {7: "web"}


def stage(what: int, flags: int = 0, remote: End | None = CLIENT, **fields: Any) -> Stage:
    """A stage of the server's end."""
    given: dict[str, Any] = {
        "connection": 1,
        "netns": 7,
        "family": 4,
        "protocol": 6,
        "server": True,
    }
    return Stage(time=0, stage=what, flags=flags, local=SERVER, remote=remote, **(given | fields))


def test_a_line_has_the_ends_the_process_and_the_queue() -> None:
    named = "0123456789abcdef"
    process = Process(12, comm="nginx", pids=(12, 3), container=named, runtime="docker")
    one = stage(
        record.ACCEPTED,
        process=process,
        queue=0,
        queue_most=128,
        since=12_300,
        original=("192.0.2.7", 8080),
    )
    line = StageView("text", NAMES).lines([one])
    assert (
        line.split()
        == (
            f"{line.split()[0]} accepted TCP 10.0.0.2:40000 > 10.0.0.1:80 web +12.3 µs nginx"
            " (pid 12, 3 inside) in docker 0123456789ab accept queue 0 of 128;"
            " called as 192.0.2.7:8080"
        ).split()
    )


@pytest.mark.parametrize(
    ("one", "why"),
    [
        (stage(record.SYN_DROPPED), "no reason is known as yet; its repetition may show one"),
        (stage(record.SYN_DROPPED, record.SK_F_DENIED), "a security module"),
        (
            stage(record.SYN_DROPPED, record.SK_F_ACCEPT_FULL, queue=2, queue_most=1),
            "the accept queue is full (2 of 1)",
        ),
        (
            stage(record.SYN_DROPPED, record.SK_F_SYN_FULL, requests=9, queue_most=8),
            "as many handshakes as may be (9 of 8)",
        ),
        (stage(record.SYN_ACK_SENT, record.SK_F_COOKIE), "with a cookie"),
        (stage(record.SYN_ACK_SENT, repeated=2), "again (3)"),
        (stage(record.SYN_ACK_SENT, record.SK_F_FASTOPEN), "TCP Fast Open"),
        (stage(record.ESTABLISHED, record.SK_F_MPTCP), "a subflow of MPTCP"),
        (stage(record.REFUSED, record.SK_F_SENT), "no process listens on 10.0.0.1:80"),
        (stage(record.REFUSED, error=errno.ETIMEDOUT), "no answer to any SYN"),
        (stage(record.REFUSED, error=errno.EHOSTUNREACH), "No route to host"),
        (stage(record.RESET), "by the other end"),
        (stage(record.RESET, record.SK_F_SENT), "by this host"),
        (stage(record.CLOSED, record.SK_F_LISTENER, None), "the listener"),
        (stage(record.CLOSED), ""),
        (stage(record.CLOSED, error=0xFFFFFFFF), "error 4294967295"),
    ],
)
def test_it_says_why(one: Stage, why: str) -> None:
    assert (why in explain(one)) if why else explain(one) == ""


def test_csv_and_json_have_the_same_fields() -> None:
    process = Process(12, 13, "=cmd", pids=(12, 3), uid=0)
    listed = [
        stage(record.ACCEPTED, process=process, called=True),
        stage(record.LISTENING, remote=None),
    ]
    view = StageView("csv", NAMES)
    rows = list(csv.DictReader(io.StringIO(view.header() + view.lines(listed))))
    objects = [json.loads(line) for line in StageView("jsonl", NAMES).lines(listed).splitlines()]
    assert all(tuple(one) == FIELDS for one in (*rows, *objects))
    # What is unknown is empty, and never 0; what a spreadsheet would evaluate is a text.
    accepted, listening = rows
    assert (accepted["comm"], accepted["pids"], accepted["uid"]) == ("'=cmd", "12>3", "0")
    assert (listening["pid"], listening["uid"], listening["remote_ip"]) == ("", "", "")
    assert objects[1]["pid"] is objects[1]["process"] is objects[1]["queue"] is None
    assert (objects[0]["process"], objects[0]["pids"]) == ("caller", [12, 3])


def test_names_cannot_change_the_terminal() -> None:
    process = Process(1, comm="\x1b[31m", container="\u202e" * 20)
    line = StageView("text", {7: "\x1b]0;x\x07"}).lines([stage(record.ACCEPTED, process=process)])
    assert line.rstrip("\n").isprintable()
    assert process_text(None) == ""


@pytest.mark.parametrize("format", FORMATS)
def test_whatever_a_recording_has_is_lines(format: str) -> None:
    # GIVEN records of random bytes
    random = np.random.default_rng(11)
    sockets = Sockets()
    raw = random.bytes(record.SOCKET_DTYPE.itemsize * 2000)
    sockets.feed(np.frombuffer(raw, record.SOCKET_DTYPE), 0)
    # THEN each is one line that is safe on a terminal
    text = StageView(format, {}).lines(sockets.take())
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    assert len(lines) == 2000
    assert all(map(str.isprintable, lines))
