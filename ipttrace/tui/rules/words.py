# SPDX-License-Identifier: GPL-2.0-only
"""The text of the rules view: which columns a width has room for, and their cells.

Pure: must not import widgets or know colours; the roles are those of `Ledger`.
"""

from __future__ import annotations

from typing import Final

from ipttrace.trace.rules import family_name
from ipttrace.trace.tally.listing import (
    END,
    POLICY,
    ChainListing,
    Figures,
    RuleKey,
    TableListing,
    kernel_packets,
)
from ipttrace.tui.cells import Cell, Cells, column, fit, length, title
from ipttrace.tui.widgets import figures

# Colours of bars, each from a value of `figures.heat` on.
_HEAT: Final = ((0.9, "hot"), (0.7, "warm"), (0.5, "mild"), (0.25, "cool"), (0.0, "cold"))
NUMBER, TEXT = "number", "text"  # orders that are not named after a column of figures
_NUMBER: Final = 4
_PLACE: Final = 26  # cells for table, chain and number, if lines are sorted
_TEXT: Final = 30  # cells that a rule's text gets before additional columns
_WIDE: Final = 110
_TITLES: Final = {
    "hits": "hits",
    "rate": "/s",
    "kernel": "kernel",
    "dropped": "drops",
    "share": "drop%",
    "p50": "p50",
    "p99": "p99",
}
_ALWAYS: Final = {"hits": 6, "rate": 6, "share": 5}
# Additional columns in the order in which room is spent on them, and their widths.
_MORE: Final = (("p99", 6), ("kernel", 6), ("p50", 6), ("dropped", 6))


class Words:
    """The lines in `width` cells.

    `flat`: each line names its table and chain; `kernel`: the kernel's counters can
    be shown, since the hits beside them are those of all packets.
    """

    def __init__(self, width: int, flat: bool, kernel: bool = True) -> None:
        self.width = width
        self.flat = flat
        self.bar = 8 if width >= _WIDE else 3
        chosen = dict(_ALWAYS)
        spare = width - (_PLACE if flat else _NUMBER) - self.bar - 2 - _TEXT
        spare -= sum(cells + 1 for cells in chosen.values())
        # Flat lines can be sorted by drops, so that column comes first.
        for name, cells in sorted(_MORE, key=lambda more: flat and more[0] != "dropped"):
            if name == "kernel" and not kernel:
                continue
            spare -= cells + 1
            if spare < 0:
                break
            chosen[name] = cells
        self.columns = {name: chosen[name] for name in _TITLES if name in chosen}

    def titles(self, sort: str = "", mark: str = "") -> Cells:
        """The line of column titles, with the `mark` at the column `sort`."""
        first = ("where", _PLACE) if self.flat else ("#", _NUMBER)
        if sort == "dropped" and sort not in self.columns:
            sort = "share"  # of all drops, in the same order
        return [
            title(*first, mark if sort == NUMBER else "", right=not self.flat),
            title("", self.bar),
            *(
                title(_TITLES[name], width, mark if name == sort else "")
                for name, width in self.columns.items()
            ),
            title("rule", 5, mark if sort == TEXT else "", right=False),
        ]

    def orders(self) -> list[str]:
        """The order that each cell of the titles stands for."""
        return [NUMBER, "rate", *self.columns, TEXT]

    def table(self, table: TableListing) -> Cells:
        """The heading of a table."""
        made = " (iptables-nft)" if table.backend == "iptables-nft" else ""
        cells: Cells = [(f"{family_name(table.family)} {table.table}{made}", "table")]
        if table.since is None:
            cells.append(("  rules unknown: hits by number", "dim"))
        elif not table.current:
            cells.append(("  changed since; these are the previous rules", "warn"))
        if table.other_hits:
            cells.append(
                (f"  and {table.other_hits:,} hits on earlier versions of the rules", "dim")
            )
        return cells

    def chain(self, chain: ChainListing) -> Cells:
        """The line of a chain without a policy."""
        used = _NUMBER + 1 + self.bar + 1 + sum(width + 1 for width in self.columns.values())
        return [(" " * used, "text"), *chain_heading(chain)]

    def rule(
        self, key: RuleKey, of: Figures, share: float, heat: float, chain: ChainListing
    ) -> Cells:
        """The line of a rule or policy.

        `share`: of all drops; `heat`: of its bar; both from 0 to 1.  `chain`: the
        rule's.
        """
        never = not of.hits
        cells = [self._place(key, never)]
        role = next(role for least, role in _HEAT if heat >= least)
        cells.append((figures.bar(heat, self.bar) + " ", role))
        cells += [
            _figure(name, width, of, share, kernel_packets(chain, key))
            for name, width in self.columns.items()
        ]
        if key.kind == POLICY:
            return cells + chain_heading(chain)
        indent = "" if self.flat else "  "
        if key.kind == END:
            return [*cells, (f"{indent}end of the chain: returns to the calling chain", "dim")]
        if 0 < key.number <= len(chain.rules):
            text = chain.rules[key.number - 1] or "(every packet)"
            room = self.width - length(cells)
            text = fit(indent + text, room) if room > 0 else ""
            return [*cells, (text, "never" if never else "text")]
        text = f"rule {key.number} (text unknown)" if key.number else "rule (number unknown)"
        return [*cells, (f"{indent}{text}", "dim")]

    def _place(self, key: RuleKey, never: bool) -> Cell:
        role = "never" if never else "text"
        number = {POLICY: "pol", END: "ret"}.get(key.kind, str(key.number or "?"))
        if not self.flat:
            return column(number, _NUMBER, role)
        family = {4: "", 6: "6 "}.get(key.family, f"{family_name(key.family)} ")
        room = _PLACE - len(family) - len(key.table) - len(number) - 2
        place = f"{family}{key.table} {fit(key.chain, max(room, 4)).rstrip()}:{number}"
        return column(place, _PLACE, role, right=False)


def _figure(name: str, width: int, of: Figures, share: float, packets: int | None) -> Cell:
    if name == "kernel":
        text = "" if packets is None else figures.count(packets)
        return column(text, width, "dim" if packets else "never")
    if not of.hits:
        return column("0" if name == "hits" else "", width, "never")
    if name == "hits":
        return column(figures.count(of.hits), width, "text")
    if name == "rate":
        return column(figures.rate(of.rate) if of.rate else "", width)
    if name == "dropped":
        return column(figures.count(of.drops) if of.drops else "", width, "drop")
    if name == "share":
        return column(figures.share(share) if of.drops else "", width, "drop")
    return column(figures.cost(of.p50_ns if name == "p50" else of.p99_ns), width, "dim")


def chain_heading(chain: ChainListing) -> Cells:
    """The heading of a chain, as `iptables -L` prints it."""
    words = ""
    if chain.policy is not None:
        words = f" (policy {chain.policy})"
    elif chain.references is not None:
        words = f" ({chain.references} reference{'' if chain.references == 1 else 's'})"
    elif any(key.kind == POLICY for key in chain.keys):
        words = " (policy)"
    role = "drop" if (chain.policy or "").upper() == "DROP" else "dim"
    return [(f"Chain {chain.chain}", "chain"), (words, role)]
