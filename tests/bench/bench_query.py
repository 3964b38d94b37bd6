# SPDX-License-Identifier: GPL-2.0-only
"""How fast a query compiles, and how fast it matches a million rows.

Run it, or call `run`: ``{name: {"value": number, "unit": text, "goal": number}}``.
Goals are for one core.  Needs no root and no kernel.
"""

from __future__ import annotations

import time

from ipttrace.trace import query
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from tests.bench.bench_trace import ROWS, Results, _best, _million

# Typical queries; the goal is defined for the first one.
QUERIES = {
    "example": "verdict=DROP and src in 10.0.0.0/8 and chain~DOCKER and cost>50us",
    "all_parts": "verdict=ACCEPT and src in 10.0.0.0/8 and chain~o and cost>1us",
    "flow": "",
    "any_step": "path~DOCKER-USER or path=FORWARD:2",
    "address_port": "addr=10.16.0.7 and port in 80,443,8000-8100",
    "negation": "not (tcp and flags=SYN) and ct_state!=NEW",
}
GOAL = 100
NEW = 2_000


def _ms(
    store: Store, context: query.Context, compiled: query.Query, first: int | None = None
) -> float:
    def match() -> None:
        for part in store.parts(first):
            compiled.mask(part, context)

    return _best(match, 10) * 1e3


def run() -> Results:
    """Runs all measurements, in about 15 seconds."""
    results: Results = {}
    start = time.process_time()
    query.compile("dport=443")
    results["query.first_compile"] = {
        "value": round((time.process_time() - start) * 1e3, 1),
        "unit": "ms",
        "goal": 100,
    }
    example = QUERIES["example"]
    results["query.compile"] = {
        "value": round(_best(lambda: query.compile(example), 20) * 1e3, 2),
        "unit": "ms",
        "goal": 10,
    }
    trace = Trace(ROWS)
    for frame in _million():
        trace.feed(frame)
    store = trace.store
    context = query.context_of(store)
    flow = query.by_flow(store.row(store.end - 1))
    for name, text in QUERIES.items():
        compiled = query.compile(text or flow)
        results[f"query.{name}_1m_rows"] = {
            "value": round(_ms(store, context, compiled) * ROWS / len(store), 1),
            "unit": "ms",
            "goal": GOAL,
        }
        if name == "example":
            results["query.example_2000_new_rows"] = {
                "value": round(_ms(store, context, compiled, store.end - NEW), 3),
                "unit": "ms",
                "goal": 1,
            }
    return results


if __name__ == "__main__":
    for name, result in run().items():
        print(f"{name:40} {result['value']:>12,} {result['unit']:10} goal {result['goal']:,}")
