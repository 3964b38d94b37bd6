# SPDX-License-Identifier: GPL-2.0-only
"""The trace view: titles, the list of rows, and the detail of the row under the cursor.

Its keys act on the row under the cursor; filters and notices go to the app as
messages.  Must not feed or change the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from ipttrace.trace.query import from_row
from ipttrace.trace.row import Row
from ipttrace.trace.selection import Mask
from ipttrace.trace.store import Store
from ipttrace.tui.detail import Detail, KnownNames
from ipttrace.tui.key_words import chosen, with_keys
from ipttrace.tui.messages import (
    ColumnsChanged,
    CursorMoved,
    FilterRequested,
    Notice,
    SocketRequested,
    WhyNotRequested,
)
from ipttrace.tui.rows import Rows, ShownRows, filter_words
from ipttrace.tui.rows.empty import Empty
from ipttrace.tui.rows.titles import Titles
from ipttrace.tui.timers import once

DETAIL: Final = 0.2  # s between two updates of the detail while the list follows
_BREATH: Final = 0.001  # s of a turn for keys while a filter is tried again

# Filters that need the kind of table, and those that need the host, to be unambiguous.
_PER_TABLE: Final = ("rule", "chain")
_PER_HOST: Final = ("rule", "chain", "process", "namespace")


def _not_this_flow(row: Row) -> str:
    return from_row.negation(from_row.by_flow(row))


_QUERIES: Final[dict[str, Callable[[Row], str]]] = {
    "flow": from_row.by_flow,
    "rule": from_row.by_rule,
    "chain": from_row.by_chain,
    "verdict": from_row.by_verdict,
    "process": from_row.by_process,
    "namespace": from_row.by_netns,
    "host": from_row.by_host_address,
    "hide flow": _not_this_flow,
}


class TraceView(Vertical):
    """The view: `Titles`, `Rows` or `Empty`, and `Detail`."""

    DEFAULT_CSS = """
    TraceView { height: 1fr; width: 1fr; }
    TraceView Detail { height: 50%; display: none; border-top: solid $primary 50%; }
    TraceView.-detail Detail { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter,d",
            "detail",
            "Detail",
            key_display="⏎",
            tooltip="the packet's complete journey",
            id="detail",
        ),
        Binding(
            "f",
            "by('flow')",
            "Flow",
            tooltip="this row's flow: both directions, on both sides of NAT",
            id="flow",
        ),
        Binding("r", "by('rule')", "only this rule", show=False, id="rule"),
        Binding("c", "by('chain')", "only this chain", show=False, id="chain"),
        Binding("v", "by('verdict')", "only this verdict", show=False, id="verdict"),
        Binding(
            "p",
            "by('process')",
            "only the process that has the socket; if unknown, the one that was running",
            show=False,
            id="process",
        ),
        Binding("w", "by('namespace')", "only this network namespace", show=False, id="namespace"),
        Binding(
            "h",
            "by('host')",
            "only packets from or to this host (its source)",
            show=False,
            id="host",
        ),
        Binding("x", "by('hide flow')", "hide this flow", show=False, id="hide_flow"),
        Binding("n", "again(1)", "the next match of the search", show=False, id="next"),
        Binding("N", "again(-1)", "the previous match", show=False, id="previous"),
        Binding("m", "mark", "mark this row, or unmark it", show=False, id="mark"),
        Binding("apostrophe", "marked", "the next marked row", show=False, id="marked"),
        Binding("y", "copy", "copy this row", show=False, id="copy"),
        Binding("s", "socket", "this packet's socket", show=False, id="socket"),
        Binding("Y", "why_not", "why this packet does not meet a rule", show=False, id="why_not"),
        Binding("z", "fold", "fold the bytes in the detail, or show them", show=False, id="fold"),
    ]

    def __init__(
        self,
        store: Store,
        shown: ShownRows,
        names: Callable[[], KnownNames],
        *,
        id: str | None = None,
    ) -> None:
        """`names`: returns the present names of namespaces and hosts."""
        super().__init__(id=id)
        self._names = names
        self._store = store
        self._shown = shown
        self._marks: set[int] = set()
        self._due = False  # an update of the detail is scheduled

    def compose(self) -> ComposeResult:
        yield Titles(id="titles")
        yield Rows(self._shown.selection, id="rows")
        yield Empty(id="empty")
        yield Detail(id="detail")

    def on_mount(self) -> None:
        self.rows = self.query_one(Rows)
        self.titles = self.query_one(Titles)
        self.empty = self.query_one(Empty)
        self.detail = self.query_one(Detail)
        self.empty.display = False

    def pull(self) -> None:
        """Show the rows that the store has now."""
        if self.rows.selection is not self._shown.selection:
            self.rows.show(self._shown.selection)
        if self._shown.pull(again=not self.rows.paused):
            once(self, _BREATH, self._try_again)
        empty = self._store.end == 0
        if self.empty.display != empty:
            # Not by a CSS class: Textual may miss its change during startup.
            self.empty.display = empty
            self.rows.display = self.titles.display = not empty
            if not empty and self.display:
                self.rows.focus()
        self.rows.pull()

    def _try_again(self) -> None:
        """Tries the filter again on the rows that are held, a portion between two keys."""
        if self._shown.progress is not None and not self._shown.filter_portion():
            once(self, _BREATH, self._try_again)
        else:
            self.pull()

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self.rows.current

    def on_columns_changed(self, message: ColumnsChanged) -> None:
        message.stop()
        self.titles.show(self.rows.columns, self.rows.left or 0)

    # The detail.

    @property
    def detailed(self) -> bool:
        """Whether the detail is open."""
        return self.has_class("-detail")

    def on_click(self, event: events.Click) -> None:
        """A second click on a row opens its detail."""
        if event.widget is self.rows and event.chain == 2 and not self.detailed:
            self.action_detail()

    def action_detail(self) -> None:
        self.toggle_class("-detail")
        if not self.detailed and self.detail.has_focus:
            self.rows.focus()
        # Before that, the pane has no size.
        self.call_after_refresh(self._show_detail)

    def action_fold(self) -> None:
        if self.detailed:
            self.detail.action_fold()
        else:
            text = self._keyed("{detail} opens the detail, where {fold} folds the bytes")
            self.post_message(Notice(text))

    def on_cursor_moved(self, message: CursorMoved) -> None:
        message.stop()
        if self.detailed and not self._due:
            self._due = True
            once(self, DETAIL if self.rows.follow else 0.001, self._show_detail)

    def _show_detail(self) -> None:
        self._due = False
        if self.detailed:
            row = self.row
            self.detail.show(self._store, None if row is None else row.index, self._names())

    # Keys on a row.

    def _keyed(self, text: str) -> str:
        return with_keys(text, chosen(self))

    def _need(self) -> Row | None:
        if (row := self.row) is None:
            self.post_message(Notice("no row under the cursor", error=True))
        return row

    def action_by(self, name: str) -> None:
        if (row := self._need()) is None:
            return
        text = _QUERIES[name](row)
        unknown = row.comm is None and row.pid is None and row.cost_ns is None
        unknown = unknown and row.owner_pid is None and row.owner_comm is None
        if name == "process" and unknown and self.rows.nftables:
            self.post_message(Notice("the process is not known over netlink", error=True))
            return
        if not text:
            self.post_message(Notice(f"this row has no {name} to filter by", error=True))
            return
        if name in _PER_TABLE and not row.tables and self.rows.nftables:
            text = from_row.conjunction(text, from_row.LEGACY_TABLES)
        hosts = list(self._names().hosts.values())
        if len(hosts) > 1 and name in _PER_HOST:
            # On another host, the same inode or pid belongs to something else.
            text = from_row.conjunction(text, from_row.by_host(row, hosts))
        netns = self._names().netns.get(row.netns) or str(row.netns)
        words = filter_words.of_row(name, row, netns)
        if name == "verdict" and (reach := self._names().unreached(row)) is not None:
            # What the column shows instead of ACCEPT.
            text, words = from_row.by_unresolved(reach.unresolved), f"no {reach.unresolved}"
        # Replaces the filter: after finding a dropped packet, see what came before it.
        self.post_message(FilterRequested(text, words, replace=name == "flow"))

    def action_again(self, step: int) -> None:
        mask = self._shown.search
        if mask is None:
            self.post_message(Notice(self._keyed("{search} starts a search"), error=True))
            return
        self.find(mask, step)

    def find(self, mask: Mask, step: int = 1, start: int | None = None) -> bool:
        """Go to the next row that matches, and return whether there is one.

        Searches after the position `start` (None: the cursor), or before it if `step`
        is -1, and wraps around once.
        """
        position = self._shown.find(mask, self.rows.cursor if start is None else start, step)
        if position is None:
            selection = self._shown.selection
            position = self._shown.find(
                mask, selection.first - 1 if step > 0 else selection.end, step
            )
            if position is None:
                self.post_message(
                    Notice(f"no row here matches: {self._shown.search_text}", error=True)
                )
                return False
            self.post_message(Notice("the search wrapped around"))
        self.rows.move_to(position)
        return True

    def action_mark(self) -> None:
        if (row := self._need()) is None:
            return
        self._marks ^= {row.index}
        self._marks = {seq for seq in self._marks if seq >= self._store.first}
        self.rows.show_marks(frozenset(self._marks))

    def action_marked(self) -> None:
        selection, here = self.rows.selection, self.row
        seqs = sorted(seq for seq in self._marks if selection.seq(selection.position(seq)) == seq)
        if here is None or not seqs:
            text = self._keyed("no row here is marked; {mark} marks one")
            self.post_message(Notice(text, error=True))
            return
        later = [seq for seq in seqs if seq > here.index]
        self.rows.move_to(selection.position((later or seqs)[0]))

    @property
    def marks(self) -> frozenset[int]:
        """Sequence numbers of the marked rows."""
        return frozenset(self._marks)

    def action_socket(self) -> None:
        if self._need() is not None:
            self.post_message(SocketRequested())

    def action_why_not(self) -> None:
        if self._need() is not None:
            self.post_message(WhyNotRequested(None))

    def action_copy(self) -> None:
        if (row := self._need()) is not None:
            from ipttrace.view.labels import Labels
            from ipttrace.view.text import TextView

            names = self._names()
            labels = Labels(tuple(names.hosts.values()), alone=names.netns)
            self.app.copy_to_clipboard(TextView(labels).lines([row]).strip())
            self.post_message(Notice("copied (if the terminal supports OSC 52)"))
