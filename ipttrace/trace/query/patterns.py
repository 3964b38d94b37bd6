# SPDX-License-Identifier: GPL-2.0-only
"""Regular expressions, run by RE2 in time linear in the text.

Patterns are typed by the user, texts are names that anybody may have chosen for a
device, a chain or a process; with RE2 neither can stall the program.  Its syntax lacks
look-ahead, look-behind and back-references: https://github.com/google/re2/wiki/Syntax.
This is the only file that imports re2, which it does with the first pattern.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ipttrace.trace.query.error import QueryError, for_message
from ipttrace.trace.query.tree import Value, source_offset

Predicate = Callable[[str], bool]

MAX_PATTERN: Final = 1000  # characters
# Bytes for one compiled pattern and the states that its searches cache.  A pattern
# that needs more is an error; a search that needs more goes on without the cache.
MAX_MEMORY: Final = 1 << 20

# Beginnings of what RE2 calls an invalid perl operator.
_UNSUPPORTED: Final = {
    "(?=": "look-ahead",
    "(?!": "look-ahead",
    "(?<": "look-behind",
    "(?>": "atomic groups",
    "(?P": "back-references",
    "(?(": "conditional groups",
}


def compile_pattern(value: Value, source: str) -> Predicate:
    """Tests whether the pattern occurs in a text, in upper or lower case.

    `source`: the query, for the position of an error.  Raises QueryError.
    """
    if len(value.text) > MAX_PATTERN:
        raise value.error(f"pattern longer than {MAX_PATTERN} characters")
    import re2

    options = re2.Options()
    options.case_sensitive = False
    options.never_capture = True
    options.max_mem = MAX_MEMORY
    options.log_errors = False  # to stderr, which is the screen
    try:
        # Lone surrogates, which stand for bytes that are not UTF-8, match nothing.
        search = re2.compile(value.text.encode("utf-8", "surrogatepass"), options).search
    except re2.error as error:
        raise _error(value, source, error.args[0].decode("utf-8", "replace")) from None
    return lambda text: search(text.encode("utf-8", "replace")) is not None


def _error(value: Value, source: str, message: str) -> QueryError:
    """One line about RE2's `message`, "reason: fragment", pointing at the fragment."""
    reason, _, fragment = message.partition(": ")
    unsupported = None
    if reason == "invalid perl operator":
        unsupported = _UNSUPPORTED.get(fragment[:3])
    elif reason == "invalid escape sequence" and fragment[1:].isdigit():
        unsupported = "back-references"
    if unsupported:
        text = f"RE2's regular expressions have no {unsupported}"
    elif reason.startswith("pattern too large"):
        text = "regular expression too large: use smaller repeat counts"
    else:
        text = f"not a regular expression: {reason}"
        if fragment and fragment != value.text:
            text += f" {for_message(fragment)}"
    begin = value.text.rfind(fragment) if fragment else -1
    if begin < 0 or fragment == value.text:
        return value.error(text)
    end = begin + len(fragment)
    if value.quoted:
        written = source[value.start : value.end]
        begin, end = source_offset(written, begin), source_offset(written, end)
    return QueryError(text, value.start + begin, end - begin)
