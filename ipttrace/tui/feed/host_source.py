# SPDX-License-Identifier: GPL-2.0-only
"""The stream of an agent on another host, which can say why it broke off.

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
        """`broke`: called when the stream has ended; returns why it broke, None if unknown."""
        super().__init__(stream, control, name=name)
        self._broke = broke

    def chunks(self) -> Generator[bytes, None, None]:
        """See `Source`.  `Feed` ignores an error that follows an END frame."""
        yield from super().chunks()
        if not self._closed and (why := self._broke()) is not None:
            raise SourceError(why)
