# SPDX-License-Identifier: GPL-2.0-only
"""From a source's bytes to a trace: live agents, other hosts, recorded files.

- `source`: where the bytes come from: the `Source` protocol, agents and files
- `host_source`: the stream of an agent on another host
- `intake`: a thread that reads and decodes, and the queue between it and the screen
- `feed`: one source with its intake and its trace
- `feeds`: all feeds of a screen together: names, sums, state
"""

from __future__ import annotations

from ipttrace.tui.feed.feed import Feed
from ipttrace.tui.feed.source import FileSource, Source, StreamSource

__all__ = ["Feed", "FileSource", "Source", "StreamSource"]
