# SPDX-License-Identifier: GPL-2.0-only
"""An expression of nft's JSON as nft(8) writes it, libnftables-json(5).  Pure."""

from __future__ import annotations

import re
from typing import Any, Final

_WORD: Final = re.compile(r"[A-Za-z0-9_ -]{1,40}")


def expression(value: object) -> str:
    """Returns what a match compares, "" if it cannot be written; masks are left out."""
    if not isinstance(value, dict) or len(value) != 1:
        return ""
    (kind, of), *_ = value.items()
    if kind in ("&", "|", "^", "<<", ">>"):
        return expression(of[0]) if isinstance(of, list) and of else ""
    if kind == "concat" and isinstance(of, list):
        parts = [expression(one) for one in of]
        return " . ".join(parts) if all(parts) else ""
    if not isinstance(of, dict):
        return ""
    words = _words(kind, of)
    return words if _WORD.fullmatch(words) else ""


def _words(kind: str, of: dict[str, Any]) -> str:
    if kind == "payload":
        return f"{of.get('protocol', '')} {of['field']}" if "field" in of else ""
    if kind == "meta":
        return f"meta {of.get('key', '')}"
    if kind == "ct":
        direction = f"{of['dir']} " if "dir" in of else ""
        return f"ct {direction}{of.get('key', '')}"
    if kind == "fib":
        flags = of.get("flags", [])
        listed = " . ".join(flags if isinstance(flags, list) else [flags])
        return f"fib {listed} {of.get('result', '')}" if " . " not in listed else ""
    if kind == "rt":
        return f"rt {of.get('key', '')}"
    if kind in ("exthdr", "ip option", "tcp option"):
        name = "" if kind == "exthdr" else f"{kind} "
        return f"{name}{of.get('name', '')} {of['field']}" if "field" in of else ""
    return ""
