# SPDX-License-Identifier: GPL-2.0-only
"""The prompt: one line of input for a filter, a search, a time or a file.

Must not know what it asks for: an `Ask` has the check and the completion.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Input, Static

from ipttrace.tui.cells import cell_len
from ipttrace.tui.widgets.entry import Entry

HINTS: Final = 8  # completions shown
LONGEST: Final = 4000  # characters
EXCERPT: Final = 20  # characters of the text that an error quotes
PATIENCE: Final = 1.0  # s that a slow check may take


CheckText = Callable[[str], tuple[str, int] | None]
"""Returns what is wrong with a text and at which character; None if it is valid."""


@dataclass(frozen=True, slots=True)
class Hint:
    """A completion: `text` replaces the characters from `start` to `end`."""

    text: str
    start: int
    end: int
    help: str = ""


@dataclass(frozen=True, slots=True)
class Ask:
    """A question.

    `check` returns None for a valid text, else an error message and the index of the
    character that it is about.  `slow_check` does the same in another thread, for an
    entered text only; if it takes longer than PATIENCE, the text is accepted.  `accept`
    is called with a text that was entered and is valid.
    """

    title: str
    accept: Callable[[str], object]
    initial: str = ""
    placeholder: str = ""
    check: CheckText = lambda text: None
    slow_check: CheckText | None = None
    complete: Callable[[str, int], Sequence[Hint]] = field(default=lambda text, cursor: ())


class Prompt(Vertical):
    """The prompt; hidden until `ask`."""

    DEFAULT_CSS = """
    Prompt { height: auto; display: none; background: $panel; }
    Prompt Horizontal { height: auto; }
    Prompt #prompt-title { width: auto; padding: 0 1; color: $text-primary; text-style: bold; }
    Prompt Input, Prompt Input:focus {
        width: 1fr; height: auto; border: none; padding: 0;
        background: $panel; color: $foreground;
    }
    Prompt #prompt-hint { height: 1; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "cancel", show=False),
        Binding("tab", "take_hint", "complete", show=False),
        Binding("up", "older", "the previous entry", show=False),
        Binding("down", "newer", "the next entry", show=False),
    ]

    def __init__(self, release_focus: Callable[[], object], *, id: str | None = None) -> None:
        """`release_focus` returns the focus to the widget that had it before."""
        super().__init__(id=id)
        self._release_focus = release_focus
        self._ask: Ask | None = None
        self._past: dict[str, list[str]] = {}
        self._at = 0
        self._wrong: tuple[str, int] | None = None  # the error that is shown

    def compose(self) -> ComposeResult:
        with Horizontal():
            yield Static(id="prompt-title", markup=False)
            yield Entry(
                id="prompt-input", max_length=LONGEST, select_on_focus=False, accept=self._entered
            )
        yield Static(id="prompt-hint", markup=False)

    def on_mount(self) -> None:
        self._input = self.query_one(Entry)
        self._hint = self.query_one("#prompt-hint", Static)
        self._title = self.query_one("#prompt-title", Static)

    @property
    def asking(self) -> bool:
        """Whether it is open."""
        return self._ask is not None

    @property
    def hint(self) -> str:
        """The text of the line below the input."""
        return str(self._hint.content)

    def ask(self, ask: Ask) -> None:
        """Open the prompt for a question."""
        self._ask = ask
        self._at = len(self._past.setdefault(ask.title, []))
        self._title.update(Content(ask.title))
        self._input.placeholder = ask.placeholder
        self._input.value = ask.initial
        self._input.cursor_position = len(ask.initial)
        self.display = True
        self.screen.add_class("-asking")
        # Not `focus`, which takes effect later: keys that are waiting would go elsewhere.
        self.screen.set_focus(self._input)
        self._advise()

    def action_leave(self) -> None:
        self._close()

    def action_take_hint(self) -> None:
        text = self._input.value
        hints = self._ask.complete(text, self._input.cursor_position) if self._ask else ()
        if not hints:
            return
        hint = hints[0]
        self._input.value = text[: hint.start] + hint.text + text[hint.end :]
        self._input.cursor_position = hint.start + len(hint.text)

    def action_older(self) -> None:
        self._recall(-1)

    def action_newer(self) -> None:
        self._recall(1)

    def _recall(self, step: int) -> None:
        assert self._ask is not None
        past = self._past[self._ask.title]
        self._at = min(max(self._at + step, 0), len(past))
        self._input.value = past[self._at] if self._at < len(past) else self._ask.initial
        self._input.cursor_position = len(self._input.value)

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._advise()

    async def _entered(self) -> None:
        if (ask := self._ask) is None:
            return
        text = self._input.value.strip()
        wrong = ask.check(text)
        if wrong is None and ask.slow_check is not None:
            # Keys wait meanwhile: they belong to the prompt if the text is not valid.
            checking = asyncio.to_thread(ask.slow_check, text)
            with contextlib.suppress(TimeoutError):
                wrong = await asyncio.wait_for(checking, PATIENCE)
        if wrong is not None:
            self._complain(*wrong)
            return
        past = self._past[ask.title]
        if text and (not past or past[-1] != text):
            past.append(text)
        self._close()
        ask.accept(text)

    def _advise(self) -> None:
        """Show completions, or the error in the text so far."""
        self._wrong = None
        if self._ask is None:
            return
        text = self._input.value
        hints = self._ask.complete(text, self._input.cursor_position)[:HINTS]
        wrong = self._ask.check(text.strip()) if text.strip() else None
        if wrong is not None and not hints:
            self._complain(*wrong)
            return
        parts: list[str | tuple[str, str]] = []
        for number, hint in enumerate(hints):
            parts += [(hint.text.strip(), "bold $text-accent" if not number else "$text-accent")]
            help_ = f" {hint.help}" if hint.help and not number else ""
            parts += [(help_, "$foreground 70%"), "  "]
        if not parts:
            parts = [("Enter: accept   Esc: cancel", "$foreground 70%")]
        elif hints:
            parts.insert(0, ("Tab ", "$foreground 70%"))
        self._hint.update(Content.assemble(*parts))

    def _complain(self, line: str, index: int) -> None:
        """Show an error below character `index` of the stripped text."""
        self._wrong = line, index
        text = self._input.value
        index += len(text) - len(text.lstrip())
        # Both lines have a cell of padding, and the title another one on its right.
        width = self._hint.size.width
        place = self._input.place_of(index)
        if place.y + 1 != self._input.lines:
            # The line above this one is not the character's.
            where = text[index : index + EXCERPT]
            shown = f'{line}: "{where}{"…" if index + EXCERPT < len(text) else ""}"'
            self._hint.update(Content.assemble((shown, "bold $text-error")))
            return
        caret = self._title.size.width + 1 + place.x
        caret = min(max(0, caret), width - 1)
        length = cell_len(line) + 1
        if caret + 1 + length <= width or caret < length:
            shown = " " * min(caret, max(0, width - 1 - length)) + f"^ {line}"
        else:
            shown = " " * (caret - length) + f"{line} ^"
        self._hint.update(Content.assemble((shown, "bold $text-error")))

    def on_resize(self) -> None:
        """Keys come faster than the layout: until then, no place is known."""
        if self._wrong is not None:
            self._complain(*self._wrong)

    def _close(self) -> None:
        self._ask = None
        self._release_focus()
        self.display = False
        self.screen.remove_class("-asking")
