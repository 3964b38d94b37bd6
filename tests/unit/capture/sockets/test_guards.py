# SPDX-License-Identifier: GPL-2.0-only
"""What a guard denies arrives at those that trace sockets, whole lines or counted."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import pytest

from ipttrace.capture.sockets import guards
from ipttrace.capture.sockets.guards import Guards
from ipttrace.guard import sharing
from ipttrace.guard.sharing import Sharing

IS_OF_ROOT = guards.is_of_root


@pytest.fixture
def addresses() -> tuple[str, ...]:
    """Of this test alone: a guard may run on this host."""
    return tuple(f"\0ipttrace-test-{os.getpid()}-{number}" for number in range(2))


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "is_of_root", lambda one: True)
    monkeypatch.setattr(sharing, "is_of_root", lambda one: True)


def test_lines_arrive_also_those_from_just_before(addresses: tuple[str, ...]) -> None:
    guard, reader = Sharing(addresses), Guards(addresses)
    guard.send({"rule": 1})
    assert reader.take() == []
    guard.accept()
    guard.send({"rule": 2})
    guard.flush(5)
    assert reader.upto == 0
    assert reader.take() == [{"rule": 1}, {"rule": 2}]
    # AND until when it has said everything
    assert reader.upto == 5
    guard.close()
    assert reader.take() == []
    assert reader.upto is None


def test_two_guards_and_one_that_comes_too_late(addresses: tuple[str, ...]) -> None:
    each = [Sharing(addresses) for _ in range(3)]
    reader = Guards(addresses)
    reader.take()
    for number, one in enumerate(each):
        one.accept()
        one.send({"rule": number})
        one.flush(5)
    assert reader.take() == [{"rule": 0}, {"rule": 1}]
    for one in each:
        one.close()


def test_a_reader_that_does_not_read_loses_lines_that_are_counted(
    addresses: tuple[str, ...],
) -> None:
    guard, reader = Sharing(addresses), Guards(addresses)
    reader.take()
    guard.accept()
    text = "x" * 10_000
    for number in range(500):
        guard.send({"number": number, "text": text})
        guard.flush(5)
    found: list[dict[str, Any]] = []
    while more := reader.take():
        found += more
        guard.flush(5)
    guard.send({"number": 500})
    guard.flush(5)
    found += reader.take()
    lost = sum(one.get("lost", 0) for one in found)
    numbers = [one["number"] for one in found if "number" in one]
    assert lost > 0
    assert len(numbers) + lost == 501
    assert numbers == sorted(numbers)


@pytest.mark.parametrize(
    "sent", [b"\xff\xfe\n", b"[1]\n", b"{\n", b"[" * 10_000 + b"\n", b"x" * 200_000, b"null\n"]
)
def test_what_is_no_object_is_left_out(addresses: tuple[str, ...], sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(addresses[0])
        listener.listen()
        reader = Guards(addresses)
        reader.take()
        one, _ = listener.accept()
        with one:
            one.settimeout(30)
            found: list[dict[str, Any]] = []
            for piece in (sent[at : at + 4096] for at in range(0, len(sent), 4096)):
                one.sendall(piece)
                found += reader.take()
            one.sendall(b"\n" + json.dumps({"rule": 3}).encode() + b"\n")
            found += reader.take()
    assert found == [{"rule": 3}]
    assert reader.take() == []


def test_only_root_is_listened_to(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guards, "is_of_root", lambda one: False)
    guard, reader = Sharing(addresses), Guards(addresses)
    assert reader.take() == []
    guard.accept()
    guard.send({"rule": 1})
    guard.flush(5)
    assert reader.take() == []
    guard.close()


def test_whose_the_other_end_is() -> None:
    one, other = socket.socketpair()
    with one, other:
        assert IS_OF_ROOT(one) == (os.geteuid() == 0)
