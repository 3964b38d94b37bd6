# SPDX-License-Identifier: GPL-2.0-only
"""The bars: what is traced at the top, its state and counters at the bottom.

A bar is a line of pieces with ranks.  If they do not fit, the piece of the highest
rank goes first; rank 0 always stays, and includes lost and missed, because an
incomplete trace must be recognizable at every size.  Text is content, never
markup: much of it comes from a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from textual.content import Content
from textual.widget import Widget

from ipttrace.tui import situation as at
from ipttrace.tui.cells import cell_len, counted, fit
from ipttrace.tui.situation import Situation

SPACE: Final = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """A text in a bar."""

    text: str
    style: str = ""
    rank: int = 0
    shrinks_to: int = 0  # cells to which it may be cut before it goes; 0: may not be cut
    right: bool = False  # aligned right


def _width(pieces: Sequence[Piece]) -> int:
    return sum(cell_len(piece.text) + SPACE for piece in pieces)


def fit_pieces(pieces: Sequence[Piece], width: int) -> list[Piece]:
    """The pieces that fit `width` cells, in their order."""
    kept = [piece for piece in pieces if piece.text]
    while _width(kept) > width:
        victim = max(kept, key=lambda piece: piece.rank)
        if victim.rank == 0:
            break
        at_ = kept.index(victim)
        room = cell_len(victim.text) - (_width(kept) - width)
        if victim.shrinks_to and room >= victim.shrinks_to:
            kept[at_] = Piece(fit(victim.text, room), victim.style, 0, 0, victim.right)
        else:
            del kept[at_]
    return kept


class Bar(Widget):
    """A line of pieces."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._pieces: tuple[Piece, ...] = ()

    def show(self, pieces: Sequence[Piece]) -> None:
        """Show these pieces; draws only if they have changed."""
        if (new := tuple(pieces)) != self._pieces:
            self._pieces = new
            self.refresh()

    @property
    def text(self) -> str:
        """The text that the bar shows."""
        return self.render().plain

    def render(self) -> Content:
        width = self.size.width
        kept = fit_pieces(self._pieces, width)
        parts: list[str | Content | tuple[str, str]] = []
        gap = width - _width(kept)
        for piece in sorted(kept, key=lambda piece: piece.right):
            if piece.right and gap > 0:
                parts.append(" " * gap)
                gap = 0
            parts += [" ", (piece.text, piece.style), " "]
        return Content.assemble(*parts)


_STATE_STYLES: Final = {
    at.BOOTING: "bold $text-warning on $warning-muted",
    at.ARMED: "bold $text-success on $success-muted",
    at.STOPPING: "bold $text-warning on $warning-muted",
    at.ERROR: "bold $text-error on $error-muted",
}
_OTHER_STATE: Final = "bold $text-primary on $primary-muted"
_ALARM: Final = "bold $text-error on $error-muted"


def about_pieces(now: Situation, title: str) -> list[Piece]:
    """The top bar: the trace's title, engine, host and kernel."""
    return [
        Piece(title, "bold $text-primary", 0, 8),
        Piece(f"engine {now.engine}" if now.engine else "", "$foreground 70%", 2, right=True),
        Piece(now.host, "$foreground 70%", 3, 8, right=True),
        Piece(now.kernel, "$foreground 70%", 4, 8, right=True),
    ]


def _view(paused: bool, follow: bool, newer: int) -> Piece:
    if paused:
        return Piece(f"PAUSED +{newer:,}", "bold $text-warning on $warning-muted")
    if not follow:
        more = f" +{newer:,}" if newer else ""
        return Piece(f"SCROLLED{more}", "bold $text-accent on $accent-muted", 1)
    return Piece("following", "$foreground 70%", 5)


def _filter(now: Situation) -> str:
    if now.state == at.BOOTING:
        return ""  # not known yet
    return f"traced: {now.filter or 'all packets'}"


def _count(name: str, count: int) -> Piece:
    return Piece(f"{name} {count:,}", _ALARM if count > 0 else "$foreground 70%", right=True)


def status_pieces(
    now: Situation,
    paused: bool,
    follow: bool,
    newer: int,
    playing: str = "",
    recording: bool = False,
) -> list[Piece]:
    """The bottom bar: state, filter and counters.

    `playing`: the position in a recording; `recording`: whether one is being written.
    """
    return [
        Piece(f" {now.state.upper()} ", _STATE_STYLES.get(now.state, _OTHER_STATE)),
        Piece(" REC " if recording else "", "bold reverse $text-error"),
        Piece(playing, "bold $text-primary on $primary-muted", 1),
        _view(paused, follow, newer),
        Piece(_filter(now), "", 3, 14),
        Piece(now.filtered, "$foreground 70%", 6, 20),
        Piece(counted(now.rows, "row"), "", 2, right=True),
        Piece("" if now.rate is None else f"{now.rate:,.0f}/s", "", 4, right=True),
        _count("lost", now.lost),
        _count("missed", now.missed),
    ]
