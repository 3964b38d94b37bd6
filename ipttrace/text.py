# SPDX-License-Identifier: GPL-2.0-only
"""Text of others made safe to show: names from the kernel and the network.

Chain names, rule comments, interface and process names may hold anything,
terminal escapes and bidirectional overrides included.  What `clean` returns
can be written to a terminal as it is; it is not safe as Rich markup or as a
spreadsheet's cell.  Must not do I/O.
"""

from __future__ import annotations

import unicodedata
from typing import Final

# Cc control, Cf format (bidi, zero width), Cs surrogates, Co private use, Cn
# not assigned (width unknown), Zl and Zp line and paragraph separators.
_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})

LIMIT: Final = 1024


def _visible(char: str) -> str:
    if unicodedata.category(char) not in _HIDDEN:
        return char
    code = ord(char)
    if code < 0x100:
        return f"\\x{code:02x}"
    if code < 0x10000:
        return f"\\u{code:04x}"
    return f"\\U{code:08x}"


def clean(raw: bytes | str, limit: int = LIMIT) -> str:
    """`raw` as one line of at most `limit` characters that hides nothing.

    Bytes are read as UTF-8; those that are none, and every character that
    moves the cursor, is invisible or has no agreed look, become an escape such
    as ``\\x1b`` or ``\\u202e``.  Longer text ends in ``…``.  Never raises.
    """
    # A character has at most four bytes, and none of them makes it shorter.
    text = (
        raw[: 4 * limit + 4].decode("utf-8", "backslashreplace")
        if isinstance(raw, bytes)
        else raw[: limit + 1]
    )
    if not (text.isascii() and text.isprintable()):
        text = "".join(map(_visible, text))
    if len(text) > limit:
        text = text[: max(limit - 1, 0)] + "…"[:limit]
    return text
