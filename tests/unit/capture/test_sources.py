# SPDX-License-Identifier: GPL-2.0-only
"""An engine and the drops beside it behave as one source."""

from __future__ import annotations

from unittest import mock

import pytest

from ipttrace.capture.control_line import Command, parse
from ipttrace.capture.drops.alone import NoEngine
from ipttrace.capture.drops.source import Drops
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.sockets.source import Sockets
from ipttrace.capture.sources import Sources


def drops() -> mock.Mock:
    found: mock.Mock = mock.create_autospec(Drops, instance=True)
    return found


def test_the_control_line_switches_stations() -> None:
    assert parse(b'{"cmd": "stations", "on": true}') == Command("stations", on=True)
    assert parse(b'{"cmd": "stations", "on": false}') == Command("stations", on=False)


@pytest.mark.parametrize("rest", [b"", b', "on": 1', b', "on": "yes"', b', "on": null'])
def test_stations_on_the_control_line_are_on_or_off(rest: bytes) -> None:
    with pytest.raises(CaptureError, match="control line"):
        parse(b'{"cmd": "stations"' + rest + b"}")


def test_both_are_armed_and_disarmed_together() -> None:
    one = drops()
    sources = Sources(NoEngine(), one)
    sources.disarm()
    assert not sources.armed
    one.disarm.assert_called_once_with()
    sources.arm()
    assert sources.armed
    one.arm.assert_called_once_with()


def test_if_drops_cannot_be_armed_nothing_is() -> None:
    one = drops()
    one.arm.side_effect = CaptureError("refused")
    sources = Sources(NoEngine(), one)
    sources.disarm()
    with pytest.raises(CaptureError, match="refused"):
        sources.arm()
    assert not sources.armed
    assert sources.engine.books()["state"] == "disarmed"


def test_the_control_line_switches_sockets() -> None:
    assert parse(b'{"cmd": "sockets", "on": true}') == Command("sockets", on=True)
    with pytest.raises(CaptureError, match="sockets on the control line are neither"):
        parse(b'{"cmd": "sockets", "on": 1}')


def test_sockets_may_be_asked_for_later_and_come_and_go_with_the_rest() -> None:
    # GIVEN a trace that began without them, whose filter was replaced
    one = mock.create_autospec(Sockets, instance=True)
    one.books.return_value = {"due": 0, "delivered": 0, "lost": 0, "missed": 0, "refused": 0}
    make = mock.Mock(return_value=one)
    sources = Sources(NoEngine(), make_sockets=make, program=b"first")
    sources.filter(b"second")
    sources.show_sockets(False)
    assert "sockets" not in sources.books()
    # WHEN they are asked for, while it is disarmed
    sources.disarm()
    sources.show_sockets(True)
    # THEN they have the filter of now, are disarmed, and are counted from now on
    make.assert_called_once_with(b"second")
    one.disarm.assert_called_once_with()
    assert "sockets" in sources.books()
    # AND later they are armed and switched with the rest
    sources.arm()
    one.arm.assert_called_once_with()
    sources.show_sockets(False)
    one.show.assert_called_once_with(False)
    make.assert_called_once()


def test_where_sockets_cannot_be_recorded_the_reason_is_given() -> None:
    make = mock.Mock(side_effect=CaptureError("the kernel has no BTF"))
    sources = Sources(NoEngine(), make_sockets=make)
    with pytest.raises(CaptureError, match="sockets cannot be recorded: the kernel has no BTF"):
        sources.show_sockets(True)
    assert "sockets" not in sources.books()


def test_stations_cannot_be_switched_on_without_drops() -> None:
    sources = Sources(NoEngine(), None, "no BTF")
    assert sources.no_drops == "no BTF"
    with pytest.raises(CaptureError, match="stations cannot be recorded: no BTF"):
        sources.show_stations(True)


def test_stations_count_for_the_budget() -> None:
    one = drops()
    one.counts.return_value = (20, 3)
    assert Sources(NoEngine(), one).rows() == (20, 3)
