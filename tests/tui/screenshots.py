# SPDX-License-Identifier: GPL-2.0-only
"""`make screenshots`: pictures of the screen, from a recorded lab run.

SVG as Textual draws it, PNG as rsvg-convert does.  ``--record`` makes the
recording anew, in the lab VM.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.paths import PROJECT

if TYPE_CHECKING:
    from ipttrace.tui.app import TraceApp

RECORDING = PROJECT / "tests" / "data" / "screens.iptr"
FOLDER = PROJECT / "screenshots"

# Name, width, height, and the keys pressed on a row that was dropped.
SOCKETS = PROJECT / "tests" / "data" / "sockets.iptr"  # by tests.vm.sockets.recorded
PICTURES = (
    ("screen-80x24", 80, 24, ()),
    ("screen-150x40", 150, 40, ()),
    ("screen-200x50", 200, 50, ("enter",)),
    ("detail-100x40", 100, 40, ("enter",)),
    ("flow-100x24", 100, 24, ("f",)),
    ("rules-130x40", 130, 40, ("2",)),
    ("flows-130x30", 130, 30, ("3",)),
    ("totals-110x36", 110, 36, ("4",)),
    ("neighbours-110x36", 110, 36, ("5",)),
)


# The pictures are the same whatever terminal they are made in.
_TERMINAL = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8", "TZ": "UTC"}


async def _sockets() -> Path:
    """The picture of the sockets view."""
    from ipttrace.tui.app import TraceApp
    from ipttrace.tui.feed.source import FileSource

    app = TraceApp(FileSource(SOCKETS), title="lab VM")
    async with app.run_test(size=(120, 40)) as pilot:
        while not app.over or not len(app.counting.sockets):
            await pilot.pause(0.05)
        await pilot.press("7")
        await pilot.pause(1)
        return _written(app, "sockets-120x40")


async def _picture(name: str, width: int, height: int, keys: tuple[str, ...]) -> Path:
    from ipttrace.tui.app import TraceApp
    from ipttrace.tui.feed.source import FileSource

    app = TraceApp(FileSource(RECORDING), title="lab VM")
    async with app.run_test(size=(width, height)) as pilot:
        while not app.over or app.counting.behind():
            await pilot.pause(0.05)
        # A dropped packet in the middle of the picture is more instructive than the tail.
        store = app.store
        rows = store.rows(range(store.first, store.end))
        router = next(
            inode for (_, inode), name in app.feeds.netns_names().items() if "router" in name
        )
        drop = next(
            row.index
            for row in rows
            if row.verdict == "DROP" and row.netns == router and row.index > 400
        )
        app.rows.move_to(drop - height // 4)
        app.rows.move_to(drop)
        app.rules.choose(0, router)
        await pilot.press(*keys)
        for _ in range(4):  # views look a few times a second
            await pilot.pause(0.25)
        return _written(app, name)


def _written(app: TraceApp, name: str) -> Path:
    """Writes the screen as it is now, and ends it."""
    svg = FOLDER / f"{name}.svg"
    drawn = app.export_screenshot(title="ipttrace")
    # Otherwise some renderers drop spaces at the ends of a text.
    svg.write_text(drawn.replace("<svg ", '<svg xml:space="preserve" ', 1))
    app.exit_now()
    return svg


def main(arguments: list[str]) -> int:
    """Makes all pictures.  Returns the exit status."""
    FOLDER.mkdir(exist_ok=True)
    os.environ.update(_TERMINAL)
    os.environ.pop("NO_COLOR", None)
    time.tzset()
    if "--record" in arguments or not RECORDING.exists():
        argv = [sys.executable, "-m", "ipttrace", "lab", "--duration", "4"]
        subprocess.run([*argv, "--record", str(RECORDING)], check=True)
    for made in (*(_picture(*picture) for picture in PICTURES), _sockets()):
        svg = asyncio.run(made)
        png = svg.with_suffix(".png")
        subprocess.run(["rsvg-convert", "-o", png, svg], check=True)
        print(f"{png.relative_to(PROJECT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
