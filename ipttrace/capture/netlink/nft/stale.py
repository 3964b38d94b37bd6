# SPDX-License-Identifier: GPL-2.0-only
"""Whose a flip table is, by its name, and the removal of those that dead processes left.

Must not know what is in a table.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.events import TABLE_PREFIX
from ipttrace.capture.netlink.nft import wire
from ipttrace.capture.netlink.nft.wire import NftSocket, Refused, Request, capture_error

_NAME: Final = re.compile(re.escape(TABLE_PREFIX) + rb"(\d{1,10})-(\d{1,20})")  # pid, start


def own_name() -> bytes:
    """The name of this process's flip tables.  Raises CaptureError."""
    pid, start, _ = _process("self")
    return TABLE_PREFIX + b"%d-%d" % (pid, start)


def remove_stale() -> list[str]:
    """Removes the flip tables that dead processes left in the calling thread's namespace.

    Returns their names.  Processes are identified by id and start time in this process's
    /proc, so that those of another pid namespace look dead.  Owned tables are never
    stale.  Raises CaptureError.
    """
    try:
        nft = NftSocket()
    except CaptureError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EPROTONOSUPPORT:
            return []
        raise
    try:
        stale = []
        for family, found in nft.ask(Request(wire.GETTABLE, 0, b"", wire.DUMP)):
            name = found.get(1, b"").rstrip(b"\0")
            # Type 7 is NFTA_TABLE_OWNER: its socket is open.
            if (match := _NAME.fullmatch(name)) and 7 not in found and not _alive(*match.groups()):
                stale.append((family, name))
        removed = []
        for family, name in stale:
            try:
                nft.commit([Request(wire.DELTABLE, family, wire.text(1, name))])
            except Refused as error:
                if error.errno != errno.ENOENT:
                    raise
            else:
                removed.append(name.decode())
        return list(dict.fromkeys(removed))
    except Refused as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise capture_error(error.errno) from error
    finally:
        nft.close()


def _process(name: str) -> tuple[int, int, bytes]:
    """Process id, start in clock ticks and state, from /proc/`name`.  Raises CaptureError."""
    try:
        stat = (Path("/proc") / name / "stat").read_bytes()
        # The command's name, in brackets, may hold any bytes.
        fields = stat[stat.rindex(b")") + 1 :].split()
        return int(stat[: stat.index(b" ")]), int(fields[19]), fields[0]
    except (OSError, ValueError, IndexError) as error:
        raise CaptureError(
            "/proc is not mounted, or hides this process: mount it without hidepid"
        ) from error


def _alive(pid: bytes, start: bytes) -> bool:
    try:
        _, began, state = _process(str(int(pid)))
    except CaptureError:
        return False
    return began == int(start) and state not in (b"Z", b"X")
