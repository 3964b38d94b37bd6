# SPDX-License-Identifier: GPL-2.0-only
"""The filters of the view, one on top of the other, and the way back.

Pure: query texts, no rows, no Textual.
"""

from __future__ import annotations

from dataclasses import dataclass

from ipttrace.trace.query.from_row import both


@dataclass(frozen=True, slots=True)
class Step:
    """One step into narrower views."""

    text: str  # the whole query in force
    name: str  # what the step added, in a few cells


ALL = Step("", "all rows")


class Filters:
    """A stack of steps; the last one is in force."""

    def __init__(self) -> None:
        self._steps: list[Step] = [ALL]

    def __len__(self) -> int:
        """Steps that `back` can take."""
        return len(self._steps) - 1

    @property
    def text(self) -> str:
        """The query in force; "" takes all rows."""
        return self._steps[-1].text

    @property
    def trail(self) -> str:
        """The way here: "flow › DROP"."""
        return " › ".join(step.name for step in self._steps[1:])

    def narrowed(self, query: str) -> str:
        """What is in force and `query`, as one query.  Raises QueryError."""
        return both(self.text, query)

    def push(self, text: str, name: str) -> bool:
        """Put `text` in force; False when it is already."""
        if text == self.text:
            return False
        self._steps.append(Step(text, name))
        return True

    def back(self) -> bool:
        """One step back; False when there is none."""
        if len(self._steps) == 1:
            return False
        self._steps.pop()
        return True
