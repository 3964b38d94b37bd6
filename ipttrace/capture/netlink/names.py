# SPDX-License-Identifier: GPL-2.0-only
"""Names of nftables' tables and chains in the 31 bytes that a record has for each.

nftables' names have up to 255 bytes.  A longer name gets a short form, which no other name
of the run has; the stream's NAMES frames have the full names.  Must not do I/O.
"""

from __future__ import annotations

import re
from typing import Final

from ipttrace.stream import record

_MOST: Final = record.NAME_LEN - 1
_CHECKSUMS: Final = 1 << 16
_SHORT_FORM: Final = re.compile(rb".*~[0-9a-f]{4}\Z", re.DOTALL)


class RecordNames:
    """The short forms of one run, each for one name."""

    def __init__(self) -> None:
        # Full names by the short ones, as rows show them; the agent empties it.
        self.new: dict[str, str] = {}
        self._short: dict[bytes, bytes] = {}
        self._taken: set[bytes] = set()

    def short(self, name: bytes) -> bytes:
        """The name as records have it, at most 31 bytes."""
        # A name that looks like a short form must not be taken for one.
        if len(name) <= _MOST and not _SHORT_FORM.match(name):
            return name
        found = self._short.get(name)
        if found is None:
            found = self._short[name] = self._free(name)
            self._taken.add(found)
            self.new[found.decode()] = shown_name(name)
        return found

    def _free(self, name: bytes) -> bytes:
        checksum = 0
        for byte in name:
            checksum = (checksum * 31 + byte) % _CHECKSUMS
        # Not in the middle of a character.
        head = name[: _MOST - 5].decode("utf-8", "ignore").encode()
        for more in range(_CHECKSUMS):
            found = head + b"~%04x" % ((checksum + more) % _CHECKSUMS)
            if found not in self._taken:
                break
        return found


def shown_name(name: bytes) -> str:
    """A name as rows and RULES frames have it; bytes that are not UTF-8 are escaped."""
    return name.decode("utf-8", "backslashreplace")
