# SPDX-License-Identifier: GPL-2.0-only
"""The app's keys, and all keys of the screen by where they work.

Must not contain what the keys do: each names an action of `TraceApp` or of a view.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from textual.binding import Binding, BindingType

from ipttrace.tui.detail import Detail
from ipttrace.tui.drops import DropsView
from ipttrace.tui.flows import FlowsView
from ipttrace.tui.neighbours.pane import NeighbourPane
from ipttrace.tui.rows import Rows
from ipttrace.tui.rules.view import RulesView
from ipttrace.tui.sockets import SocketsView
from ipttrace.tui.totals.view import TotalsView
from ipttrace.tui.trace_view import TraceView

Section = tuple[str, list[Binding]]

# Shown in the footer in this order; a narrow terminal shows only the first.
_IN_THE_FOOTER: Final = (
    Binding(
        "backspace",
        "unfilter",
        "Back",
        key_display="⌫",
        tooltip="remove the view's last filter",
        id="back",
    ),
    Binding(
        "question_mark,f1",
        "help",
        "Help",
        key_display="?",
        tooltip="keys, columns, terms",
        id="help",
    ),
    Binding("q", "quit", "Quit", tooltip="disarm, clean up and quit", id="quit"),
    Binding(
        "colon", "write", "Filter", key_display=":", tooltip="edit the view's filter", id="filter"
    ),
    Binding(
        "slash",
        "search",
        "Search",
        key_display="/",
        tooltip="go to a row that matches",
        id="search",
    ),
    Binding(
        "2",
        "view('rules-view')",
        "Rules",
        tooltip="the rules, their hits and their cost",
        id="rules",
    ),
    Binding(
        "space",
        "pause",
        "Pause",
        key_display="␣",
        tooltip="freeze the display, or continue; rows keep coming in",
        id="pause",
    ),
    Binding(
        "e",
        "export",
        "Export",
        tooltip="save rows to a file (export): csv, jsonl, pcapng or text",
        id="export",
    ),
    Binding("t", "follow", "Tail", tooltip="follow the newest row, or stay here", id="follow"),
    Binding(
        "K",
        "kernel",
        "Kernel",
        tooltip="filter in the kernel: this row's flow, or what you type",
        id="kernel",
    ),
)
_VIEWS_AND_AGENTS: Final = (
    Binding(
        "C",
        "unfilter_all",
        "show all rows, without a filter; {back} brings it back",
        show=False,
        id="all_rows",
    ),
    Binding("1", "view('trace')", "the rows", show=False, id="rows"),
    Binding(
        "3",
        "view('flows-view')",
        "the flows with the most packets, drops, cost",
        show=False,
        id="flows",
    ),
    Binding("4", "view('totals-view')", "totals and rates over time", show=False, id="totals"),
    Binding(
        "5",
        "view('neighbours')",
        "tables of the kernel: neighbours, reassembly, conntrack",
        show=False,
        id="neighbours",
    ),
    Binding(
        "6",
        "view('drops-view')",
        "the drops: where packets die, and why",
        show=False,
        id="drops",
    ),
    Binding(
        "7",
        "view('sockets-view')",
        "the sockets: connections, their stages and processes",
        show=False,
        id="connections",
    ),
    Binding("f2,L", "columns", "choose, move and size the columns", show=False, id="columns"),
    Binding(
        "o", "side", "show the kernel's tables beside the rows, or hide them", show=False, id="side"
    ),
    Binding(
        "B",
        "stations",
        "show what happens between the tables (stations), or no longer",
        show=False,
        id="stations",
    ),
    Binding(
        "W",
        "what_if",
        "send this row's packet through the rules as they are now (what if)",
        show=False,
        id="what_if",
    ),
    Binding("A", "arm", "disarm (no packet is traced), or arm again", show=False, id="arm"),
    Binding("escape", "put_away", "close what is open: detail, view, filter", show=False),
    Binding(
        "ctrl+c,ctrl+q",
        "quit",
        "Quit",
        show=False,
        priority=True,
        tooltip="quit; pressed again: at once",
    ),
    Binding(
        "ctrl+z",
        "suspend_process",
        "suspend: back to the shell; fg continues",
        show=False,
        priority=True,
    ),
)
_FILES: Final = (
    Binding(
        "R",
        "record",
        "record the stream to a file from now on; again: stop",
        show=False,
        id="record",
    ),
    Binding(
        "S",
        "picture",
        "save a screenshot (SVG) in the current folder",
        show=False,
        id="picture",
    ),
)
_TIME: Final = (
    Binding("at", "go_to_time", "go to a time: 12:30:05, -30s", show=False, id="time"),
    Binding(
        "P", "play", "play a recording from here at its own speed, or stop", show=False, id="play"
    ),
    Binding("greater_than_sign", "speed(1)", "play faster", show=False, id="faster"),
    Binding("less_than_sign", "speed(-1)", "play slower", show=False, id="slower"),
    Binding("full_stop", "scrub(1)", "5 s forward", show=False, id="forward"),
    Binding("comma", "scrub(-1)", "5 s back", show=False, id="backward"),
)
KEYS: Final = (*_IN_THE_FOOTER, *_VIEWS_AND_AGENTS, *_FILES, *_TIME)

_FIXED: Final = frozenset(("ctrl+c", "ctrl+q", "ctrl+z", "ctrl+p", "escape"))

# The widgets whose keys work at the same time, the nearest first.
_TOGETHER: Final = (
    (Rows, TraceView),
    (Detail, TraceView),
    *(
        (view,)
        for view in (RulesView, FlowsView, TotalsView, NeighbourPane, DropsView, SocketsView)
    ),
)


def actions() -> dict[str, Binding]:
    """All bindings whose keys the user may choose, by the names of their actions."""
    found: dict[str, Binding] = {}
    for bindings in (list(KEYS), *(bindings_of(one) for some in _TOGETHER for one in some)):
        for binding in bindings:
            if binding.id is not None:
                found.setdefault(binding.id, binding)
    return found


def taken(keymap: Mapping[str, str]) -> tuple[str, str, str] | None:
    """A chosen action, its key and what that key does already; None: no key has two meanings.

    `keymap`: keys by action, as Textual's `set_keymap` has them.
    """

    def moved(binding: Binding, key: str) -> bool:
        """Whether the user has given it the key: by default, some bindings hide others."""
        return binding.id in keymap and key not in binding.key.split(",")

    for widgets in _TOGETHER:
        near_first = [one for widget in widgets for one in _inherited(widget)] + list(KEYS)
        uses: dict[str, Binding] = {}
        for binding in sorted(near_first, key=lambda one: one.id in keymap):
            for key in keymap.get(binding.id or "", binding.key).split(","):
                other = uses.setdefault(key, binding)
                if moved(binding, key) and key in _FIXED:
                    return binding.id or "", key, ""
                if other.id is not None and other.id == binding.id:
                    continue
                if other is not binding and (moved(binding, key) or moved(other, key)):
                    return binding.id or "", key, other.tooltip or other.description
    return None


def _inherited(widget: type) -> list[Binding]:
    found = [binding for one in widget.__mro__ for binding in one.__dict__.get("BINDINGS", ())]
    return [binding for binding in found if isinstance(binding, Binding)]


def bindings_of(*widgets: type) -> list[Binding]:
    """The bindings of these classes, each key once; not those that they inherit."""
    found: dict[str, Binding] = {}
    for widget in widgets:
        _add(found, widget.__dict__.get("BINDINGS", ()))
    return list(found.values())


def key_sections() -> list[Section]:
    """All keys of the screen by where they work; those that work everywhere come first."""
    everywhere: dict[str, Binding] = {}
    for bindings in (TraceView.BINDINGS, Rows.BINDINGS, KEYS):
        _add(everywhere, bindings)
    return [
        ("Keys", list(everywhere.values())),
        ("Keys in the detail", bindings_of(Detail)),
        ("Keys among the rules", bindings_of(RulesView)),
        ("Keys among the flows", bindings_of(FlowsView)),
        ("Keys among the totals", bindings_of(TotalsView)),
        ("Keys among the kernel's tables", bindings_of(NeighbourPane)),
        ("Keys among the drops", bindings_of(DropsView)),
        ("Keys among the sockets", bindings_of(SocketsView)),
    ]


def _add(found: dict[str, Binding], bindings: Iterable[BindingType]) -> None:
    for binding in bindings:
        if isinstance(binding, Binding):
            found.setdefault(binding.key, binding)
