# SPDX-License-Identifier: GPL-2.0-only
"""What the screen asks about a row: its way through the rules as they are now, and why not.

The screen has threads, and is not root: another process makes the copy.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any, Final

from ipttrace.start import python
from ipttrace.text import clean
from ipttrace.trace.store import Store

_PATIENCE: Final = 120.0  # s
_MOST: Final = 16 << 20


class AskHere:
    """Asks about rows that were traced live on this host."""

    def __call__(
        self, store: Store, seq: int, netns: str | None, rule: str | None, width: int
    ) -> tuple[list[str], str]:
        """Returns the lines to show, or an error; see tui.app.asking.AskRules."""
        from ipttrace.whatif import service
        from ipttrace.whatif.answer import way
        from ipttrace.whatif.errors import WhatIfError
        from ipttrace.whatif.packet import recorded

        try:
            packet = recorded.of_row(store, seq)
            if store.row(seq).netns == os.stat("/proc/self/ns/net").st_ino:
                netns = None
            elif netns is None:
                return [], "the row's network namespace has no name by which it could be entered"
            before = way.of_rows(recorded.journey(store, seq), store)
            found = _run(service.request(packet, netns, rule))
        except KeyError:
            return [], "the row is no longer held"
        except WhatIfError as error:
            return [], str(error)
        if "error" in found:
            return [], clean(str(found["error"]), 300)
        if rule is not None:
            return [clean(str(text), 4096) for text in found["lines"]], ""
        after = [way.Line(clean(str(text), 4096), tuple(key)) for text, key in found["lines"]]
        lines = way.beside(before, after[:-1], ("as recorded", "as the rules are now"), width)
        return [*lines, "", *(clean(str(text), 4096) for text in found["notes"])], ""


def _run(request: str) -> dict[str, Any]:
    """Has another process answer, as root if possible.  Raises WhatIfError."""
    from ipttrace.whatif.errors import WhatIfError

    argv = python("ipttrace.whatif.service")
    if os.geteuid():
        argv = ["sudo", "-n", "--", *argv]  # the password was asked for before the screen opened
    try:
        done = subprocess.run(
            argv, input=request.encode(), capture_output=True, timeout=_PATIENCE, check=False
        )
        found = json.loads(done.stdout[:_MOST])
    except subprocess.TimeoutExpired:
        raise WhatIfError(f"no answer within {_PATIENCE:.0f} s") from None
    except (OSError, ValueError):
        if os.geteuid():
            raise WhatIfError("only root can read this host's rules: run with sudo") from None
        raise WhatIfError("the copy of the rules ended") from None
    return dict(found)
