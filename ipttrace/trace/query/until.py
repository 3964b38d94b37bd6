# SPDX-License-Identifier: GPL-2.0-only
"""--until: finds the first row that a query matches; the caller ends the trace.

Must not do I/O, and must not loop over rows in Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ipttrace.trace.query import Context, Query, context_of
from ipttrace.trace.store import Store


class Until:
    """Checks each row once, as rows arrive."""

    def __init__(
        self,
        query: Query,
        *,
        netns: Mapping[int, str] | None = None,
        hosts: Sequence[str] = (),
    ) -> None:
        """`netns`, `hosts`: as for `context_of`; `netns` may be filled later."""
        self.query = query
        self._netns = netns
        self._hosts = hosts
        self._checked = 0
        self.found: int | None = None

    def feed(self, store: Store, context: Context | None = None) -> int | None:
        """Check new rows; the sequence number of the first match so far, or None.

        `context`: that of the store as of now; None: made from `netns` and `hosts`.
        """
        if self.found is not None or self._checked >= store.end:
            return self.found
        end = store.end
        context = context or context_of(store, netns=self._netns, hosts=self._hosts)
        for part in store.parts(self._checked, end):
            hits = self.query.mask(part, context)
            if hits.any():
                self.found = part.first + int(np.argmax(hits))
                break
        self._checked = end
        return self.found
