# SPDX-License-Identifier: GPL-2.0-only
"""Moments as users type them: 12:30:05, 2026-11-21T12:30, -30s.

Pure: must not know rows or Textual.
"""

from __future__ import annotations

import re
import time
from datetime import datetime
from typing import Final

SECOND: Final = 1_000_000_000  # ns
FORMS: Final = "12:30:05, 2026-11-21T12:30, -30s or +5m"

_RELATIVE: Final = re.compile(r"([+-])(\d+(?:\.\d+)?)(ms|s|m|h|)")
_OF_DAY: Final = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d)(\.\d+)?)?")
_UNITS: Final = {"ms": 10**6, "s": SECOND, "": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND}
_LAST: Final = 2**62  # ns since the epoch; what clocks can show ends earlier


def moment(text: str, here: int) -> int | None:
    """Returns the moment in ns since the epoch; None if `text` is not valid.

    `12:30` and `12:30:05.25` are local time on the day of `here`, `-30s` and `+5m` are
    relative to it (ns since the epoch); `2026-11-21T12:30:05` is absolute.
    """
    text = text.strip()
    if found := _RELATIVE.fullmatch(text):
        sign, number, unit = found.groups()
        step = int(min(float(number) * _UNITS[unit], _LAST))
        return min(max(here + (step if sign == "+" else -step), 0), _LAST)
    if found := _OF_DAY.fullmatch(text):
        hour, minute, second, fraction = found.groups()
        if int(hour) > 23 or int(minute) > 59 or int(second or 0) > 60:
            return None
        day = time.localtime(here // SECOND)
        broken_down = (*day[:3], int(hour), int(minute), int(second or 0), 0, 0, -1)
        return int(time.mktime(broken_down)) * SECOND + int(float(fraction or 0) * SECOND)
    try:
        return int(datetime.fromisoformat(text).timestamp() * SECOND)
    except (ValueError, OverflowError, OSError):
        return None
