# SPDX-License-Identifier: GPL-2.0-only
"""While rules are replaced all the time, every packet is still traced, or counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest

from ipttrace.capture.netlink.engine import NetlinkEngine, Options
from ipttrace.capture.netlink.legacy import decode as nflog
from ipttrace.stream.record import ENTRY
from tests.netns.loopback import LEGACY, ROWS, RULES, LoopbackNamespace, until

PACKETS = 4_000
RATE = 2_000
# Enough rules that a listing of all of them is often overtaken by the next replacement.
REPLACED = "\n".join(
    [
        "*filter",
        ":INPUT ACCEPT [0:0]",
        ":OFTEN - [0:0]",
        *(f"-A OFTEN -p udp --dport {port} -j RETURN" for port in range(100, 250)),
        "COMMIT",
        "",
    ]
)
BRIDGE = "table bridge b {\n chain c { type filter hook prerouting priority 0; }\n}\n"


@contextmanager
def replacing(namespace: LoopbackNamespace, *commands: tuple[str, ...]) -> Iterator[None]:
    """Runs the commands, each with its input last, in a loop."""
    ended = threading.Event()
    done = 0

    def loop() -> None:
        nonlocal done
        while not ended.is_set():
            for *argv, text in commands:
                namespace.run(*argv, text=text)
            done += 1

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        until(lambda: done > 0, "a replacement")
        yield
    finally:
        ended.set()
        thread.join()
    assert done > 5


def traced(
    namespace: LoopbackNamespace, engine: NetlinkEngine, packets: int = PACKETS
) -> Counter[int]:
    """Sends datagrams to port 9; returns the rows of each source port."""
    ports: Counter[int] = Counter()

    def take() -> None:
        entries = engine.take()[ENTRY]
        udp = entries[entries["packet"][:, 9] == 17]
        ports.update(udp["packet"][:, 20].astype(int) << 8 | udp["packet"][:, 21])

    sender = threading.Thread(target=namespace.send, args=(packets, RATE))
    sender.start()
    while sender.is_alive():
        engine.buffers.wait(0.05)
        take()
    engine.disarm()
    take()
    return ports


@pytest.mark.parametrize("situation", ["bridge table", "group 0 taken", "no legacy tables"])
def test_packets_are_traced_while_iptables_nft_restore_runs_in_a_loop(
    namespace: LoopbackNamespace, situation: str
) -> None:
    namespace.run("iptables-nft-restore", "-n", text=REPLACED)
    with ExitStack() as stack:
        # GIVEN a namespace in which the families to flip are not only those of legacy tables
        if situation == "bridge table":
            namespace.run("nft", "-f", "-", text=BRIDGE)
        elif situation == "group 0 taken":
            namespace.run("iptables-legacy-restore", text=LEGACY)
            with namespace.inside():
                other = stack.enter_context(closing(nflog.new_mailbox(1 << 20)))
                nflog.bind(other)
        legacy = situation != "no legacy tables"
        engine = stack.enter_context(
            closing(NetlinkEngine(Options(netns=namespace.name, legacy=legacy)))
        )
        counted = namespace.counted()
        # WHEN rules are replaced in a loop while packets are sent
        with replacing(namespace, ("iptables-nft-restore", "-n", REPLACED)):
            ports = traced(namespace, engine)
        counted = namespace.counted() - counted
        books = engine.books()
    # THEN each packet that the rule counted was traced, is lost or was missed
    assert counted == PACKETS
    rows = ports.most_common(1)[0][1]
    assert (books["missed"], sum(books["lost"])) == (0, 0)
    # Besides the rows of table t: one of iptables-nft's INPUT.
    assert rows == (ROWS + 1) * PACKETS


def test_packets_are_traced_when_all_rules_are_flushed_and_loaded_again(
    namespace: LoopbackNamespace,
) -> None:
    # GIVEN a trace of a namespace where only nftables needs the flip table
    with closing(NetlinkEngine(Options(netns=namespace.name, legacy=False))) as engine:
        # WHEN all rules are removed, the engine notices, and they are loaded again
        namespace.run("nft", "delete", "table", "ip", "t")
        taken_after(engine, namespace)
        assert namespace.tables() != []
        namespace.run("nft", "-f", "-", text=RULES)
        # THEN the first packet is traced
        ports = traced(namespace, engine, 1)
        assert ports.total() == ROWS


def test_without_rules_for_long_packets_are_no_longer_flipped(
    namespace: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipttrace.capture.netlink.namespace._KEEP", 0.0)
    monkeypatch.setattr("ipttrace.capture.netlink.engine._SCAN_EVERY", 0.0)
    with closing(NetlinkEngine(Options(netns=namespace.name, legacy=False))) as engine:
        namespace.run("nft", "delete", "table", "ip", "t")
        until(lambda: not engine.take()[ENTRY].size and namespace.tables() == [], "the removal")
        # AND they are flipped again once there are rules
        namespace.run("nft", "-f", "-", text=RULES)
        until(lambda: not engine.take()[ENTRY].size and len(namespace.tables()) == 2, "the table")
        assert traced(namespace, engine, 23).total() == ROWS * 23


def test_a_flip_table_that_another_program_deleted_is_made_again(
    namespace: LoopbackNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a kernel without owned tables
    monkeypatch.setattr("ipttrace.capture.netlink.nft.table._OWNER", 0x8000)
    with closing(NetlinkEngine(Options(netns=namespace.name))) as engine:
        assert len(namespace.tables()) == 2
        # WHEN another program flushes all rules and loads its own
        namespace.run("nft", "-f", "-", text=f"flush ruleset\n{RULES}")
        until(lambda: not engine.take()[ENTRY].size and len(namespace.tables()) == 2, "the table")
        # THEN packets are traced, and a note says what happened
        assert traced(namespace, engine, 23).total() == ROWS * 23
    assert [text for _, text in engine.notes if "deleted the nft table" in text]


def taken_after(engine: NetlinkEngine, namespace: LoopbackNamespace) -> None:
    """Takes until the engine has read all that the kernel announced."""
    namespace.wait_read()
    engine.take()
    engine.take()
