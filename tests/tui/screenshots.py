# SPDX-License-Identifier: GPL-2.0-only
"""`make screenshots`: pictures of the screen, from a recorded lab run.

SVG as Textual draws it, PNG as rsvg-convert does.  ``--record`` makes the
recording anew, in the lab VM.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
RECORDING = PROJECT / "tests" / "data" / "lab.iptr"
FOLDER = PROJECT / "screenshots"
SIZES = ((80, 24), (150, 40), (200, 50))


async def _picture(width: int, height: int) -> Path:
    from ipttrace.tui.app import TraceApp
    from ipttrace.tui.source import FileSource

    app = TraceApp(FileSource(RECORDING), title="lab VM")
    async with app.run_test(size=(width, height)) as pilot:
        while app.trace.ended is None:
            await pilot.pause(0.05)
        # A dropped packet in the middle of the picture tells more than the tail.
        store = app.trace.store
        rows = store.rows(range(store.first, store.end))
        drop = next(row.index for row in rows if row.verdict == "DROP" and row.index > height)
        await pilot.press("home", *["down"] * (drop + height // 3))
        await pilot.pause(0.5)
        svg = FOLDER / f"screen-{width}x{height}.svg"
        drawn = app.export_screenshot(title="ipttrace")
        # Else spaces at the ends of a text are dropped by some who draw it.
        svg.write_text(drawn.replace("<svg ", '<svg xml:space="preserve" ', 1))
    return svg


def main(arguments: list[str]) -> int:
    """Makes all pictures; returns the exit status."""
    FOLDER.mkdir(exist_ok=True)
    if "--record" in arguments or not RECORDING.exists():
        argv = [sys.executable, "-m", "ipttrace", "lab", "--duration", "3"]
        subprocess.run([*argv, "--record", str(RECORDING)], check=True)
    for width, height in SIZES:
        svg = asyncio.run(_picture(width, height))
        png = svg.with_suffix(".png")
        subprocess.run(["rsvg-convert", "-o", png, svg], check=True)
        print(f"{png.relative_to(PROJECT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
