# SPDX-License-Identifier: GPL-2.0-only
"""CPUs that go off and on are recognised among all that the kernel reports of devices."""

from __future__ import annotations

import os
import socket

import pytest

from ipttrace.capture.kernel import cpus
from ipttrace.capture.kernel.cpus import CpuEvents, parse, parse_list


def uevent(action: str, path: str) -> bytes:
    """A message as lib/kobject_uevent.c makes them."""
    return f"{action}@{path}\0ACTION={action}\0DEVPATH={path}\0SUBSYSTEM=cpu\0".encode()


@pytest.mark.parametrize(
    ("message", "found"),
    [
        (uevent("online", "/devices/system/cpu/cpu1"), (1, True)),
        (uevent("offline", "/devices/system/cpu/cpu127"), (127, False)),
        (uevent("online", "/devices/system/memory/memory1"), None),
        (uevent("change", "/devices/system/cpu/cpu1"), None),
        (uevent("online", "/devices/system/cpu/cpu1/cache"), None),
        (b"online@/devices/system/cpu/cpu1", None),
        (b"", None),
    ],
)
def test_only_a_cpu_that_goes_off_or_on_is_one(
    message: bytes, found: tuple[int, bool] | None
) -> None:
    assert parse(message) == found


@pytest.mark.parametrize(
    ("text", "found"), [("0-2,5\n", {0, 1, 2, 5}), ("0\n", {0}), ("\n", set())]
)
def test_the_kernels_list_of_cpus_is_read(text: str, found: set[int]) -> None:
    assert parse_list(text) == found


def test_the_cpus_that_run_this_are_on() -> None:
    assert os.sched_getaffinity(0) <= cpus.online()


def test_what_another_process_sends_is_not_believed() -> None:
    # GIVEN the watch, and its group
    events = CpuEvents()
    try:
        sender = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 15)
        sender.bind((0, 0))
        # WHEN somebody else sends an event
        to = (events._socket.getsockname()[0], 0)
        try:
            sender.sendto(uevent("online", "/devices/system/cpu/cpu9"), to)
        except OSError as error:
            pytest.skip(f"this host lets nobody send: {error}")
        finally:
            sender.close()
        # THEN nothing is reported
        assert events.take() == []
    finally:
        events.close()
