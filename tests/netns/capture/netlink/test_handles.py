# SPDX-License-Identifier: GPL-2.0-only
"""The handle that a rule of nftables has in the detail is the one that nft takes."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.trace.story import RuleHit, story
from ipttrace.tui.detail.lines import KnownNames, lines
from tests.netns.netlink_lab import Stream
from tests.netns.ruleset_namespace import RulesetNamespace, ruleset_namespace

RULES = """
table inet t {
  chain c { type filter hook output priority 0; udp dport 7 drop; udp dport 9 counter; accept; }
}
"""


@pytest.fixture
def namespace() -> Iterator[RulesetNamespace]:
    with ruleset_namespace() as one:
        yield one


def test_the_handle_of_a_hit_rule_deletes_that_rule(
    namespace: RulesetNamespace, tmp_path: Path
) -> None:
    # GIVEN rules whose handles are not their numbers, with one that was inserted later
    namespace.nft(RULES)
    namespace.run("nft", "insert rule inet t c udp dport 1 drop")
    words = ["--netns", Path(namespace.path).name, "-", "udp"]
    stream = Stream(tmp_path, *words)

    def newest() -> list[RuleHit]:
        """The rules that the newest packet hit."""
        store = stream.trace.store
        found = story(store, store.end - 1) if store.end else None
        return [] if found is None else list(found.traversals[-1].steps)

    with stream.command as command:
        command.wait_ready()
        hits: list[RuleHit] = []
        while not hits or any(hit.rule is None for hit in hits):
            with namespace.enter(), socket.socket(type=socket.SOCK_DGRAM) as sock:
                sock.sendto(b"ping", ("127.0.0.1", 9))
            assert stream.read(), command.stderr()
            hits = newest()
        listed = namespace.run("nft", "-a", "list", "chain", "inet", "t", "c")
        handles = [
            int(one) for one in re.findall(r"(?:drop|accept|bytes \d+) # handle (\d+)", listed)
        ]
        assert len(handles) == 4
        assert [hit.handle for hit in hits] == [handles[2], handles[3]]
        assert [hit.rule for hit in hits] == ["udp dport 9 counter", "accept"]
        # AND the detail shows it as nft -a does
        found = story(stream.trace.store, stream.trace.store.end - 1)
        assert found is not None
        made = ["".join(text for text, _ in one.cells) for one in lines(found, 100, KnownNames())]
        assert any(f"udp dport 9 counter # handle {handles[2]}" in line for line in made)
        # WHEN the rule is deleted by it THEN it is that rule which is gone
        namespace.run("nft", f"delete rule inet t c handle {hits[0].handle}")
        left = namespace.run("nft", "list", "chain", "inet", "t", "c")
        assert "dport 9" not in left
        assert left.count("dport") == 2
        command.interrupt()
        while stream.read():
            pass
