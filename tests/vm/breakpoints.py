# SPDX-License-Identifier: GPL-2.0-only
"""Rules with the target IPTTRACE: the module and iptables' extension for it, and packets."""

from __future__ import annotations

import contextlib
import os
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from unittest import mock

from ipttrace.capture.kernel import module as kmod
from ipttrace.lab.network.ns import socket_in
from ipttrace.trace.row import Row
from tests.vm.patience import PATIENCE
from tests.vm.plain import LOOPBACK, Plain

BUILT: Final = Path(__file__).resolve().parents[2] / "build" / "xtables"
HOSTS: Final = Path(f"/usr/lib/{os.uname().machine}-linux-gnu/xtables")
KINDS: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


@contextlib.contextmanager
def module() -> Iterator[None]:
    """The module is loaded, and nothing is armed; rules that use it are gone at the end."""
    kmod.insert(kmod.find_or_build())
    try:
        yield
    finally:
        kmod.remove(PATIENCE)


def extension() -> contextlib.AbstractContextManager[object]:
    """During a with statement iptables finds the extension, which is not installed."""
    assert (BUILT / "libxt_IPTTRACE.so").exists(), "make build/xtables/libxt_IPTTRACE.so"
    return mock.patch.dict(os.environ, {"XTABLES_LIBDIR": f"{HOSTS}:{BUILT}"})


@contextlib.contextmanager
def breakable() -> Iterator[Plain]:
    """A namespace in which rules may have the target."""
    with module(), extension(), Plain("ipt-breaks") as plain:
        yield plain


def send(plain: Plain, family: int, port: int, count: int, size: int = 8) -> None:
    """Sends datagrams from `plain` to itself, and receives each before the next one."""
    kind = (KINDS[family], socket.SOCK_DGRAM)
    with socket_in(plain.name, *kind) as sender, socket_in(plain.name, *kind) as heard:
        heard.bind((LOOPBACK[family], port))
        heard.settimeout(PATIENCE)
        for _ in range(count):
            sender.sendto(b"x" * size, (LOOPBACK[family], port))
            assert len(heard.recv(1 << 16)) == size


def way(row: Row) -> str:
    """A row's path in short: "WEB:1 OUTPUT:2/policy"."""
    return " ".join(
        f"{one.chain}:{one.rulenum}" + ("" if one.match == "rule" else f"/{one.match}")
        for one in row.path
    )


def ways(rows: list[Row]) -> Counter[tuple[str, str, str, str | None]]:
    """Hook, table, path and verdict of each row."""
    return Counter((row.hook, row.table, way(row), row.verdict) for row in rows)
