# SPDX-License-Identifier: GPL-2.0-only
"""The neighbour pane: how full the ARP and NDP tables are, and who is in them.

Shows what a `Neighbours` holds of one namespace; `[` and `]` go to another, `t`
shows every field.  Lines are put into words when they are drawn.  Must not
change what it shows; must be touched from the app's thread alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import var
from textual.scroll_view import ScrollView
from textual.strip import Strip

from ipttrace.trace.neighbours import Device, Namespace, Neighbour, Neighbours
from ipttrace.tui.cells import fit
from ipttrace.tui.neighbours import words
from ipttrace.tui.neighbours.vendors import Vendors
from ipttrace.tui.neighbours.words import Line

PREFIX: Final = "neighbours--"
_EMPTY: Final = (
    "No neighbour tables have come yet.",
    "They come once a second; a recording made by an older version has none.",
)


class NeighbourPane(ScrollView, can_focus=True):
    """The pane.  `show` gives it what there is."""

    ALLOW_SELECT = False
    COMPONENT_CLASSES: ClassVar[set[str]] = {PREFIX + role for role in words.ROLES}
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "left_square_bracket",
            "other(-1)",
            "Namespace",
            key_display="[ ]",
            tooltip="the namespace before",
        ),
        Binding(
            "right_square_bracket",
            "other(1)",
            show=False,
            tooltip="the next namespace",
        ),
        Binding("t,enter", "detail", "Every field", key_display="t", tooltip="every field, or few"),
        Binding("k", "scroll_up", "up", show=False),
        Binding("j", "scroll_down", "down", show=False),
        Binding("g", "scroll_home", "to the top", show=False),
        Binding("G", "scroll_end", "to the end", show=False),
    ]
    DEFAULT_CSS = """
    NeighbourPane {
        background: $background;
        color: $foreground;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        scrollbar-gutter: stable;
    }
    NeighbourPane > .neighbours--title { background: $panel; color: $foreground; text-style: bold; }
    NeighbourPane:focus > .neighbours--title { background: $primary 30%; }
    NeighbourPane > .neighbours--head { color: $text-primary; text-style: bold; }
    NeighbourPane > .neighbours--text { color: $foreground; }
    NeighbourPane > .neighbours--dim { color: $foreground 65%; }
    NeighbourPane > .neighbours--value { color: $foreground; }
    NeighbourPane > .neighbours--lladdr { color: $foreground 65%; }
    NeighbourPane > .neighbours--spark { color: $text-primary; }
    NeighbourPane > .neighbours--bar { color: $text-success; }
    NeighbourPane > .neighbours--ok { color: $text-success; }
    NeighbourPane > .neighbours--warn { color: $text-warning; text-style: bold; }
    NeighbourPane > .neighbours--full { color: $text-error; text-style: bold; }
    NeighbourPane > .neighbours--good { color: $text-success; }
    NeighbourPane > .neighbours--fair { color: $foreground 85%; }
    NeighbourPane > .neighbours--busy { color: $text-warning; }
    NeighbourPane > .neighbours--bad { color: $text-error; text-style: bold; }
    NeighbourPane > .neighbours--fixed { color: $text-secondary; }
    """

    class Learnt(Message, bubble=False):
        """The vendors that were asked for are known."""

    detail: var[bool] = var(False, init=False)  # every field
    netns: var[int | None] = var(None, init=False)  # the namespace shown; None: none yet

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._neighbours: Neighbours | None = None
        self._version = -1
        self._names: Mapping[int, str] = {}
        self._stale = False  # something is new that has not been put into lines
        self._fitted = (0, False)  # width, and whether it is low
        self._head: list[Line] = []
        self._shown: list[Neighbour] = []
        self._namespace: Namespace | None = None
        self._vendors = Vendors()
        self._unknown: set[str] = set()
        self._learning = False
        self._devices: dict[int, tuple[Device, list[Line]]] = {}
        self._strips: dict[int, Strip] = {}
        self._styles_of: dict[str, Style] = {}

    def show(self, neighbours: Neighbours, names: Mapping[int, str]) -> None:
        """Show what has come, of a host; draws only when something is new.

        `names`: of namespaces by inode, safe for a terminal; where one has none,
        the name that came with its neighbours is shown.
        """
        if (
            neighbours is self._neighbours
            and neighbours.version == self._version
            and names == self._names
        ):
            return
        self._neighbours, self._version = neighbours, neighbours.version
        self._names = dict(names)
        self._refill()

    def choose(self, netns: int) -> None:
        """Show this namespace, if there is something of it."""
        if self._neighbours is not None and self._neighbours.namespace(netns) is not None:
            self.netns = netns

    def name_of(self, netns: int) -> str:
        """The name that the pane gives to a namespace."""
        known = None if self._neighbours is None else self._neighbours.namespace(netns)
        return self._names.get(netns) or (known.name if known else "") or f"netns {netns}"

    # A person acts.

    def action_other(self, step: int) -> None:
        """The next namespace, or the one before."""
        order = self._order()
        if order:
            at = order.index(self.netns) if self.netns in order else -1
            self.netns = order[(at + step) % len(order)]

    def action_detail(self) -> None:
        """Every field, or the few that matter most."""
        self.detail = not self.detail

    def watch_detail(self) -> None:
        self._refill()

    def watch_netns(self) -> None:
        self.scroll_to(y=0, animate=False, force=True)
        self._refill()

    # From what there is to lines.

    def _order(self) -> list[int]:
        """The namespaces as one goes through them."""
        if self._neighbours is None:
            return []
        return [one.netns for one in self._neighbours.namespaces()]

    @property
    def _width(self) -> int:
        return max(1, self.size.width - self.styles.scrollbar_size_vertical)

    @property
    def _fit(self) -> tuple[int, bool]:
        return self._width, self.size.height < words.LOW

    def _refill(self) -> None:
        """Something is new."""
        if not self.display or not self.size.width:
            self._stale = True
            return
        self._fill()

    def _fill(self) -> None:
        self._stale = False
        self._strips.clear()
        if self._fitted != self._fit:
            self._fitted = self._fit
            self._devices.clear()
        order = self._order()
        if order and self.netns not in order:
            self.set_reactive(NeighbourPane.netns, order[0])
        neighbours = self._neighbours
        self._head, self._shown, self._namespace = [], [], None
        if neighbours is not None:
            self._head += self._tables(neighbours)
            if self.netns is not None:
                self._namespace = neighbours.namespace(self.netns)
        if self._namespace is not None:
            self._shown = words.ordered(self._namespace)
            if self.detail:
                self._head += self._parameters(self._namespace)
            self._head.append(words.about_neighbours(self._namespace, self._shown))
            self._head.append(words.titles(self._width))
        if not self._head:
            self._head = [[]] + [[(f" {line}", "dim")] for line in _EMPTY]
        size = Size(self._width, 1 + len(self._head) + self._per * len(self._shown))
        if size != self.virtual_size:
            self.virtual_size = size
        self.refresh()

    def _tables(self, neighbours: Neighbours) -> list[Line]:
        views, width = neighbours.tables(), self._width
        low = self.size.height < words.LOW
        if len(views) == 2 and width >= words.WIDE:
            half = (width - 3) // 2
            lines = words.beside(views[0], views[1], half, self.detail, low)
        else:
            lines = []
            for view in views:
                lines += words.table_lines(view, width, self.detail, low)
        if not lines:
            return []
        # Whoever sees 900 entries beside 3 neighbours must not look for an error.
        note = "All namespaces share the tables."
        return [*lines, [(note, "dim")], []]

    def _parameters(self, namespace: Namespace) -> list[Line]:
        devices, self._devices = self._devices, {}
        lines: list[Line] = []
        for index, device in sorted(namespace.devices.items()):
            known = devices.get(index)
            if known is None or known[0] is not device:
                known = device, words.device_lines(device, self._width)
            self._devices[index] = known
            lines += known[1]
        return [[("Parameters per device", "head")], *lines, []]

    @property
    def _per(self) -> int:
        """Lines of a neighbour."""
        return 1 if self._width >= words.ONE_LINE else 2

    def on_resize(self, event: events.Resize) -> None:
        if self._stale or self._fitted != self._fit:
            self._fill()

    def on_show(self, event: events.Show) -> None:
        if self._stale and self.size.width:
            self._fill()

    # Drawing.

    def notify_style_update(self) -> None:
        """Another theme, or focus came or went."""
        super().notify_style_update()
        self._styles_of.clear()
        self._strips.clear()
        self.refresh()

    def _style(self, role: str) -> Style:
        if (style := self._styles_of.get(role)) is None:
            full = self.get_component_rich_style(PREFIX + role)
            style = (
                full
                if role == "title"
                else self.rich_style + Style(color=full.color, bold=full.bold or None)
            )
            self._styles_of[role] = style
        return style

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of `crop`."""
        strips = super().render_lines(crop)
        if self._unknown and not self._learning:
            self._learning = True
            # Not now: the screen draws.
            self.call_later(self._learn)
        return strips

    def render_line(self, y: int) -> Strip:
        """One line of the screen; the first says which namespace."""
        if y == 0:
            return self._strip(self._title(), "title")
        at = y - 1 + self.scroll_offset.y
        if (strip := self._strips.get(at)) is None:
            strip = self._strips[at] = self._strip(self._line(at), "text")
        return strip

    def _strip(self, line: Line, ground: str) -> Strip:
        pieces = words.cut(line, self._width)
        return Strip([Segment(text, self._style(role)) for text, role in pieces], self._width)

    def _title(self) -> Line:
        order = self._order()
        if self.netns is None or self.netns not in order:
            return [(fit(" Neighbours", self._width), "title")]
        place = f"  netns {order.index(self.netns) + 1}/{len(order)} [ ]" if len(order) > 1 else ""
        right = f"{place}  t {'less' if self.detail else 'more'} "
        name = f" {self.name_of(self.netns)}"
        return [(fit(name, self._width - len(right)) + right, "title")]

    def _line(self, at: int) -> Line:
        if at < len(self._head):
            return self._head[at]
        which, part = divmod(at - len(self._head), self._per)
        if which >= len(self._shown) or self._namespace is None or self._neighbours is None:
            return []
        one = self._shown[which]
        vendor = self._vendors.name(one.lladdr)
        if vendor is None:
            self._unknown.add(one.lladdr)
        lines = words.neighbour_lines(
            one,
            self._namespace.device(one.dev),
            vendor or "",
            self._neighbours.mono / 1e9,
            self._width,
        )
        return lines[part]

    def _learn(self) -> None:
        """Who made the cards that are on the screen: a matter of a thread."""
        asked, self._unknown = self._unknown, set()

        def learn() -> None:
            self._vendors.learn(asked)
            self.post_message(self.Learnt())  # never waits for an app that is leaving

        self.run_worker(learn, thread=True, group="vendors", exit_on_error=False)

    def on_neighbour_pane_learnt(self) -> None:
        self._learning = False
        self._strips.clear()
        self.refresh()
