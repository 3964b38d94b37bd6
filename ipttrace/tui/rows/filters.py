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
    words: tuple[str, ...]  # the filters that it consists of, in words


ALL = Step("", ())


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
    def words(self) -> tuple[str, ...]:
        """The filters in force, in words: ("netns router", "DROP")."""
        return self._steps[-1].words

    def narrowed(self, query: str) -> str:
        """The query in force and `query` as one.  Raises QueryError."""
        return conjunction(self.text, query)

    def push(self, text: str, words: str, *, add: bool = False) -> bool:
        """Puts `text` in force.  False: it is already.

        `words`: what it adds to the filters in force if `add`, else all of it.
        """
        if text == self.text:
            return False
        before = self.words if add else ()
        self._steps.append(Step(text, (*before, words) if text else ()))
        return True

    def clear(self) -> bool:
        """Shows all rows; `back` returns to the filters.  False: none is in force."""
        return self.push("", "")

    def back(self) -> bool:
        """Removes the last filter.  False: there is none."""
        if len(self._steps) == 1:
            return False
        self._steps.pop()
        return True
