# SPDX-License-Identifier: GPL-2.0-only
"""The vendor of a network card, by the OUI in its address (netaddr's copy of the register).

The first access to the register is slow: call `learn` in a thread, `name` while
drawing.  Must not import widgets.
"""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Final

from ipttrace.text import clean

_MOST: Final = 4096
_HEX: Final = frozenset(string.hexdigits)


def _prefix(lladdr: str) -> str | None:
    """The OUI of a MAC address in hexadecimal; None for any other address."""
    parts = lladdr.split(":")
    if len(parts) != 6 or any(len(part) != 2 or not _HEX.issuperset(part) for part in parts):
        return None
    return "".join(parts[:3]).lower()


class Vendors:
    """Names of vendors that were looked up."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def name(self, lladdr: str) -> str | None:
        """The vendor's name; "local" for locally administered addresses, "" for none.

        None: not looked up yet; call `learn`.
        """
        prefix = _prefix(lladdr)
        if prefix is None or prefix == "000000":
            return ""
        first = int(prefix[:2], 16)
        if first & 1:
            return ""  # a group address
        return "local" if first & 2 else self._known.get(prefix)

    def learn(self, lladdrs: Iterable[str]) -> None:
        """Look up the vendors of these addresses.  Slow the first time; never raises."""
        # Imported here because it takes long and most sessions do not need it.
        from netaddr import EUI
        from netaddr.core import AddrFormatError, NotRegisteredError

        for lladdr in lladdrs:
            if (prefix := _prefix(lladdr)) is None or prefix in self._known:
                continue
            try:
                name = clean(EUI(lladdr).oui.registration().org, 60)
            except (NotRegisteredError, AddrFormatError, OSError, IndexError, AttributeError):
                name = ""
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[prefix] = name
