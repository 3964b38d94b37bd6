# SPDX-License-Identifier: GPL-2.0-only
"""What help says about the views besides their keys: columns, bars, the query language.

Must not import widgets.
"""

from __future__ import annotations

from typing import Final

from ipttrace.tui.rows.columns import COLUMNS

ROWS: Final = (
    "A row is one packet in one table, with the rule that decided and the verdict, or a packet"
    " that was dropped outside the tables; {stations} shows others between the tables too."
    " The rail at the left edge joins the rows of a packet."
)
Lines = tuple[tuple[str, str], ...]

BARS: Final[Lines] = (
    ("traced: …", "the filter in the kernel; {kernel} sets it"),
    ("lost", "records for which the buffers had no room: the trace has gaps"),
    ("missed", "calls that the kernel's probes did not see"),
    ("PAUSED +N", "the display is frozen; N rows have arrived since and are kept"),
    ("SCROLLED +N", "you scrolled away from the newest row; N rows are below the last line"),
)
_RULES: Final[Lines] = (
    (
        "filtered",
        "in the title: only rows that match the filter are counted; {all_rows} shows all rows",
    ),
    ("kernel: 3s ago", "in the title: how much older the kernel's counters are than the hits"),
    ("hits, /s", "packets that hit the rule during this trace, and how many per second"),
    (
        "kernel",
        "packets counted by the kernel, as in iptables -vL; empty if the rule has no counter;"
        " not shown while rows are filtered",
    ),
    ("drops, drop%", "packets that the rule dropped, and its share of all drops in the namespace"),
    ("p50, p99", "cost of the calls that ended at the rule: 50% or 99% of them cost less"),
    ("pol, ret", "the chain's policy; the end of a user chain, which returns to its caller"),
)
_FLOWS: Final[Lines] = (
    ("packets, rows", "packets of the flow, both directions, and their rows"),
    ("drops", "rows in which a packet of the flow was dropped"),
    ("bytes", "bytes of its packets from the network header on; each packet counts once"),
    ("cost, max", "time spent in the tables: all its rows, and the slowest one"),
    ("host, netns", "where its first row was traced, if there is room"),
    ("ago", "time since its last row"),
    ("proto", "protocol"),
    ("source → destination", "addresses and ports of its first packet, as it arrived"),
    (
        "last verdict",
        "verdict of its newest row; after a drop, table, chain and rule of the last drop",
    ),
)
_TOTALS: Final[Lines] = (
    ("plots", "rows per second by verdict, the mean cost of a row, what was lost or missed"),
    ("now, peak", "value in the last complete second, and the highest in the plot"),
    ("rows, drops", "rows of each table at each hook, and of each protocol; drops are rows too"),
    ("p50, p99", "cost of a row: 50% or 99% of them cost less"),
    ("packets, bytes", "totals of each protocol; a packet counts once, with its first row"),
)
_DROPS: Final[Lines] = (
    ("drops, /s", "packets that died, and how many per second"),
    ("ago", "time since the last one"),
    ("host, netns", "where it was, if there is room"),
    ("reason", "the kernel's name of the reason; rule or policy if a rule dropped them"),
    ("place or rule", "the function in the kernel and the offset in it; table, chain and rule"),
    ("flow with the most", "its share of these drops, source and destination"),
    ("line below", "what it means and what to look at next, for the newest one; the rule's text"),
)
_SOCKETS: Final[Lines] = (
    ("ago, stage", "the newest stage, and the time since it; red: it failed"),
    ("took", "from the first stage until a process has the connection; red: until it failed"),
    ("queue", "accept queue / backlog; above the backlog, new connections are dropped"),
    ("again", "how often a SYN was repeated"),
    (
        "client → server",
        "both ends as the socket has them; a connection inside this host has two lines, one for"
        " the client's socket and one for the server's; a listener's address and port",
    ),
    ("process", "that connects or accepts; until then the one that has the listener"),
    ("line below", "the stages, with the time between them; why it came to nothing"),
    ("called as", "the destination before DNAT; answered by: the address after it"),
    ("2 inside", "the process's number in its own pid namespace; then its container"),
)
_TABLES: Final[Lines] = (
    ("WARNING, FULL", "nearly full, or packets were lost in the last 10 s; what is new is dropped"),
    ("gc_thresh", "below 1 no cleanup; above 2 idle entries are removed; at 3 it is full"),
    ("address", "the neighbour's address; ✗: not resolved"),
    ("state", "as in ip neigh: REACHABLE, STALE, FAILED, …"),
    ("age", "time since it was confirmed; if it is not resolved, since its state changed"),
    ("lladdr, device", "its link-layer address, and the device that leads to it"),
    ("probes, refs", "requests without an answer so far; references in the kernel"),
    ("conf/used/upd", "time since it was confirmed, used, changed"),
    ("vendor, flags", "vendor of the network card, by its address; flags as in ip neigh"),
    ("waiting, bytes", "packets that wait for fragments, their memory, and high_thresh"),
    ("Reasm…", "as in nstat: fragments, packets put together, given up; then per second"),
    ("conntrack", "entries of this namespace, of nf_conntrack_max; counters as conntrack -S"),
)
QUERY: Final[Lines] = (
    ("{filter}", "filters the rows by a query; Tab completes fields, operators and values"),
    ("{search}", "searches for a query, or for any text on the screen"),
    ("verdict=DROP", "field, operator, value; also != < <= > >= and ~ for a regular expression"),
    ("dport in 80,443", "one of a list, a range (8000-8100) or a network (10.0.0.0/8)"),
    ("drop", "packets that died: in a rule, or outside the tables; also reason, place, station"),
    ("drop and not tcp", "tests are joined by and, or, not and parentheses; many words need no ="),
    ("no_arp", "accepted, but the next hop does not answer: marked no ARP; no_nd for no ND"),
    ("cost>50us", "with units; src=10.1.0.2, addr=…, port=…, netns=router, time>-30s"),
    ("Ctrl-P", "all commands by name, for when you do not know the key"),
)

# By view: the title of its keys' section, and its columns.
VIEWS: Final[dict[str, tuple[str, str, Lines]]] = {
    "trace": ("Keys", "Columns", tuple((one.title or one.key, one.help) for one in COLUMNS)),
    "rules-view": ("Keys among the rules", "Columns of the rules", _RULES),
    "flows-view": ("Keys among the flows", "Columns of the flows", _FLOWS),
    "totals-view": ("Keys among the totals", "Columns of the totals", _TOTALS),
    "drops-view": ("Keys among the drops", "Columns of the drops", _DROPS),
    "sockets-view": ("Keys among the sockets", "Columns of the sockets", _SOCKETS),
    "neighbours": ("Keys among the kernel's tables", "The kernel's tables", _TABLES),
}
