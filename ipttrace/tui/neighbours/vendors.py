# SPDX-License-Identifier: GPL-2.0-only
"""Who made a network card, by the first bytes of its address (netaddr's copy of the OUIs).

The first look at the register takes long: `learn` is for a thread, `name` for
the screen.  Must not touch widgets.
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
    """Names of vendors, of those that were asked for."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def name(self, lladdr: str) -> str | None:
        """The vendor; ``local`` where nobody registered it, empty where there is none.

        None: not known yet, to be learnt.
        """
        prefix = _prefix(lladdr)
        if prefix is None or prefix == "000000":
            return ""
        first = int(prefix[:2], 16)
        if first & 1:
            return ""  # a group's
        return "local" if first & 2 else self._known.get(prefix)

    def learn(self, lladdrs: Iterable[str]) -> None:
        """Look these up.  Slow at first; never raises."""
        # Not at the top: it would cost at every start, needed or not.
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
