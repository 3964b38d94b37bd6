# SPDX-License-Identifier: GPL-2.0-only
"""All feeds of a screen together: names of hosts and namespaces, sums, the state.

A feed's position is the number of its host.  Must not touch widgets or feed
anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ipttrace.text import clean
from ipttrace.trace.neighbours import Reach
from ipttrace.trace.query import next_hop
from ipttrace.trace.row import Row
from ipttrace.trace.session import Trace
from ipttrace.tui import situation as at
from ipttrace.tui.feed.feed import Feed
from ipttrace.tui.feed.source import StreamSource
from ipttrace.tui.situation import Situation

Summary = dict[str, Any]


class Feeds(tuple[Feed, ...]):
    """The feeds, in the order of their hosts' numbers."""

    __slots__ = ()

    @property
    def trace(self) -> Trace:
        """The first feed's trace."""
        return self[0].trace

    @property
    def live(self) -> bool:
        """Whether any source is live."""
        return any(feed.source.live for feed in self)

    @property
    def engine(self) -> str:
        """The engines of all feeds, named as in a stream that has several: kernel+netlink."""
        names = {name for feed in self for name in feed.trace.engine.split("+") if name}
        return "+".join(sorted(names, key=("kernel", "bpf", "netlink", "none").index))

    def hosts(self) -> list[str]:
        """The hosts' names by number, from the streams; from the sources where two are equal."""
        names = [feed.host for feed in self]
        return [
            name if names.count(name) == 1 else clean(feed.source.name)
            for name, feed in zip(names, self, strict=True)
        ]

    def netns_names(self) -> dict[tuple[int, int], str]:
        """Names of network namespaces by host number and inode."""
        return {
            (feed.trace.host, inode): name
            for feed in self
            for inode, name in at.netns_names(feed.trace.hello).items()
        }

    def prefix(self, feed: Feed) -> str:
        """What precedes a line about one of several hosts: "web1: "; "" for a single host."""
        return f"{self.hosts()[feed.trace.host]}: " if len(self) > 1 else ""

    def notes(self) -> list[str]:
        """The agents' notes, one line each."""
        return [self.prefix(feed) + text for feed in self for _, text in feed.trace.notes]

    def next_hop(self, row: Row) -> Reach | None:
        """The next hop of an accepted row if it has no link-layer address now."""
        return next_hop(row, self.trace.store.neighbours)

    def unresolved(self, row: Row) -> str:
        """The protocol that does not resolve that next hop: ARP or ND; "" otherwise."""
        reach = self.next_hop(row)
        return "" if reach is None else reach.unresolved

    @property
    def recording(self) -> bool:
        """Whether a stream is being recorded."""
        return any(feed.tap.open for feed in self)

    def neighbour_fails(self) -> bool:
        """Whether a neighbour does not answer: what makes `unresolved` true of rows."""
        return any(feed.trace.neighbours.unresolved() for feed in self)

    def unseen_drops(self) -> str:
        """Why drops outside the tables are not recorded, for the first host of which that is so.

        "" if they are.
        """
        for feed in self:
            hello = feed.trace.hello
            if hello and hello.get("drops") is not True and not feed.trace.has_stations:
                why = at.text_of(hello.get("no_drops"), "this stream does not contain others")
                return self.prefix(feed) + why
        return ""

    @property
    def stations(self) -> bool:
        """Whether stations are recorded now, as far as it was asked for."""
        return any(feed.stations for feed in self)

    @property
    def sockets(self) -> bool:
        """Whether stages of sockets are recorded now, on any host."""
        return any(feed.sockets for feed in self)

    def hello(self) -> dict[str, object]:
        """The HELLO of a single host; of several, the keys that hold for all."""
        if len(self) == 1:
            return self.trace.hello
        filters = {feed.expr for feed in self}
        expr = filters.pop() if len(filters) == 1 else ""
        return {"host": ", ".join(self.hosts()), "expr": expr}

    def send(self, command: Mapping[str, object]) -> int:
        """Sends a command to every live agent.  Returns how many accepted it."""
        data = json.dumps(command).encode() + b"\n"
        return sum(
            isinstance(feed.source, StreamSource) and feed.source.send(data)
            for feed in self
            if not feed.over
        )

    def summary(self) -> Summary:
        """`Trace.summary()` with the figures added, all engines, and the first error or None.

        A figure that is unknown for one host is unknown: None.
        """
        each = [feed.trace.summary() for feed in self]
        total: Summary = {
            name: _sum([one[name] for one in each])
            for name in ("rows", "records", "lost", "missed", "incomplete")
        }
        total["engine"] = self.engine
        errors = [self.prefix(feed) + feed.error for feed in self if feed.error]
        total["error"] = errors[0] if errors else None
        return total

    def situation(self, rate: float | None) -> Situation:
        """The state of all feeds as one; `rate`: rows per second."""
        counts = self.summary()
        worst = min(self, key=lambda feed: at.URGENCY.index(feed.state))
        hosts, states = self.hosts(), [feed.state for feed in self]
        if len(set(states)) > 1:
            hosts = [f"{host} {state}" for host, state in zip(hosts, states, strict=True)]
        elif len(hosts) == 1 and not worst.trace.hello:
            hosts = []
        return Situation(
            state=worst.state,
            reason=self.prefix(worst) + worst.reason if worst.reason else "",
            live=self.live,
            filter=worst.expr,
            engine=counts["engine"],
            host=", ".join(hosts),
            kernel=at.text_of(worst.trace.hello.get("kernel")) if len(self) == 1 else "",
            rows=counts["rows"],
            rate=rate,
            lost=sum(feed.trace.lost for feed in self),
            missed=sum(feed.trace.missed for feed in self),
            filtered=worst.filtered,
        )


def _sum(figures: list[int | None]) -> int | None:
    """Returns the sum; None if one is unknown."""
    known = [figure for figure in figures if figure is not None]
    return sum(known) if len(known) == len(figures) else None
