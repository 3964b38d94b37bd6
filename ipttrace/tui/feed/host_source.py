# SPDX-License-Identifier: GPL-2.0-only
"""The stream of an agent on another host: a stream that knows why it broke off.

Must not decode anything, touch a widget or start a process.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import BinaryIO

from ipttrace.tui.feed.source import SourceError, StreamSource


class HostSource(StreamSource):
    """See `StreamSource`."""

    def __init__(
        self,
        stream: BinaryIO,
        control: BinaryIO,
        *,
        name: str,
        broke: Callable[[], str | None],
    ) -> None:
        """`broke` says, once the stream has ended, why; None: nobody knows."""
        super().__init__(stream, control, name=name)
        self._broke = broke

    def chunks(self) -> Generator[bytes, None, None]:
        """See `Source`.  A stream that ended in order is its reader's to tell."""
        yield from super().chunks()
        if not self._closed and (why := self._broke()) is not None:
            raise SourceError(why)
