# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel complains of: in its log, and on a debug kernel in lockdep and kmemleak."""

from __future__ import annotations

import contextlib
import ctypes
import re
import time
from pathlib import Path

SPLAT = re.compile(
    r"BUG[: ]|WARNING[: ]|Oops|general protection|RIP:|Call Trace|[Kk]ernel panic|refcount_t|"
    r"use-after-free|scheduling while atomic|INFO: rcu|INFO: task .* blocked|hung_task|"
    r"possible (recursive|circular|irq)|suspicious RCU|lock held|inconsistent lock|"
    r"bad unlock|KASAN|UBSAN|ODEBUG|DEBUG_LOCKS_WARN|leaked reference|ref_tracker|"
    r"unregister_netdevice: waiting|soft lockup|rcu_preempt detected|\bstall|"
    r"kmemleak: \d+ new|page allocation failure|corruption|list_(add|del) corruption"
)
_CONTEXT = 60  # lines of a splat that a failed test shows

# Actions of syslog(2).
_READ_ALL, _SIZE_BUFFER = 3, 10
_PRIORITY = re.compile(r"(?m)^<\d+>")

LOCKDEP = Path("/proc/lockdep_stats")
KMEMLEAK = Path("/sys/kernel/debug/kmemleak")
_YOUNG = 5.0  # seconds: what was allocated since then is not reported (mm/kmemleak.c)


def dmesg() -> str:
    """The complete kernel log, in the format of the program of this name, which starts slowly."""
    libc = ctypes.CDLL(None, use_errno=True)
    size = libc.klogctl(_SIZE_BUFFER, None, 0)
    text = ctypes.create_string_buffer(size)
    count = libc.klogctl(_READ_ALL, text, size)
    if count < 0:
        raise OSError(ctypes.get_errno(), "the kernel's log cannot be read")
    return _PRIORITY.sub("", text.raw[:count].decode(errors="replace"))


def splat(log: str) -> str:
    """The first complaint in a part of the log, with what follows it; "" without one."""
    lines = log.splitlines()
    for at, line in enumerate(lines):
        if SPLAT.search(line):
            return "\n".join(lines[max(0, at - 3) : at + _CONTEXT])
    return ""


def lockdep_is_off() -> bool:
    """Whether this kernel has lockdep, and has switched it off after a complaint."""
    with contextlib.suppress(FileNotFoundError):
        found = re.search(r"debug_locks:\s*(\d)", LOCKDEP.read_text())
        return found is not None and found[1] == "0"
    return False


def leaks() -> str:
    """What kmemleak reports after a complete scan; "" if it is not in this kernel, or off."""
    if not KMEMLEAK.exists():
        return ""
    try:
        # A first look may miss a pointer that moves: reported is what two scans do not find.
        for _ in range(2):
            time.sleep(_YOUNG)
            KMEMLEAK.write_text("scan")
        return KMEMLEAK.read_text()
    except OSError:
        return ""


def forget_leaks() -> None:
    """Has kmemleak report only leaks from now on."""
    if leaks():
        KMEMLEAK.write_text("clear")
