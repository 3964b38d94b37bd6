# SPDX-License-Identifier: GPL-2.0-only
"""What is shown in place of the list while there is no row.

It shows what is armed and where, why there may be no row, and which keys help.
Must not parse text as markup: some of it came over a stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from textual.content import Content
from textual.widgets import Static

from ipttrace.trace.store import traces_nftables
from ipttrace.tui import situation as at
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.situation import Situation

_DIM: Final = "$foreground 70%"
_HEAD: Final = "bold $text-primary"
_KEY: Final = "bold $text-accent"

_PASSES: Final = "A row appears for every iptables table that a packet passes; none has come yet."
_PASSES_NFT: Final = (
    "A row appears for every chain of nftables and every iptables table that a packet passes;"
    " none has come yet."
)
_UNUSED: Final = "A legacy table exists in a namespace only once it has been used there."
_UNSEEN: Final = "The kernel engine does not see rules made by nft or iptables-nft."


def _why(now: Situation) -> list[str]:
    why = [_PASSES_NFT, _UNUSED] if traces_nftables(now.engine) else [_PASSES, _UNUSED, _UNSEEN]
    if now.filter:
        why.insert(0, f"Only packets that match the filter are traced: {now.filter}")
    return why


def _heading(now: Situation) -> str:
    where = f" on {now.host}" if now.host else ""
    kernel = f", kernel {now.kernel}" if now.kernel else ""
    match now.state:
        case at.BOOTING:
            return "Starting…"
        case at.ARMED:
            return f"Armed{where}{kernel}. Waiting for the first packet."
        case at.DISARMED:
            return f"Disarmed{where}: no packet is traced."
        case at.REPLAYING:
            return "Reading the recording…"
        case at.STOPPING:
            return "Stopping: waiting for the last counts…"
        case at.ENDED:
            return "The stream ended without a row."
    return "The stream broke before the first row."


class Empty(Static):
    """Fills the place of the list."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)

    def show(self, now: Situation, progress: Sequence[str], notes: Sequence[str]) -> None:
        """`progress`: the steps of starting, newest last; `notes`: the agents' notes."""
        parts: list[tuple[str, str] | str] = [(_heading(now), _HEAD), "\n\n"]
        if now.reason:
            parts += [now.reason, "\n\n"]
        if now.state == at.BOOTING:
            for line in progress[:-1]:
                parts += [("✓ ", "$text-success"), (line, _DIM), "\n"]
            for line in progress[-1:]:
                parts += [("… ", "$text-warning"), line, "\n"]
            parts.append("\n")
        elif now.state in (at.ARMED, at.DISARMED, at.ENDED, at.REPLAYING):
            parts += [("Filter   ", _DIM), now.filter or "none: all packets"]
            parts += [(f"  {now.filtered}", _DIM), "\n"] if now.filtered else ["\n"]
            if now.engine:
                parts += [("Engine   ", _DIM), now.engine, "\n"]
            parts.append("\n")
        if now.state == at.ARMED:
            parts += [("Why no rows yet?", "bold"), "\n"]
            for line in _why(now):
                parts += [("• ", _DIM), line, "\n"]
            parts.append("\n")
        for line in notes:
            parts += [("• ", _DIM), line, "\n"]
        key = partial(with_keys, keymap=chosen(self))
        parts += ["\n", (key("{help}"), _KEY), " help   ", (key("{quit}"), _KEY), " quit"]
        self.update(Content.assemble(*parts))
