# SPDX-License-Identifier: GPL-2.0-only
"""The screen on plain terminals: in ASCII, and in the terminal's own 16 colours.

Each mark is replaced by one that looks alike and is as wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter, Monochrome, NoColor
from textual.theme import BUILTIN_THEMES, Theme

from ipttrace.tui.cells import cell_len

_ALIKE: Final = {
    **dict(zip("✓✗»…↻■→←↑↓↩⌫⏎␣µμ·•◆▽▼▾▴▶›×⇄↔⏸", "+x>~@#><^v<<^_uu.**vvv^>>x=-=", strict=True)),
    **dict.fromkeys("│┃┊║▏▎▍", "|"),
    **dict.fromkeys("─━═▁▂▔", "-"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯", "+"),
    **dict.fromkeys("█▉▊▋▌▐▇▆▅▄▃▀", "#"),
    "░": ".",
}


def utf8(environ: Mapping[str, str]) -> bool:
    """Whether the locale of `environ` has UTF-8, and the terminal is no bare console.

    Not Python's own encoding, which is UTF-8 in the locale C too.  The console of Linux
    has a font of 256 or 512 characters, without marks.
    """
    if environ.get("TERM") == "linux":
        return False
    names = (environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    locale = next(filter(None, names), "")
    return not locale or "utf" in locale.lower()


@lru_cache(maxsize=1024)
def ascii_of(char: str) -> str:
    """What stands for a character, in as many cells."""
    if char.isascii():
        return char
    return _ALIKE.get(char) or "?" * cell_len(char)


class Ascii(LineFilter):
    """Draws lines in ASCII."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """The same segments; those that are ASCII already are untouched."""
        return [
            segment
            if segment.text.isascii()
            else Segment("".join(map(ascii_of, segment.text)), segment.style, segment.control)
            for segment in segments
        ]


_COLOURS: Final = {
    "primary": "ansi_bright_blue",  # blue on black can hardly be read
    "secondary": "ansi_cyan",
    "warning": "ansi_yellow",
    "error": "ansi_bright_red",
    "success": "ansi_green",
    "accent": "ansi_magenta",
}
# Others are rounded to 16, which makes red white and a selected row like all others.
SIXTEEN: Final = Theme(
    name="16-colours",
    ansi=True,
    dark=True,
    primary="ansi_blue",  # a background, too
    secondary=_COLOURS["secondary"],
    warning=_COLOURS["warning"],
    error=_COLOURS["error"],
    success=_COLOURS["success"],
    accent=_COLOURS["accent"],
    foreground="ansi_default",
    background="ansi_default",
    surface="ansi_default",
    panel="ansi_default",
    boost="ansi_default",
    variables={
        **BUILTIN_THEMES["ansi-dark"].variables,  # some have no default
        **{f"text-{name}": colour for name, colour in _COLOURS.items()},
        **{f"{name}-muted": "ansi_default" for name in _COLOURS},
        "block-cursor-foreground": "ansi_black",
        "block-cursor-background": "ansi_white",
        "footer-key-foreground": "ansi_bright_blue",
        "input-cursor-text-style": "reverse",
    },
)


def has_sixteen_colours(system: str | None) -> bool:
    """Whether a terminal has no more colours; `system`: Rich's name of its colours."""
    return system == "standard"


def without_colours(filters: list[LineFilter]) -> list[LineFilter]:
    """The filters for NO_COLOR, made for a theme of RGB colours, as `SIXTEEN` needs them."""
    return [NoColor() if isinstance(one, Monochrome) else one for one in filters]
