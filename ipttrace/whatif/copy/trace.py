# SPDX-License-Identifier: GPL-2.0-only
"""The stream of the copy's agent: what was traced between arming and disarming."""

from __future__ import annotations

import os
import time
from typing import Final

from ipttrace.ready import readable
from ipttrace.stream.decoder import Decoder
from ipttrace.stream.frames import StreamError
from ipttrace.trace.session import Trace
from ipttrace.whatif.errors import WhatIfError

_PATIENCE: Final = 60.0  # s
_CAPACITY: Final = 1 << 18  # rows


class Tracing:
    """The agent's stream and its control line."""

    def __init__(self, stream: int, control: int) -> None:
        """The descriptors, which it closes."""
        self.trace = Trace(capacity=_CAPACITY)
        self._stream, self._control = stream, control
        self._decoder = Decoder()
        self._armed = False
        self._begun = False

    def begin(self) -> None:
        """Returns once the agent has armed and has read the rules.  Raises WhatIfError."""
        # The agent answers commands only once it has read the rules.
        self._wait(lambda: bool(self.trace.hello))
        self._begun = self._armed = True

    def arm(self) -> None:
        """Arms, unless it is armed.  Raises WhatIfError."""
        if not self._armed:
            self._command("arm", "armed")
            self._armed = True

    def disarm(self) -> None:
        """Disarms; all that was traced before is in the trace then.  Raises WhatIfError."""
        if self._armed:
            self._command("disarm", "disarmed")
            self._armed = False

    def close(self) -> None:
        """Closes both descriptors."""
        os.close(self._stream)
        os.close(self._control)

    def _command(self, name: str, done: str) -> None:
        seen = self.trace.note_count
        os.write(self._control, b'{"cmd":"%s"}\n' % name.encode())
        self._wait(lambda: any(text.startswith(done) for _, text in self.trace.notes_after(seen)))
        failed = [text for level, text in self.trace.notes_after(seen) if level == "error"]
        if failed:
            raise WhatIfError(failed[0])

    def _wait(self, condition: object) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():  # type: ignore[operator]
            left = deadline - time.monotonic()
            if left <= 0 or not readable(self._stream, timeout=left):
                raise WhatIfError("the agent of the copy does not answer")
            data = os.read(self._stream, 1 << 20)
            if not data:
                raise WhatIfError("the agent of the copy ended")
            try:
                for frame in self._decoder.feed(data):
                    self.trace.feed(frame)
            except StreamError as error:
                raise WhatIfError(str(error)) from None
