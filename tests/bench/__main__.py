# SPDX-License-Identifier: GPL-2.0-only
"""`make bench`: runs all benchmarks; a table on stdout, the figures in build/bench.json."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.paths import PROJECT

PARTS = ("trace", "query", "tally", "netlink", "whatif", "tui", "vm")
RESULT = PROJECT / "build" / "bench.json"

_RUN = "import json, tests.bench.bench_{0} as part; print('\\n' + json.dumps(part.run()))"


def main(parts: list[str]) -> int:
    """Runs each part in a process of its own, so that none affects the next."""
    figures: dict[str, dict[str, object]] = {}
    failed = 0
    for part in parts or PARTS:
        print(f"running: {part}", file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, "-c", _RUN.format(part)], stdout=subprocess.PIPE)
        if done.returncode:
            failed = 1
            continue
        figures.update(json.loads(done.stdout.splitlines()[-1]))
    width = max(map(len, figures), default=0)
    for name, figure in figures.items():
        goal = f"goal {figure['goal']}" if figure["goal"] not in ("", None) else ""
        print(f"{name:{width}}  {figure['value']!s:>12} {figure['unit']!s:12} {goal}".rstrip())
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(figures, indent=1) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
