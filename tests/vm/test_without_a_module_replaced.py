# SPDX-License-Identifier: GPL-2.0-only
"""The BPF engine gives no wrong number and no wrong text while rules are replaced in a flood.

Behind the other files by name: see test_without_a_module.py.
"""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

from ipttrace.lab.network.ns import run_in
from ipttrace.trace.store import Store
from tests.vm.conftest import SHARED
from tests.vm.forked import flooding
from tests.vm.live import live
from tests.vm.plain import Plain

pytestmark = SHARED

REPLACEMENTS = 23
EVERY = 0.2  # s
SLACK = 20_000_000  # ns, between the clocks of rows and of this process
COMMENT = re.compile(r'comment "(\d+) of (\d+)"')


def ruleset(version: int) -> str:
    """The rule for port 9 is behind `version` modulo 7 others, and says so."""
    before = version % 7
    others = "\n".join(f"udp dport {port}" for port in range(100, 100 + before))
    return f"""table inet often
delete table inet often
table inet often {{
    chain out {{
        type filter hook output priority 10; policy accept;
        {others}
        udp dport 9 counter accept comment "{before + 1} of {version}"
    }}
}}
"""


def numbers(replaced: dict[int, tuple[int, int]], time: int) -> set[int]:
    """Of the rule for port 9, by all versions that can have been there."""
    ends = {version - 1: end for version, (_, end) in replaced.items()}
    return {
        version % 7 + 1
        for version, (begin, _) in replaced.items()
        if begin - SLACK <= time <= ends.get(version, time) + SLACK
    }


def newest(store: Store) -> range:
    return range(max(store.first, store.end - 10), store.end)


def test_rows_have_the_number_and_the_text_of_their_ruleset_or_none(tmp_path: Path) -> None:
    with Plain() as plain:
        # GIVEN a flood that meets a rule
        run_in(plain.name, ["nft", "-f", "-"], text=ruleset(0))
        one = live(plain, tmp_path / "ready", engine="bpf", buffer=64 << 20)
        # version → ns since the epoch, before it was there and when it was
        replaced: dict[int, tuple[int, int]] = {0: (0, 0)}
        ended = threading.Event()

        def replace() -> None:
            for version in range(1, REPLACEMENTS + 1):
                ended.wait(EVERY)
                begin = time.time_ns()
                run_in(plain.name, ["nft", "-f", "-"], text=ruleset(version))
                replaced[version] = begin, time.time_ns()

        # WHEN rules are replaced five times a second
        with flooding(plain.name):
            thread = threading.Thread(target=replace)
            thread.start()
            while thread.is_alive():
                one.agent.read(0.05)
                one.feed()
            thread.join()
            store, last = one.trace.store, f" of {REPLACEMENTS}"
            one.wait(
                lambda: last in "".join(row.rule or "" for row in store.rows(newest(store))),
                "a row with the text of the last rules",
            )
        rows = [row for row in one.finish() if row.table == "often" and row.match == "rule"]
    # THEN each row has the number of a rule that was there, or none; its text says the same
    texts = set()
    for row in rows:
        assert row.rulenum in {None, *numbers(replaced, row.time)}, row
        if row.rule:
            found = COMMENT.search(row.rule)
            assert found, row
            assert row.rulenum == int(found[1]), row
            texts.add(int(found[2]))
    # AND a text, if there was time to read it: before the first replacement, and after the last
    assert texts >= {0, REPLACEMENTS}
