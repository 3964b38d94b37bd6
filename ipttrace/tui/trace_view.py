# SPDX-License-Identifier: GPL-2.0-only
"""The trace: titles, the list, and the detail of the row under the cursor.

Its keys speak of the row under the cursor; what they ask goes to the app as
messages.  Must not feed or change the store.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical

from ipttrace.trace.query import from_row as build
from ipttrace.trace.row import Row
from ipttrace.trace.store import Store
from ipttrace.tui.detail.lines import Where
from ipttrace.tui.detail.pane import Detail
from ipttrace.tui.messages import ColumnsChanged, CursorMoved, FilterAsked, Notice
from ipttrace.tui.rows.empty import Empty
from ipttrace.tui.rows.list import Rows
from ipttrace.tui.rows.looking import Looking
from ipttrace.tui.rows.titles import Titles

DETAIL: Final = 0.2  # s between two pictures of the detail while rows run

OF_A_TABLE: Final = ("rule", "chain")
OF_A_HOST: Final = ("rule", "chain", "process", "namespace")

Build = Callable[[Row], str]


def _hide(row: Row) -> str:
    return build.negation(build.by_flow(row))


_BUILD: Final[dict[str, Build]] = {
    "flow": build.by_flow,
    "rule": build.by_rule,
    "chain": build.by_chain,
    "verdict": build.by_verdict,
    "process": build.by_process,
    "namespace": build.by_netns,
    "host": build.by_host_address,
    "hide flow": _hide,
}


class TraceView(Vertical):
    """The rows and what belongs to them."""

    DEFAULT_CSS = """
    TraceView { height: 1fr; width: 1fr; }
    TraceView Detail { height: 50%; display: none; border-top: solid $primary 50%; }
    TraceView.-detail Detail { display: block; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,d", "detail", "Detail", key_display="⏎", tooltip="the packet's whole way"),
        Binding("f", "by('flow')", "Flow", tooltip="the whole flow of this row, both ways"),
        Binding("r", "by('rule')", "only this rule", show=False),
        Binding("c", "by('chain')", "only this chain", show=False),
        Binding("v", "by('verdict')", "only this verdict", show=False),
        Binding("p", "by('process')", "only this process", show=False),
        Binding("w", "by('namespace')", "only this network namespace", show=False),
        Binding("h", "by('host')", "only packets from or to this host (its source)", show=False),
        Binding("x", "by('hide flow')", "hide this flow", show=False),
        Binding("n", "again(1)", "the next one that the search finds", show=False),
        Binding("N", "again(-1)", "the one before", show=False),
        Binding("m", "mark", "mark this row, or take the mark off", show=False),
        Binding("apostrophe", "marked", "the next marked row", show=False),
        Binding("y", "copy", "copy this row", show=False),
        Binding("z", "fold", "fold the bytes in the detail, or show them", show=False),
    ]

    def __init__(
        self, store: Store, looking: Looking, where: Callable[[], Where], *, id: str | None = None
    ) -> None:
        """`where`: names of namespaces and hosts as they are now."""
        super().__init__(id=id)
        self._where = where
        self._store = store
        self._looking = looking
        self._marks: set[int] = set()
        self._due = False

    def compose(self) -> ComposeResult:
        yield Titles(id="titles")
        yield Rows(self._looking.lens, id="rows")
        yield Empty(id="empty")
        yield Detail(id="detail")

    def on_mount(self) -> None:
        self.rows = self.query_one(Rows)
        self.titles = self.query_one(Titles)
        self.empty = self.query_one(Empty)
        self.detail = self.query_one(Detail)
        self.empty.display = False

    def pull(self) -> None:
        """Show what the store has by now."""
        if self.rows.lens is not self._looking.lens:
            self.rows.look_through(self._looking.lens)
        self._looking.pull()
        empty = self._store.end == 0
        if self.empty.display != empty:
            # Not by a class: in the first moments Textual may miss its change.
            self.empty.display = empty
            self.rows.display = self.titles.display = not empty
            if not empty and self.display:
                self.rows.focus()
        self.rows.pull()

    @property
    def row(self) -> Row | None:
        """The row under the cursor."""
        return self.rows.at

    def on_columns_changed(self, message: ColumnsChanged) -> None:
        message.stop()
        self.titles.show(self.rows.columns, self.rows.aside or 0)

    # The detail.

    @property
    def detailed(self) -> bool:
        """Whether the detail is open."""
        return self.has_class("-detail")

    def action_detail(self) -> None:
        self.toggle_class("-detail")
        if not self.detailed and self.detail.has_focus:
            self.rows.focus()
        # It has no size before.
        self.call_after_refresh(self._show_detail)

    def action_fold(self) -> None:
        if self.detailed:
            self.detail.action_fold()
        else:
            self.post_message(Notice("Enter opens the detail, where z folds the bytes"))

    def on_cursor_moved(self, message: CursorMoved) -> None:
        message.stop()
        if self.detailed and not self._due:
            self._due = True
            self.set_timer(DETAIL if self.rows.follow else 0.001, self._show_detail)

    def _show_detail(self) -> None:
        self._due = False
        if self.detailed:
            row = self.row
            self.detail.show(self._store, None if row is None else row.index, self._where())

    # Keys on a row.

    def _need(self) -> Row | None:
        if (row := self.row) is None:
            self.post_message(Notice("there is no row under the cursor", error=True))
        return row

    def action_by(self, name: str) -> None:
        if (row := self._need()) is None:
            return
        text = _BUILD[name](row)
        if not text:
            self.post_message(Notice(f"this row has no {name} to filter by", error=True))
            return
        if name in OF_A_TABLE and not row.tables and self.rows.nftables:
            text = build.conjunction(text, build.LEGACY_TABLES)
        hosts = list(self._where().hosts.values())
        if len(hosts) > 1 and name in OF_A_HOST:
            # The same inode is another namespace elsewhere, and the same pid another process.
            text = build.conjunction(text, build.by_host(row, hosts))
        word = row.verdict if name == "verdict" and row.verdict else name
        # Whoever has found the dropped packet wants to see what came before it.
        self.post_message(FilterAsked(text, word, whole=name == "flow"))

    def action_again(self, step: int) -> None:
        text = self._looking.sought
        if not text:
            self.post_message(Notice("/ begins a search", error=True))
            return
        self.find(text, step)

    def find(self, text: str, step: int = 1, start: int | None = None) -> bool:
        """Go to the next row that `text` matches.  Raises QueryError.

        After `start`, which is the cursor's place, or before it where `step` is -1.
        """
        place = self._looking.find(text, self.rows.cursor if start is None else start, step)
        if place is None:
            # Once round, as pagers do.
            lens = self._looking.lens
            place = self._looking.find(text, lens.first - 1 if step > 0 else lens.end, step)
            if place is None:
                self.post_message(Notice(f"no row here matches: {self._looking.words}", error=True))
                return False
            self.post_message(Notice("the search went round the end"))
        self.rows.move_to(place)
        return True

    def action_mark(self) -> None:
        if (row := self._need()) is None:
            return
        self._marks ^= {row.index}
        self._marks = {seq for seq in self._marks if seq >= self._store.first}
        self.rows.mark(frozenset(self._marks))

    def action_marked(self) -> None:
        lens, here = self.rows.lens, self.row
        seqs = sorted(seq for seq in self._marks if lens.seq(lens.position(seq)) == seq)
        if here is None or not seqs:
            self.post_message(Notice("no row here is marked: m marks one", error=True))
            return
        later = [seq for seq in seqs if seq > here.index]
        self.rows.move_to(lens.position((later or seqs)[0]))

    @property
    def marks(self) -> frozenset[int]:
        """Sequence numbers of the marked rows."""
        return frozenset(self._marks)

    def action_copy(self) -> None:
        if (row := self._need()) is not None:
            from ipttrace.view.labels import Labels
            from ipttrace.view.text import TextView

            where = self._where()
            named = Labels(tuple(where.hosts.values()), alone=where.netns)
            self.app.copy_to_clipboard(TextView(named).lines([row]).strip())
            self.post_message(Notice("copied: the terminal has it, if it takes such (OSC 52)"))
