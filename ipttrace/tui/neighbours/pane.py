# SPDX-License-Identifier: GPL-2.0-only
"""The pane of the kernel's tables: neighbours, reassembly, conntrack.

Shows how full they are, and the neighbours, of one namespace of a `Neighbours` and a
`KernelTables`; `[` and `]` change the namespace, `t` shows every field.  A neighbour's
cells are computed when its line is drawn.  Must not change what it shows; must be touched
from the app's thread only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.message import Message
from textual.reactive import var
from textual.strip import Strip

from ipttrace.trace.neighbours import Device, Namespace, Neighbour, Neighbours
from ipttrace.trace.tables import CONNTRACK, IPV4, IPV6, KernelTables
from ipttrace.tui.cells import Cells, beside, cut, spread
from ipttrace.tui.neighbours import sections, words
from ipttrace.tui.neighbours.vendors import Vendors
from ipttrace.tui.widgets.strips import NAMESPACE_KEYS, LineView

PREFIX: Final = "neighbours--"
_EMPTY: Final = (
    "No tables of the kernel yet.",
    "They arrive once a second.",
    "Recordings by older versions have none.",
)


class NeighbourPane(LineView):
    """The pane."""

    PREFIX = PREFIX
    COMPONENT_CLASSES: ClassVar[set[str]] = {PREFIX + role for role in words.ROLES}
    BINDINGS: ClassVar[list[BindingType]] = [
        *NAMESPACE_KEYS,
        Binding(
            "t,enter",
            "detail",
            "Every field",
            key_display="t",
            tooltip="every field, or the most important",
        ),
        Binding("k", "scroll_up", "up", show=False),
        Binding("j", "scroll_down", "down", show=False),
        Binding("g", "scroll_home", "to the top", show=False),
        Binding("G", "scroll_end", "to the end", show=False),
    ]
    DEFAULT_CSS = """
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
        """Vendors that were looked up are known now."""

    detail: var[bool] = var(False, init=False)  # every field
    netns: var[int | None] = var(None, init=False)  # of the namespace shown; None: none yet

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._neighbours: Neighbours | None = None
        self._kernel_tables: KernelTables | None = None
        self._versions = (-1, -1)
        self._names: Mapping[int, str] = {}
        self._above: list[Cells] = []  # lines above the neighbours
        self._shown: list[Neighbour] = []
        self._namespace: Namespace | None = None
        self._vendors = Vendors()
        self._unknown: set[str] = set()
        self._learning = False
        self._devices: dict[int, tuple[Device, list[Cells]]] = {}
        self._devices_width = 0

    def show(
        self, neighbours: Neighbours, kernel_tables: KernelTables, names: Mapping[int, str]
    ) -> None:
        """Show the tables of a host; draws only if they or the names have changed.

        `names`: of namespaces by inode, safe for a terminal; a namespace without one
        gets the name in its own frame.
        """
        versions = neighbours.version, kernel_tables.version
        if (
            neighbours is self._neighbours
            and kernel_tables is self._kernel_tables
            and versions == self._versions
            and names == self._names
        ):
            return
        self._neighbours, self._kernel_tables = neighbours, kernel_tables
        self._versions = versions
        self._names = dict(names)
        self._refill()

    def choose(self, netns: int) -> None:
        """Show this namespace, if its tables are known."""
        if netns in self._order():
            self.netns = netns

    def name_of(self, netns: int) -> str:
        """The name under which the pane shows a namespace."""
        held = (one for one in (self._neighbours, self._kernel_tables) if one is not None)
        known = (one.namespace(netns) for one in held)
        name = next((one.name for one in known if one is not None and one.name), "")
        return self._names.get(netns) or name or f"netns {netns}"

    # Keys.

    def action_other(self, step: int) -> None:
        """The next namespace, or the previous one."""
        order = self._order()
        if order:
            at = order.index(self.netns) if self.netns in order else -1
            self.netns = order[(at + step) % len(order)]

    def action_detail(self) -> None:
        """Every field, or the most important ones."""
        self.detail = not self.detail

    def watch_detail(self) -> None:
        self._refill()

    def watch_netns(self) -> None:
        self.scroll(0)
        self._refill()

    # Lines.

    def _order(self) -> list[int]:
        """The namespaces in the order of the keys."""
        if self._neighbours is None or self._kernel_tables is None:
            return []
        order = [one.netns for one in self._neighbours.namespaces()]
        known = set(order)
        more = (one.netns for one in self._kernel_tables.namespaces())
        return order + [netns for netns in more if netns not in known]

    def _refill(self) -> None:
        self._stale = True
        if self.visible_now:
            self.fill()

    def fill(self) -> None:
        """Make the lines above the neighbours, and put the neighbours in order."""
        self._stale, self._fitted = False, self.size
        order = self._order()
        if order and self.netns not in order:
            self.set_reactive(NeighbourPane.netns, order[0])
        neighbours = self._neighbours
        above: list[Cells] = []
        self._shown, self._namespace = [], None
        if neighbours is not None:
            if self.netns is not None:
                self._namespace = neighbours.namespace(self.netns)
            if self._namespace is not None:
                self._shown = words.ordered(self._namespace)
            above = self._lines_above(neighbours, low=False)
            if not self._fits(len(above)):
                above = self._lines_above(neighbours, low=True)
        self._above = above or [[], *([(f" {line}", "dim")] for line in _EMPTY)]
        self._head = [self._title(order)]
        self.reach(len(self._above) + self._per * len(self._shown))
        self.redraw()

    def _fits(self, lines: int) -> bool:
        """Whether so many lines leave room for neighbours."""
        some = self._per * min(len(self._shown), words.LEAST)
        return self.detail or self.size.height >= words.LOW or lines + some <= self.page

    def _lines_above(self, neighbours: Neighbours, low: bool) -> list[Cells]:
        """The lines above the neighbours; `low`: few of them."""
        above = self._tables(neighbours, low) + self._sections(low)
        if self._namespace is not None:
            if self.detail:
                above += self._parameters(self._namespace)
            above.append(words.about_neighbours(self._namespace, self._shown))
            above.append(words.titles(self.width))
        return above

    def _tables(self, neighbours: Neighbours, low: bool) -> list[Cells]:
        views, width = neighbours.tables(), self.width
        if len(views) == 2 and width >= words.WIDE:
            half = (width - 3) // 2
            lines = words.tables_beside(views[0], views[1], half, self.detail, low)
        else:
            lines = []
            for view in views:
                lines += words.table_lines(view, width, self.detail, low)
        if not lines:
            return []
        if low and not self.detail:
            return lines
        # Explains why there may be more entries than neighbours below.
        note = "All namespaces share the neighbour tables."
        return [*lines, [(note, "dim")], []]

    def _sections(self, low: bool) -> list[Cells]:
        """Reassembly and conntrack of the namespace."""
        held = self._kernel_tables
        known = None if held is None or self.netns is None else held.namespace(self.netns)
        if known is None:
            return []
        four, six, conntrack = (known.table(name) for name in (IPV4, IPV6, CONNTRACK))
        detail, width = self.detail, self.width
        if width >= sections.WIDE:
            half = (width - 3) // 2
            left = sections.reassembly_lines(four, six, half, detail, low)
            right = sections.conntrack_lines(conntrack, half, detail, low)
            lines = beside(left, right, half, "   ")
        else:
            lines = sections.reassembly_lines(four, six, width, detail, low)
            lines += [] if low and not detail else [[]]
            lines += sections.conntrack_lines(conntrack, width, detail, low)
        return lines if low and not detail else [*lines, []]

    def _parameters(self, namespace: Namespace) -> list[Cells]:
        if self._devices_width != self.width:
            self._devices_width = self.width
            self._devices.clear()
        devices, self._devices = self._devices, {}
        lines: list[Cells] = []
        for index, device in sorted(namespace.devices.items()):
            known = devices.get(index)
            if known is None or known[0] is not device:
                known = device, words.device_lines(device, self.width)
            self._devices[index] = known
            lines += known[1]
        return [[("Parameters per device", "head")], *lines, []]

    @property
    def _per(self) -> int:
        """Lines per neighbour."""
        return 1 if self.width >= words.ONE_LINE else 2

    # Drawing.

    def render_lines(self, crop: Region) -> list[Strip]:
        """The lines of `crop`; then vendors that they lack are looked up."""
        strips = super().render_lines(crop)
        if self._unknown and not self._learning:
            self._learning = True
            # Not while the screen is drawn.
            self.call_later(self._learn)
        return strips

    def _title(self, order: list[int]) -> Cells:
        if self.netns is None or self.netns not in order:
            return [(spread(" Kernel tables", "", self.width), "title")]
        at = f"  netns {order.index(self.netns) + 1}/{len(order)} [ ]" if len(order) > 1 else ""
        right = f"{at}  t {'less' if self.detail else 'more'} "
        what = "Kernel tables of " if self.width >= words.WIDE // 2 else ""
        return [(spread(f" {what}{self.name_of(self.netns)}", right, self.width), "title")]

    def line(self, at: int) -> tuple[Cells, str]:
        """Line `at`, cut with "…"."""
        return cut(self._line(at), self.width), ""

    def _line(self, at: int) -> Cells:
        if at < len(self._above):
            return self._above[at]
        which, part = divmod(at - len(self._above), self._per)
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
            self.width,
        )
        return lines[part]

    def _learn(self) -> None:
        """Look up the vendors of the lines on the screen, in a thread."""
        asked, self._unknown = self._unknown, set()

        def learn() -> None:
            self._vendors.learn(asked)
            self.post_message(self.Learnt())  # does not wait for an app that is quitting

        self.run_worker(learn, thread=True, group="vendors", exit_on_error=False)

    def on_neighbour_pane_learnt(self) -> None:
        self._learning = False
        self.redraw()
