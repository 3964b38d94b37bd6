# SPDX-License-Identifier: GPL-2.0-only
"""The row that a trace runs until: the first one that a query takes.

Only finds it; who asked ends the trace.  Must not do I/O, and must not loop
over rows in Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ipttrace.trace.query import Context, Query, context_of
from ipttrace.trace.store import Store


class Until:
    """Looks at each row once, as they come."""

    def __init__(
        self,
        query: Query,
        *,
        netns: Mapping[int, str] | None = None,
        hosts: Sequence[str] = (),
    ) -> None:
        """`netns`, `hosts`: as `context_of` takes them; `netns` may be filled later."""
        self.query = query
        self._netns = netns
        self._hosts = hosts
        self._looked = 0
        self.found: int | None = None

    def feed(self, store: Store, context: Context | None = None) -> int | None:
        """Sequence number of the first row ever that the query takes; None while there is none.

        `context`: of the store as it is now; None: made from what this was made with.
        """
        if self.found is not None or self._looked >= store.end:
            return self.found
        end = store.end
        context = context or context_of(store, netns=self._netns, hosts=self._hosts)
        for part in store.parts(self._looked, end):
            hits = self.query.mask(part, context)
            if hits.any():
                self.found = part.first + int(np.argmax(hits))
                break
        self._looked = end
        return self.found
