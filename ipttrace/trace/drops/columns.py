# SPDX-License-Identifier: GPL-2.0-only
"""Stations as the store's columns, and rows of both kinds in order of time.  Must not do I/O."""

from __future__ import annotations

from typing import Final

import numpy as np

from ipttrace.stream import record
from ipttrace.trace.arrays import Array
from ipttrace.trace.calls import Calls
from ipttrace.trace.drops.places import Places
from ipttrace.trace.rules import NO_TABLES
from ipttrace.trace.store import ASIDE, Asides, Columns

Rows = tuple[Columns, Array, Columns]
"""What Store.append takes."""

_NO_VERDICT: Final = 0xFFFFFFFF
_NOT_A_STATION: Final = 255  # what a forged record calls a call


def as_calls(stations: Array) -> Calls:
    """Returns stations as calls without rules: their entries' fields have the same names."""
    count = len(stations)
    exits = np.zeros(count, record.EXIT_DTYPE)
    exits["verdict"] = _NO_VERDICT
    exits["flags"] = record.EXIT_F_NO_VERDICT
    nothing = np.zeros(count, bool)
    return Calls(
        stations,
        exits,
        stations["call"].astype(np.uint64),
        np.zeros(count, np.int64),
        np.zeros(0, record.RULE_DTYPE),
        nothing,
        nothing,
    )


def complete(columns: Columns, stations: Array, places: Places, asides: Asides) -> None:
    """Replaces in the columns of `as_calls` what stations have instead of a table."""
    what = stations["what"]
    columns["what"] = np.where(what == 0, np.uint8(_NOT_A_STATION), what)
    columns["tables"] = np.full(len(what), NO_TABLES, np.uint8)
    columns["table"] = np.zeros(len(what), np.uint32)
    columns["reason"] = places.reasons(stations["reason"])
    columns["place"] = places.places(stations["place"])
    aside = np.zeros(len(what), ASIDE)
    named = {"stack": places.stacks, "owner": places.owners}
    for name in ASIDE.names or ():
        aside[name] = named[name](stations[name]) if name in named else stations[name]
    # The kernel left these as they were.
    for bit, names in (
        (record.STATION_F_ROUTE, ("route_table", "route_type", "gateway", "gateway_family")),
        (record.STATION_F_NEIGHBOUR, ("neighbour_state",)),
    ):
        unset = stations["station_flags"] & bit == 0
        for name in names:
            aside[name][unset] = 0
    columns["aside"] = asides.intern(aside)


def picked(rows: Rows, which: Array) -> Rows:
    """Returns the rows, without paths, at the indices or mask `which`."""
    columns, ends, steps = rows
    return {name: column[which] for name, column in columns.items()}, ends[which], steps


def merged(one: Rows, other: Rows) -> tuple[Rows, Array]:
    """Returns the rows of both in order of time; and where each was among both, intp (n,)."""
    both = {name: np.concatenate([column, other[0][name]]) for name, column in one[0].items()}
    order = np.argsort(both["time"], kind="stable")
    lengths = np.concatenate([np.diff(rows[1], prepend=0) for rows in (one, other)]).astype(np.intp)
    begins = np.cumsum(lengths) - lengths
    lengths = lengths[order]
    ends = np.cumsum(lengths)
    at = np.repeat(begins[order] - (ends - lengths), lengths) + np.arange(int(lengths.sum()))
    steps = {name: np.concatenate([column, other[2][name]])[at] for name, column in one[2].items()}
    return ({name: column[order] for name, column in both.items()}, ends, steps), order
