# SPDX-License-Identifier: GPL-2.0-only
"""Flips packets at the ingress of those devices at which chains are hooked.

There, and nowhere else, they meet rules before they reach PREROUTING.  Must not read trace
messages.
"""

from __future__ import annotations

from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter.nft import Compiled
from ipttrace.capture.netlink.events import TABLE_PREFIX
from ipttrace.capture.netlink.nft.dump import Devices, Snapshot
from ipttrace.capture.netlink.nft.table import FlipTable
from ipttrace.netfilter import NFPROTO_INET, NFPROTO_NETDEV

_AT_INGRESS: Final = ((NFPROTO_NETDEV, 0), (NFPROTO_INET, 5))  # family and hook
_PREFIX: Final = TABLE_PREFIX.decode()


class DeviceFlips:
    """What a flip table does at devices."""

    def __init__(self, table: FlipTable) -> None:
        self._table = table
        self._refused: Devices = ()

    def update(self, compiled: Compiled, snapshot: Snapshot) -> str:
        """Flips at the devices that `snapshot` has chains for; returns why not, or "".

        Devices for which the kernel refused it are tried again once they are others: one may
        have gone, of which the ruleset's next change tells.  Raises CaptureError if the table
        cannot be removed.
        """
        devices = _with_chains(snapshot)
        installed = NFPROTO_NETDEV in self._table.installed
        if devices == (self._table.devices if installed else ()):
            return ""
        self._table.remove([NFPROTO_NETDEV])
        if not devices or devices == self._refused:
            return ""
        try:
            self._table.install(compiled, [NFPROTO_NETDEV], devices)
        except CaptureError as error:
            self._refused = devices
            return str(error)
        return ""


def _with_chains(snapshot: Snapshot) -> Devices:
    found = {
        device
        for (family, table, _), chain in snapshot.chains.items()
        if (family, chain.hook) in _AT_INGRESS and not table.startswith(_PREFIX)
        for device in chain.devices
    }
    return tuple(sorted(found))
