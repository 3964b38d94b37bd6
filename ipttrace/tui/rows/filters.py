# SPDX-License-Identifier: GPL-2.0-only
"""The view's filters as a stack: each key that narrows the view adds one, ⌫ removes it.

Holds texts of queries only.  Must not know rows, the store or Textual.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipttrace.trace.query.from_row import conjunction


@dataclass(frozen=True, slots=True)
class Step:
    """One filter of the stack."""

    text: str  # the complete query
    name: str  # what it adds to the one before, in a few cells


ALL = Step("", "all rows")


class Filters:
    """The stack; the last filter is in force."""

    def __init__(self) -> None:
        self._steps: list[Step] = [ALL]

    def __len__(self) -> int:
        """The number of filters that `back` can remove."""
        return len(self._steps) - 1

    @property
    def text(self) -> str:
        """The query in force; "" matches all rows."""
        return self._steps[-1].text

    @property
    def trail(self) -> str:
        """The names of the filters: "flow › DROP"."""
        return " › ".join(step.name for step in self._steps[1:])

    def narrowed(self, query: str) -> str:
        """The query in force and `query` as one.  Raises QueryError."""
        return conjunction(self.text, query)

    def push(self, text: str, name: str) -> bool:
        """Puts `text` in force.  False: it is already."""
        if text == self.text:
            return False
        self._steps.append(Step(text, name))
        return True

    def back(self) -> bool:
        """Removes the last filter.  False: there is none."""
        if len(self._steps) == 1:
            return False
        self._steps.pop()
        return True
