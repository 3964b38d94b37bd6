# SPDX-License-Identifier: GPL-2.0-only
"""What keys are called, and texts that name them: by the keys that the user has chosen.

Must not know widgets or what keys do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from textual.app import App
from textual.keys import Keys, _character_to_key, key_to_character
from textual.message_pump import MessagePump

_NAMES: Final = {
    "up": "↑",
    "down": "↓",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "home": "Home",
    "end": "End",
    "left": "←",
    "right": "→",
    "space": "Space",
    "question_mark": "?",
    "escape": "Esc",
    "enter": "⏎",
    "backspace": "⌫",
    "colon": ":",
    "slash": "/",
    "apostrophe": "'",
    "at": "@",
    "comma": ",",
    "full_stop": ".",
    "less_than_sign": "<",
    "greater_than_sign": ">",
    "left_square_bracket": "[",
    "right_square_bracket": "]",
}


# For terminals that have no marks: what looks alike would be the name of another key.
_WORDS: Final = {
    "⏎": "Enter",
    "⌫": "Bksp",
    "␣": "Space",
    "↑": "Up",
    "↓": "Down",
    "←": "Left",
    "→": "Right",
}


class KeysInWords(dict[str, str]):
    """The keys that the user has chosen, by action, for a terminal without marks."""


def in_words(names: str) -> str:
    """Names of keys without marks: "Up k"."""
    return " ".join(_WORDS.get(name, name) for name in names.split(" "))


def names_in(keymap: Mapping[str, str], action: str | None, keys: str) -> str:
    """The names of an action's keys; `keys`: those that it has if the user chose none."""
    names = key_names(keymap.get(action or "", keys))
    return in_words(names) if isinstance(keymap, KeysInWords) else names


def key_names(keys: str) -> str:
    """A binding's keys as printed on keyboards: "↑ k"."""
    names = []
    for key in keys.split(","):
        if key.startswith("ctrl+"):
            names.append(f"Ctrl-{key[5:].upper()}")
        else:
            name = key_to_character(key) or ""
            if not name.isprintable() or not name:
                name = key.capitalize()  # Tab, F5
            names.append(_NAMES.get(key, name))
    return " ".join(names)


def textual_key(name: str) -> str | None:
    """Textual's name of a key as users write it: ":", "Enter", "F2", "Ctrl-K"; None: no key."""
    if len(name) == 1:
        return _character_to_key(name) if name.isprintable() else None
    key = _BY_NAME.get(name.lower(), name.lower())
    if key.startswith("ctrl-"):
        key = f"ctrl+{key[5:]}"
    known = {one.value for one in Keys if not one.value.startswith("<")}
    return key if key in known or key in _NAMES else None


_BY_NAME: Final = {name.lower(): key for key, name in _NAMES.items() if len(name) > 1}

# The keys that texts name, by action, as long as the user has not chosen others.
DEFAULTS: Final = {
    "all_rows": "C",
    "arm": "A",
    "connections": "7",
    "back": "⌫",
    "detail": "⏎",
    "filter": ":",
    "flow": "f",
    "fold": "z",
    "help": "?",
    "hide_unhit": "0",
    "kernel": "K",
    "mark": "m",
    "pause": "Space",
    "quit": "q",
    "record": "R",
    "rows": "1",
    "search": "/",
    "sockets": "b",
    "sort": "s",
    "stations": "B",
    "zoom": "z",
}


def with_keys(text: str, keymap: Mapping[str, str]) -> str:
    """The text with the name of its key in place of each action: "{back} goes back".

    `keymap`: the keys that the user has chosen, by action, as Textual's `set_keymap` has them.
    """

    def name(found: re.Match[str]) -> str:
        action = found[1]
        if action not in DEFAULTS:
            return found[0]
        shown = (key_names(keymap.get(action, "")).split() or [DEFAULTS[action]])[0]
        return in_words(shown) if isinstance(keymap, KeysInWords) else shown

    return re.sub(r"\{([a-z_]+)\}", name, text)


def chosen(node: MessagePump | App[object]) -> Mapping[str, str]:
    """The keys that the user has chosen, by action, in the app of this widget."""
    keymap: Mapping[str, str] = getattr(node.app, "keymap", {})
    return keymap
