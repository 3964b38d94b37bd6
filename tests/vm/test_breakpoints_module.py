# SPDX-License-Identifier: GPL-2.0-only
"""Rules with -j IPTTRACE hold the module, and the kernel takes only sound ones."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from pathlib import Path

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel import module as kmod
from ipttrace.capture.xtables import Sockets
from ipttrace.lab.network.ns import call_in
from tests.vm.breakpoints import breakable, extension, send
from tests.vm.conftest import SHARED
from tests.vm.live import live
from tests.vm.patience import PATIENCE
from tests.vm.plain import COMMANDS, Plain

RULE = ("-A", "OUTPUT", "-p", "udp", "--dport", "53", "-j", "IPTTRACE", "--note", "web")
NOTE = b"web" + bytes(29)
# struct ipt_getinfo, ipt_replace (up to the counters): linux/netfilter_ipv4/ip_tables.h
_INFO = struct.Struct("=32sI5I5III")
_REPLACE = struct.Struct("=32sIII5I5IIQ")
_SO_SET_REPLACE = 64


def replace(entries: bytes, info: bytes) -> int:
    """Replaces the table filter by these entries; the errno, 0 if the kernel takes them."""
    name, hooks, *rest, count, size = _INFO.unpack(info)
    counters = ctypes.create_string_buffer(16 * count)
    at = ctypes.addressof(counters)
    head = _REPLACE.pack(name, hooks, count, size, *rest, count, at)
    libc = ctypes.CDLL(None, use_errno=True)
    data = head + entries
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as one:
        failed = libc.setsockopt(one.fileno(), 0, _SO_SET_REPLACE, data, len(data))
        return ctypes.get_errno() if failed else 0


@SHARED
def test_a_note_that_is_not_sound_is_refused() -> None:
    with breakable() as plain:
        plain.run(COMMANDS[4], *RULE)

        def attempt(note: bytes) -> int:
            sockets = Sockets()
            try:
                found = sockets.fetch(4, "filter")
            finally:
                sockets.close()
            assert found is not None
            info, entries = found
            raw = entries.tobytes()
            assert raw.count(NOTE) == 1
            return replace(raw.replace(NOTE + bytes(8), note), info)

        # GIVEN a table that the kernel takes as it is
        assert call_in(plain.name, lambda: attempt(NOTE + bytes(8))) == 0
        # WHEN the note has no end, or a terminal escape, or something follows it
        for note in (
            b"x" * 32 + bytes(8),
            b"\x1b[2J" + bytes(36),
            b"web\0hidden" + bytes(30),
            NOTE + b"\1" + bytes(7),
        ):
            # THEN the kernel refuses it, and the rules stay
            assert call_in(plain.name, lambda note=note: attempt(note)) == errno.EINVAL  # type: ignore[misc]
        assert "--note web" in plain.run("iptables-legacy-save").stdout


@SHARED
def test_the_module_stays_as_long_as_rules_use_it(tmp_path: Path) -> None:
    with extension(), Plain("ipt-breaks") as plain:
        # GIVEN a trace that has loaded the module, and rules that use it
        one = live(plain, tmp_path / "first", engine="kernel", from_rules=True)
        plain.run(COMMANDS[4], *RULE)
        plain.run("ip6tables-nft", *RULE)
        send(plain, 4, 53, 3)
        one.wait_rows(3)
        one.finish()
        # THEN it says at the end which rules keep it
        assert (
            "the module stays loaded when ipttrace ends: 2 rules with -j IPTTRACE (iptables -t"
            " filter of network namespace ipt-breaks, ip6tables-nft -t filter of network namespace"
            " ipt-breaks) use it" in str(one.trace.notes)
        )
        assert kmod.loaded()
        with pytest.raises(CaptureError, match=r"2 rules with -j IPTTRACE .*delete them first"):
            kmod.remove(0.1)
        # AND the next trace uses it
        one = live(plain, tmp_path / "second", engine="kernel", from_rules=True)
        send(plain, 4, 53, 3)
        one.wait_rows(3)
        one.finish()
        assert kmod.loaded()
        # WHEN the rules are gone, THEN it can be removed
        plain.run(COMMANDS[4], "-F", "OUTPUT")
        plain.run("ip6tables-nft", "-F", "OUTPUT")
        kmod.remove(PATIENCE)
