# SPDX-License-Identifier: GPL-2.0-only
"""The app's keys, and all keys of the screen by where they work.

Must not contain what the keys do: each names an action of `TraceApp` or of a view.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from textual.binding import Binding, BindingType

from ipttrace.tui.detail import Detail
from ipttrace.tui.flows import FlowsView
from ipttrace.tui.neighbours.pane import NeighbourPane
from ipttrace.tui.rows import Rows
from ipttrace.tui.rules.view import RulesView
from ipttrace.tui.totals import TotalsView
from ipttrace.tui.trace_view import TraceView

Section = tuple[str, list[Binding]]

# Shown in the footer in this order; a narrow terminal shows only the first.
_IN_THE_FOOTER: Final = (
    Binding(
        "backspace", "unfilter", "Back", key_display="⌫", tooltip="remove the view's last filter"
    ),
    Binding("question_mark,f1", "help", "Help", key_display="?", tooltip="keys, columns, words"),
    Binding("q", "quit", "Quit", tooltip="disarm, clean up and leave"),
    Binding("colon", "write", "Filter", key_display=":", tooltip="write the view's filter"),
    Binding("slash", "search", "Search", key_display="/", tooltip="go to a row that matches"),
    Binding(
        "space",
        "pause",
        "Pause",
        key_display="␣",
        tooltip="freeze the picture, or go on; rows keep coming in",
    ),
    Binding("t", "follow", "Tail", tooltip="follow the newest row, or stay here"),
    Binding("2", "view('rules-view')", "Rules", tooltip="the rules, their hits and their cost"),
    Binding(
        "K",
        "kernel",
        "Kernel",
        tooltip="filter in the kernel: this row's flow, or what you write",
    ),
)
_VIEWS_AND_AGENTS: Final = (
    Binding("1", "view('trace')", "the rows", show=False),
    Binding("3", "view('flows-view')", "the flows with the most packets, drops, cost", show=False),
    Binding("4", "view('totals-view')", "totals and rates over time", show=False),
    Binding("5", "view('neighbours')", "neighbour tables, on the complete screen", show=False),
    Binding("o", "side", "show neighbour tables beside the rows, or hide them", show=False),
    Binding("A", "arm", "disarm: no packet is traced; again: arm", show=False),
    Binding("escape", "put_away", "dismiss the notice", show=False),
    Binding(
        "ctrl+c,ctrl+q",
        "quit",
        "Quit",
        show=False,
        priority=True,
        tooltip="the same; again: at once",
    ),
)
_FILES: Final = (
    Binding("e", "export", "Export", tooltip="rows to a file: csv, jsonl, pcapng or text"),
    Binding("R", "record", "record the stream to a file from here on; again: end", show=False),
    Binding("S", "picture", "save a picture of the screen (SVG) in this folder", show=False),
)
_TIME: Final = (
    Binding("at", "go_to_time", "go to a time: 12:30:05, -30s", show=False),
    Binding("P", "play", "play a recording from here at its own speed, or stop", show=False),
    Binding("greater_than_sign", "speed(1)", "play faster", show=False),
    Binding("less_than_sign", "speed(-1)", "play slower", show=False),
    Binding("full_stop", "scrub(1)", "5 s on", show=False),
    Binding("comma", "scrub(-1)", "5 s back", show=False),
)
KEYS: Final = (*_IN_THE_FOOTER, *_VIEWS_AND_AGENTS, *_FILES, *_TIME)

_NAMES: Final = {
    "up": "↑",
    "down": "↓",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "home": "Home",
    "end": "End",
    "left": "←",
    "right": "→",
    "space": "Space",
    "question_mark": "?",
    "f1": "F1",
    "escape": "Esc",
    "enter": "⏎",
    "backspace": "⌫",
    "colon": ":",
    "slash": "/",
    "apostrophe": "'",
    "at": "@",
    "comma": ",",
    "full_stop": ".",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
}


def key_names(keys: str) -> str:
    """A binding's keys as printed on keyboards: "↑ k"."""
    names = []
    for key in keys.split(","):
        if key.startswith("ctrl+"):
            names.append(f"Ctrl-{key[5:].upper()}")
        else:
            names.append(_NAMES.get(key, key))
    return " ".join(names)


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
        ("Keys among the neighbours", bindings_of(NeighbourPane)),
    ]


def _add(found: dict[str, Binding], bindings: Iterable[BindingType]) -> None:
    for binding in bindings:
        if isinstance(binding, Binding):
            found.setdefault(binding.key, binding)
