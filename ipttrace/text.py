# SPDX-License-Identifier: GPL-2.0-only
"""Foreign text made safe to show, and the terminal cells that text occupies.

Chain names, rule comments, interface and process names may hold anything,
including terminal escapes and bidirectional overrides.  `clean` is applied once,
where such a text enters the program; `escape` once more, where a view writes it.
Both return text that is safe on a terminal, but not as Rich markup or as a
spreadsheet cell.  Must not do I/O or import anything of ipttrace.
"""

from __future__ import annotations

import unicodedata
from typing import Final

LIMIT: Final = 1024
ELLIPSIS: Final = "…"


def escape(text: str) -> str:
    r"""Returns `text` with every character that `str.isprintable` rejects as an escape.

    These are control and format characters (bidirectional, zero width),
    surrogates, private use, unassigned code points, and every separator except
    the plain space: ``\\x1b``, ``\\u202e``, ``\\U000e0001``.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escaped(ord(char)) for char in text)


def _escaped(code: int) -> str:
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def clean(raw: bytes | str, limit: int = LIMIT) -> str:
    """Returns `raw` on one line, escaped, in at most `limit` characters.

    Bytes are decoded as UTF-8; each invalid byte becomes an escape.  Longer text
    ends in ``…``.  Never raises.
    """
    # A character has at most four bytes, and escaping never shortens it.
    text = (
        raw[: 4 * limit + 4].decode("utf-8", "backslashreplace")
        if isinstance(raw, bytes)
        else raw[: limit + 1]
    )
    text = escape(text)
    if len(text) > limit:
        text = text[: max(limit - 1, 0)] + ELLIPSIS[:limit]
    return text


def width(text: str) -> int:
    """Returns the terminal cells of `text`: two for a wide character, none for a combining one."""
    if text.isascii():
        return len(text)
    return sum(map(_cells, text))


def _cells(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, cells: int) -> str:
    """Returns `text` in at most `cells` terminal cells; ends in ``…`` if it was cut."""
    if len(text) <= cells * 4 and width(text) <= cells:
        return text
    if cells < 1:
        return ""
    kept: list[str] = []
    used = 1
    for char in text:
        used += _cells(char)
        # Combining marks have no width: without this bound, they could go on for ever.
        if used > cells or len(kept) > cells * 4:
            break
        kept.append(char)
    return "".join(kept) + ELLIPSIS
