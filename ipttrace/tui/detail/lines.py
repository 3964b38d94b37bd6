# SPDX-License-Identifier: GPL-2.0-only
"""The detail of one row as lines of cells, for any width.

Pure: takes a story; must not import Textual or know colours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from ipttrace.trace.decode import protocol as ip
from ipttrace.trace.neighbours import Reach
from ipttrace.trace.row import Row, Step
from ipttrace.trace.rules import table_name
from ipttrace.trace.story import PacketChange, RuleHit, Story, Traversal, endpoint
from ipttrace.tui.cells import (
    Cell,
    Cells,
    cell_len,
    counted,
    cut,
    duration,
    fit,
    fold,
    verdict_cell,
)
from ipttrace.tui.detail.fragments import fragment_lines
from ipttrace.tui.detail.packet import byte_lines, packet_lines
from ipttrace.tui.detail.stations import cause, end, stack, told
from ipttrace.tui.detail.wrap import MOST_LINES, Line, named, section, wrap
from ipttrace.tui.key_words import with_keys

ROLES: Final = frozenset(
    {"head", "section", "name", "value", "dim", "chain", "rule", "changed", "bad", "shown"}
    | {"accept", "drop", "other", "hex", "text"}
)

SHOWN: Final = "▶"  # the traversal that is the row itself

_NARROW: Final = 100  # cells; below, namespaces are shown only where they change
_NARROWEST: Final = 40  # cells; below, lines are cut
_LONG_TABLE: Final = 12  # cells
_LONG_CHAIN: Final = 30
_SHORT: Final = 12  # characters of a container's id


@dataclass(frozen=True, slots=True)
class KnownNames:
    """Names of what rows refer to by number, safe for a terminal."""

    netns: Mapping[int, str] = field(default_factory=dict)  # by inode
    hosts: Mapping[int, str] = field(default_factory=dict)  # by the host's number
    # The next hop of an accepted row if that has no link-layer address now.
    unreached: Callable[[Row], Reach | None] = field(default=lambda row: None, compare=False)


def unreached(story: Story, names: KnownNames) -> Reach | None:
    """The next hop that the packet could not be sent to, though it was accepted."""
    found = (names.unreached(one.row) for one in story.traversals if one.own)
    return next((reach for reach in found if reach is not None), None)


def lines(
    story: Story,
    width: int,
    names: KnownNames,
    folded: bool = False,
    keymap: Mapping[str, str] | None = None,
) -> list[Line]:
    """All lines of the detail, at most `width` (20 or more) cells long.

    `folded`: without the packet's bytes; `keymap`: see `with_keys`.
    """
    width = max(width, 20)
    made = wrap(_about(story, names), width, 2)
    if (reach := unreached(story, names)) is not None:
        hop = f"{reach.via} on {reach.dev}"
        text = f"no {reach.unresolved}: accepted, but {hop} is {reach.state} now"
        made += wrap([[(text, "bad")]], width, 2)
    last = next((one.row for one in reversed(story.traversals) if one.own), story.row)
    made += cause(last, width, names.netns.get(last.netns))
    made += _journey(story, width, names)
    made += fragment_lines(story, width)
    made += _conntrack(story, width)
    made += packet_lines(story.packet, width)
    made += stack(last, width)
    fold_key = with_keys("{fold}", {} if keymap is None else keymap)
    made += byte_lines(story.packet, width, folded, fold_key)
    if width < _NARROWEST:
        made = [Line(cut(line.cells, width), line.shown, line.belongs) for line in made]
    return made


# The sections.


def _about(story: Story, names: KnownNames) -> list[Cells]:
    row = story.row
    items: list[Cells] = []
    packet = f"{endpoint(row.src, row.sport)} → {endpoint(row.dst, row.dport)}"
    kind = " ".join(filter(None, (row.proto or "-", row.flags, row.icmp, row.frag and "frag")))
    items.append([(f"{kind} ", "head"), (packet, "head")])
    if not _over_netlink(row):
        items.append(named("skb", "-" if row.skb is None else f"0x{row.skb:x}"))
        items.append(_process(story))
        items.append(named("sock", "-" if story.socket is None else f"0x{story.socket:x}"))
        items.append(named("cpu", "-" if row.cpu is None else str(row.cpu)))
    if row.owner_pid or row.owner_comm:
        items.append(named("socket of", _owner(row)))
    if row.trace_id is not None:
        items.append(named("trace id", f"{row.trace_id:08x}"))
    items.append(named("netns", _netns(row, names)))
    if host := names.hosts.get(row.host):
        items.append(named("host", host))
    for name, port in (("physin", row.physin), ("physout", row.physout)):
        if port:
            items.append(named(name, port))
    items.append(named("mark", "-" if row.mark is None else f"0x{row.mark:x}"))
    items.append(named("len", "-" if row.len is None else str(row.len)))
    if row.ruleset:
        items.append(named("rules", f"#{row.ruleset}"))
    if row.engine:
        items.append(named("engine", row.engine))
    # The journey below cuts them.
    if cell_len(row.table) > _LONG_TABLE:
        items.append(named("table", row.table))
    if row.chain and cell_len(row.chain) > _LONG_CHAIN:
        items.append(named("chain", row.chain))
    if _over_netlink(row):
        items.append([("cost, process and CPU unknown: traced over netlink", "dim")])
    return items


def _over_netlink(row: Row) -> bool:
    return row.engine == "netlink"


def _process(story: Story) -> Cells:
    row = story.row
    if row.pid is None and not row.comm:
        return named("process", "-")
    tid = "" if story.tid in (None, row.pid) else f" thread {story.tid}"
    who = f"{row.comm or '-'} {'-' if row.pid is None else row.pid}{tid}"
    # The interrupted process need not be related to the packet.
    return named("interrupted" if story.interrupted else "process", who)


def _owner(row: Row) -> str:
    where = f" in {row.container[:_SHORT]}" if row.container else ""
    return f"{row.owner_comm or '-'} {row.owner_pid or '-'}{where}"


def _netns(row: Row, names: KnownNames) -> str:
    return names.netns.get(row.netns) or str(row.netns)


def _journey(story: Story, width: int, names: KnownNames) -> list[Line]:
    traversals = story.traversals
    own = [traversal for traversal in traversals if traversal.own]
    tables = sum(traversal.row.station is None for traversal in own)
    notes = [counted(tables, "table") if tables else "no table"]
    if any(traversal.row.cost_ns is not None for traversal in own):
        notes[0] += f" in {duration(own[-1].since + (own[-1].row.cost_ns or 0))}"
    if (others := len(traversals) - len(own)) > 0:
        notes.append(f"indented: sent within a call; {others} of another skb")
    made = [Line(cut(section("Journey", *notes), width))]
    columns = _Columns(traversals, width, names)
    made.append(columns.titles())
    if story.starts_earlier:
        made.append(
            Line(cut([("  earlier tables are not held, or beyond the search limit", "dim")], width))
        )
    for traversal in traversals:
        made += _traversal(traversal, story.row.index, columns)
    made += end(own[-1].row if own else None, width)
    if story.ends_later:
        made.append(Line(cut([("  later tables may be beyond the search limit", "dim")], width)))
    return made


_LEAST_RULE: Final = 12
_RIGHT: Final = frozenset({"since", "gap", "cost"})


class _Columns:
    """The columns of the journey, with the widths for its traversals."""

    def __init__(self, traversals: tuple[Traversal, ...], width: int, names: KnownNames) -> None:
        self.width = width
        self.names = names
        netns = 0
        devices = max((cell_len(_devices(t.row)) for t in traversals), default=0)
        hooks = max((len(t.row.hook) + 2 * t.depth for t in traversals), default=0)
        tables = max((cell_len(_table(t.row)) for t in traversals), default=0)
        hook = min(max(hooks, 4), 17)
        table = min(max(tables, 5), 12 if width >= 60 else 8)
        devices = min(max(devices, 6), 13 if width < _NARROW else 25)
        if width >= _NARROW:
            longest = max((cell_len(_netns(t.row, names)) for t in traversals), default=0)
            netns = min(max(longest, 5), 16)
        self.sizes = {
            "since": 7,
            "gap": 7,
            "hook": hook,
            "table": table,
            "rule": 0,
            "verdict": 8,
            "cost": 6,
            "devices": devices,
            "netns": netns,
        }
        if all(t.row.cost_ns is None and t.row.station is None for t in traversals):
            # Without costs, all came over netlink: its times only give the order.
            self.sizes |= {"since": 0, "gap": 0, "cost": 0}
        # The least informative column goes first.
        for name in ("gap", "devices", "cost", "since"):
            if self._used() + _LEAST_RULE < width:
                break
            self.sizes[name] = 0
        rules = max((cell_len(_decision(t.row)) for t in traversals), default=0)
        self.sizes["rule"] = max(min(rules, width - self._used() - 1, 34), 4)

    def _used(self) -> int:
        return 2 + sum(size + 1 for size in self.sizes.values() if size)

    def line(self, cells: Mapping[str, Cell], mark: str, shown: bool) -> Line:
        """A line from `cells` by column."""
        line: Cells = [(f"{mark:<2}", "changed" if shown else "dim")]
        for name, size in self.sizes.items():
            if size:
                text, role = cells[name]
                line.append((fit(text, size, name in _RIGHT) + " ", role))
        return Line(cut(line, self.width), shown)

    def station(self, cells: Mapping[str, Cell], text: Cell, mark: str, shown: bool) -> Line:
        """A line from `cells` for the columns of time, and a text in place of the others."""
        line: Cells = [(f"{mark:<2}", "changed" if shown else "dim")]
        for name in ("since", "gap"):
            if size := self.sizes[name]:
                content, role = cells[name]
                line.append((fit(content, size, name in _RIGHT) + " ", role))
        return Line(cut([*line, text], self.width), shown)

    def titles(self) -> Line:
        names = {"since": "time", "gap": "gap", "hook": "hook", "table": "table", "rule": "rule"}
        names |= {"verdict": "verdict", "cost": "cost", "devices": "in→out", "netns": "netns"}
        return self.line({key: (name, "name") for key, name in names.items()}, "", False)


def _table(row: Row) -> str:
    return table_name(row.tables, row.table)


def _devices(row: Row) -> str:
    return f"{row.in_ or ''}→{row.out or ''}"


def _hit(step: Step) -> str:
    if step.match == "policy":
        return f"{step.chain} policy"
    return f"{step.chain} {step.rulenum or '?'}{'↩' if step.match == 'return' else ''}"


def _decision(row: Row) -> str:
    if row.match == "policy" and row.chain == row.hook:
        return "policy"
    if row.path:
        return _hit(row.path[-1])
    return "? (records lost)" if row.partial else "-"


def _signed(ns: int) -> str:
    return f"-{duration(-ns)}" if ns < 0 else f"+{duration(ns)}"


def _verdict(row: Row) -> Cell:
    if row.verdict is None:
        return "  ?", "dim"
    return verdict_cell(row.verdict)


def _traversal(traversal: Traversal, shown: int, columns: _Columns) -> list[Line]:
    row = traversal.row
    is_shown = row.index == shown
    plain = "value" if traversal.own else "dim"
    cells: dict[str, Cell] = {
        "since": (_signed(traversal.since), plain),
        "gap": ("" if traversal.gap is None else duration(traversal.gap), "dim"),
        "hook": ("  " * traversal.depth + (row.hook or "?"), "head" if traversal.own else "dim"),
        "table": (_table(row), plain),
        "rule": (_decision(row), "chain" if traversal.own else "dim"),
        "verdict": _verdict(row),
        "cost": ("" if row.cost_ns is None else duration(row.cost_ns), plain),
        "devices": (_devices(row), plain),
        "netns": (_netns(row, columns.names), "dim"),
    }
    mark = SHOWN if is_shown else ""
    if row.station is None:
        made = [columns.line(cells, mark, is_shown)]
    else:
        text = "  " * traversal.depth + told(row, columns.names.netns.get(row.netns))
        made = [columns.station(cells, (text, "drop" if row.drop else plain), mark, is_shown)]
    made += _changes("came with", traversal.changed_before, columns)
    # In full for the row itself.
    made += _steps(traversal, columns.width, MOST_LINES if is_shown else 1)
    made += _changes("changed", traversal.changed_here, columns)
    made += _changes("left with", traversal.changed_behind, columns)
    return made[:1] + [Line(line.cells, belongs=True) for line in made[1:]]


_INDENT: Final = 4


def _changes(what: str, changes: tuple[PacketChange, ...], columns: _Columns) -> list[Line]:
    if not changes:
        return []
    items: list[Cells] = [[(" " * _INDENT, "value"), (what, "dim")]]
    for change in changes:
        text = change.text
        if change.name == "netns":
            text = " → ".join(
                columns.names.netns.get(int(part), part) if part.isdigit() else part
                for part in text.split(" → ")
            )
        items.append([(f"{change.name} ", "name"), (text, "changed")])
    return wrap(items, columns.width, _INDENT + 2)


def _steps(traversal: Traversal, width: int, most: int) -> list[Line]:
    hits = traversal.steps
    if not any(hit.rule or hit.handle for hit in hits):
        if len(hits) < 2:
            return []
        items = []
        for at, hit in enumerate(hits):
            arrow = "→ " if at else " " * _INDENT
            items.append([(arrow, "dim"), (_hit(hit.step), "chain")])
        return wrap(items, width, _INDENT, " ")
    name_width = min(max(cell_len(_hit(hit.step)) for hit in hits), max(width // 3, 12))
    made = []
    for hit in hits:
        made += _step(hit, name_width, width, most)
    return made


def _step(hit: RuleHit, name_width: int, width: int, most: int) -> list[Line]:
    name = " " * _INDENT + fit(_hit(hit.step), name_width) + "  "
    room = max(width - cell_len(name), 8)
    text = hit.rule or ""
    if hit.handle is not None:
        text += f" # handle {hit.handle}"  # as `nft -a` prints it
    first, *more = fold(text.strip(), room, most) or [""]
    made = [Line(cut([(name, "chain"), (first, "rule")], width))]
    made += [Line(cut([(" " * cell_len(name), "rule"), (text, "rule")], width)) for text in more]
    return made


def _conntrack(story: Story, width: int) -> list[Line]:
    conntrack = story.conntrack
    if conntrack is None:
        state = story.row.ct_state
        text = f"{state}: no entry" if state else "no entry on arrival"
        if _over_netlink(story.row) and not state:
            text = "unknown: traced over netlink"
        return [Line(cut(section("Conntrack", text), width))]
    items = [
        section("Conntrack"),
        named("state", conntrack.state or "-"),
        named("proto", "-" if conntrack.proto is None else ip.proto_name(conntrack.proto)),
        named("status", " ".join(conntrack.status) or "-"),
        named("mark", "-" if conntrack.mark is None else f"0x{conntrack.mark:x}"),
        named("zone", "-" if conntrack.zone is None else str(conntrack.zone)),
        named("orig", conntrack.orig or "-"),
        named("reply", conntrack.reply or "-"),
        named("entry", f"0x{conntrack.address:x}" if conntrack.address else "-"),
    ]
    return wrap(items, width, 2)
