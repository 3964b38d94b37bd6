# SPDX-License-Identifier: GPL-2.0-only
"""A screen whose terminal has gone ends, whatever it is doing.

Textual's writing thread dies where nothing can be written any more, and what waits
for it may wait for ever.  What else there is to be ended ends with the process: the
agent by its pipe, the lab's machine by its guard.  Must not draw.
"""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Final

# How long an orderly end may take, s.
GRACE: Final = 5.0
STATUS: Final = 129  # 128 + SIGHUP, as a shell tells it


def watch(fd: int) -> None:
    """Ends the process some time after the terminal `fd` has hung up."""
    poll = select.poll()
    poll.register(fd, 0)  # nothing but that it is over

    def wait() -> None:
        poll.poll()
        time.sleep(GRACE)
        os._exit(STATUS)

    threading.Thread(target=wait, name="ipttrace-hangup", daemon=True).start()
