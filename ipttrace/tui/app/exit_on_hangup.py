# SPDX-License-Identifier: GPL-2.0-only
"""Ends the process some time after its terminal has hung up, whatever it is doing.

Textual's writer thread dies once it cannot write to the terminal, and code that
waits for it may wait for ever.  When the process ends, so do the agent (its pipe
closes) and the lab's VM (by its guard).  Must not draw.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Final

GRACE: Final = 5.0  # s that an orderly exit may take
STATUS: Final = 129  # 128 + SIGHUP, as shells report it


def exit_on_hangup(fd: int) -> None:
    """Watches the terminal `fd` in a thread; exits `GRACE` seconds after it hung up."""
    poll = select.poll()
    poll.register(fd, 0)  # POLLHUP and POLLERR only, which are always reported

    def wait() -> None:
        poll.poll()
        time.sleep(GRACE)
        os._exit(STATUS)

    threading.Thread(target=wait, name="ipttrace-hangup", daemon=True).start()
