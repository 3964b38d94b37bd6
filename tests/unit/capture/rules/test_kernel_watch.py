# SPDX-License-Identifier: GPL-2.0-only
"""Whatever happens during a read, the watch of rules never reports old rules as new ones."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipttrace.capture import iptables_save, netns, xtables
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.iptables_save import Chain, CommandMissing, Unreadable
from ipttrace.capture.kernel import module
from ipttrace.capture.kernel.control import Change, Control
from ipttrace.capture.rules import frames, kernel_changes, kernel_watch, pauses
from ipttrace.capture.xtables import Chains
from ipttrace.stream.frames import Kind
from ipttrace.trace.rules.rulesets import Rulesets

HOME = os.stat("/proc/self/ns/net").st_ino


@dataclass
class Host:
    """A kernel whose IPv4 filter table has one rule: the generation in which it was made."""

    generation: int = 1  # of the newest change of all
    here: int = 1  # of the newest change in this namespace
    under_way: bool = False  # a change in this namespace
    lost: bool = False
    kprobes_off: bool = False
    state: str = "armed"
    rules_seen: bool = True
    pending: list[Change] = field(default_factory=list)
    # Called, one at each read, while the rules are being read.
    meanwhile: list[Callable[[], None]] = field(default_factory=list)
    beside: list[Callable[[], None]] = field(default_factory=list)  # of their entries, likewise
    reads: int = 0
    tables: tuple[str, ...] = ("filter",)
    text: str = "in 1"

    def __post_init__(self) -> None:
        self._readable, self._writable = os.pipe()
        self.truth = {1: self.text}

    def lose(self) -> None:
        """What is to be reported finds no room."""
        self.pending.clear()
        self.lost = True
        os.write(self._writable, b"x")

    def change(self, table: str = "filter", netns: int = HOME) -> None:
        """Replaces the rules."""
        self.generation += 1
        if netns in (HOME, 0):
            self.here = self.generation
        if table == "filter" and netns in (HOME, 0):
            self.text = f"in {self.generation}"
        self.truth[self.generation] = self.text
        family = 4 if netns else 0
        self.pending.append(Change(self.generation, self.generation, netns, family, table))
        os.write(self._writable, b"x")

    # -- Control and Changes

    def changes(self) -> Host:
        return self

    def fileno(self) -> int:
        return self._readable

    def take(self) -> list[Change]:
        if self.pending:
            os.read(self._readable, 1000)
        found, self.pending = self.pending, []
        return [*found, Change(0, self.generation)] if found else []

    def status(self, netns: int | None = None) -> Any:
        ruleset = self.generation
        if netns is not None:
            ruleset = 0 if self.under_way else self.here
        if not self.rules_seen or self.state != "armed":
            ruleset = 0
        return SimpleNamespace(ruleset=ruleset, state=self.state, kprobes_off=self.kprobes_off)

    def newest_generation(self) -> int | None:
        return Control.newest_generation(cast(Control, self))

    def close(self) -> None:
        pass

    # -- iptables_save

    def names(self, family: int) -> list[str]:
        return list(self.tables) if family == 4 else []

    def read(self, family: int) -> dict[str, dict[str, Chain]]:
        self.reads += 1
        found = {
            name: {"INPUT": Chain("ACCEPT", (5, 50), [self.text], [(1, 10)])}
            for name in self.tables
        }
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return found

    # -- xtables

    def entries(self, family: int, names: list[str]) -> dict[str, Chains]:
        rules = {"INPUT": xtables.Chain("ACCEPT", (hash(self.text),))}
        if self.beside:
            self.beside.pop(0)()
        return {name: rules for name in names if family == 4}


class Reader:
    """A reader of the stream."""

    def __init__(self, watch: kernel_watch.KernelRuleWatch) -> None:
        self.watch = watch
        self.rulesets = Rulesets()
        self.seen: list[tuple[Kind, dict[str, Any]]] = []

    def look(self, host: Host) -> None:
        """Looks once; no text is wrong at any moment."""
        for kind, frame in self.watch.look():
            value = json.loads(json.dumps(frame))  # as in the stream
            self.seen.append((kind, value))
            if kind == Kind.RULES:
                self.rulesets.feed(value)
                for generation in range(host.generation + 2):
                    assert self.text(generation) in (None, host.truth.get(generation))
            elif kind == Kind.COUNTERS:
                self.rulesets.feed_counters(value)

    def text(self, generation: int) -> str | None:
        return self.rulesets.text(HOME, 4, "filter", "INPUT", 1, generation)

    def notes(self) -> list[str]:
        return [value["text"] for kind, value in self.seen if kind == Kind.NOTE]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host()
    monkeypatch.setattr(module, "loaded", lambda: True)
    monkeypatch.setattr(kernel_changes, "Control", lambda: host)
    monkeypatch.setattr(netns, "paths", lambda only: {HOME: "/proc/self/ns/net"})
    monkeypatch.setattr(kernel_changes, "_MESSAGE_TAKES", 0.05)
    monkeypatch.setattr(kernel_changes, "_CHANGE_TAKES", 0.05)
    monkeypatch.setattr(pauses, "FIRST", 0.0)
    # No rests: what is due is done at the next look.
    monkeypatch.setattr(kernel_watch, "_READ_SHARE", 0)
    monkeypatch.setattr(kernel_watch, "_COUNT_SHARE", 0)
    monkeypatch.setattr(kernel_watch, "_COUNT_EVERY", 0.0)
    monkeypatch.setattr(iptables_save, "names", host.names)
    monkeypatch.setattr(iptables_save, "read", host.read)
    monkeypatch.setattr(kernel_watch, "_entries", host.entries)
    return host


@pytest.fixture
def reader(host: Host) -> Iterator[Reader]:
    rules = kernel_watch.KernelRules()
    watch = rules.make()
    yield Reader(watch)
    assert rules.first.is_set()
    watch.close()
    rules.end()


def test_the_first_look_reads_all_rules(host: Host, reader: Reader) -> None:
    reader.look(host)
    assert reader.text(1) == "in 1"
    assert reader.text(2) is None
    counted = reader.rulesets.counters(HOME, 4, "filter")
    assert counted is not None
    assert counted[0].chains["INPUT"].policy == (5, 50)


def test_rules_that_come_again_have_their_texts_without_being_printed(
    host: Host, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.look(host)

    # WHEN rules that were printed before are loaded, while printing always fails
    def fails(family: int) -> object:
        raise iptables_save.Unreadable("they have changed meanwhile")

    monkeypatch.setattr(iptables_save, "read", fails)
    host.change()
    host.text = host.truth[2] = "in 1"
    reader.look(host)
    assert [reader.text(generation) for generation in (1, 2)] == ["in 1", "in 1"]
    # THEN other ones have no text, nor have those that change while their entries are read
    host.change()
    reader.look(host)
    host.change()
    host.text = host.truth[4] = "in 1"
    host.beside.append(host.change)
    reader.look(host)
    assert [reader.text(generation) for generation in (3, 4, 5)] == [None, None, None]


def test_a_change_is_reported_before_the_new_rules(host: Host, reader: Reader) -> None:
    reader.look(host)
    # WHEN rules change twice before a look
    host.change()
    host.change()
    reader.look(host)
    # THEN the rules between the changes are unknown
    assert [reader.text(generation) for generation in (1, 2, 3)] == ["in 1", None, "in 3"]


def test_rules_read_during_a_change_count_for_neither_generation(
    host: Host, reader: Reader
) -> None:
    reader.look(host)
    # GIVEN a change, and another while the new rules are read
    host.change()
    host.meanwhile.append(host.change)
    reader.look(host)
    assert [reader.text(generation) for generation in (1, 2, 3)] == ["in 1", None, None]
    # WHEN they are read again
    reader.look(host)
    assert [reader.text(generation) for generation in (1, 2, 3)] == ["in 1", None, "in 3"]


def test_rules_that_change_right_after_they_were_read_do_not_count_for_the_new_generation(
    host: Host, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.look(host)
    host.change()
    ask, reads = host.status, host.reads

    def status(netns: int | None = None) -> Any:
        found = ask(netns)
        # WHEN they change after the look that finds them settled, and it is reported at once
        if netns is not None and host.reads == reads + 1 and host.generation == 2:
            host.change()
        return found

    monkeypatch.setattr(host, "status", status)
    # THEN no text is wrong (see look), and in the end the new ones are known
    while reader.text(3) is None:
        reader.look(host)
    assert reader.text(3) == "in 3"


def test_a_change_of_another_table_during_a_read_does_no_harm(host: Host, reader: Reader) -> None:
    reader.look(host)
    host.change()
    host.meanwhile.append(lambda: host.change("nat"))
    reader.look(host)
    # THEN the filter table still has the rules of generation 2
    assert reader.text(3) == "in 2"


def test_after_lost_reports_changed_rules_are_unknown_until_read_again(
    host: Host, reader: Reader
) -> None:
    reader.look(host)
    # GIVEN two changes, of which the first is not reported for lack of room
    host.change()
    host.lose()
    host.change()
    reader.look(host)
    assert [reader.text(generation) for generation in (1, 2)] == ["in 1", None]
    assert reader.text(3) == "in 3"
    # WHEN one is lost of which no later one tells
    host.change()
    host.lose()
    reader.look(host)
    assert reader.text(4) in (None, "in 4")
    reader.look(host)
    assert [reader.text(generation) for generation in (3, 4)] == ["in 3", "in 4"]


def test_lost_reports_of_others_leave_a_namespace_its_texts(host: Host, reader: Reader) -> None:
    reader.look(host)
    # GIVEN that another namespace changes so often that there is no room for the reports
    for _ in range(5):
        host.change(netns=7)
    host.lose()
    reads = host.reads
    reader.look(host)
    # THEN the rules here are known to be the same, without being read again for it
    assert reader.text(1) == "in 1"
    assert [one.current for one in reader.rulesets.tables(HOME)] == [True]
    assert host.reads <= reads + 1  # counters


def test_who_always_changes_rules_is_read_last_and_keeps_nobody_waiting(
    host: Host, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader.look(host)
    # GIVEN a namespace in which a change is under way whenever it is looked at
    host.under_way = True
    reads = host.reads
    monkeypatch.setattr(pauses, "FIRST", 3600.0)
    for _ in range(3):
        host.change()
        reader.look(host)
    # THEN that is no error, and it is left alone for longer and longer
    assert host.reads == reads
    assert reader.watch._next_due() is None
    assert reader.text(host.generation) is None
    # AND it is read once it comes to rest
    host.under_way = False
    reader.watch._pauses.forget((HOME, 4))
    reader.look(host)
    assert reader.text(host.generation) == host.text


def test_rules_read_while_messages_were_lost_are_not_used(host: Host, reader: Reader) -> None:
    reader.look(host)

    def silently() -> None:
        host.change()
        host.lose()

    host.change()
    host.meanwhile.append(silently)
    reader.look(host)
    assert [reader.text(generation) for generation in (1, 2, 3)] == ["in 1", None, None]
    reader.look(host)
    assert reader.text(3) == "in 3"


def test_a_change_in_an_unknown_namespace_counts_for_all(host: Host, reader: Reader) -> None:
    reader.look(host)
    host.change(netns=0)
    reader.look(host)
    assert [reader.text(generation) for generation in (1, 2)] == ["in 1", "in 2"]


def test_a_namespace_that_cannot_be_found_is_noted_once(host: Host, reader: Reader) -> None:
    reader.look(host)
    for _ in range(3):
        host.change(netns=7)
        reader.look(host)
    assert len(reader.notes()) == 1
    assert "network namespace 7" in reader.notes()[0]
    # AND the others keep their texts
    assert reader.text(4) == "in 1"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CommandMissing("iptables-legacy-save is missing (apt install iptables)"), "is missing"),
        (CaptureError("iptables-legacy-save fails: no"), "fails: no"),
        (Unreadable("table filter has 7 entries"), "7 entries"),
        (PermissionError(1, "Operation not permitted"), "not permitted"),
    ],
)
def test_rules_that_cannot_be_read_are_noted_once_and_have_no_text(
    host: Host, reader: Reader, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def read(family: int) -> None:
        raise error

    monkeypatch.setattr(iptables_save, "read", read)
    reader.look(host)
    host.change()
    reader.look(host)
    assert len(reader.notes()) == 1
    assert expected in reader.notes()[0]
    assert reader.text(2) is None


def test_without_probes_for_changes_the_watch_fails_instead_of_guessing(
    host: Host, reader: Reader
) -> None:
    host.generation, host.rules_seen = 0, False
    with pytest.raises(CaptureError, match=r"rows have no rule texts$"):
        reader.look(host)
    assert reader.watch.interval > 1  # no busy loop
    assert reader.seen == []


def test_while_kprobes_are_switched_off_rules_are_unknown(host: Host, reader: Reader) -> None:
    reader.look(host)
    host.change()
    host.rules_seen, host.kprobes_off = False, True
    with pytest.raises(CaptureError, match=r"kprobes are switched off: echo 1 > /sys"):
        reader.look(host)
    assert reader.text(2) is None


def test_more_rules_than_fit_into_a_frame_are_noted(
    host: Host, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.text = host.truth[1] = "x" * 200
    with monkeypatch.context() as small:
        small.setattr(frames, "MOST", 100)
        reader.look(host)
    assert reader.text(1) is None
    assert len(reader.notes()) == 1
    assert "no rule texts" in reader.notes()[0]
    # WHEN there are fewer
    host.change()
    reader.look(host)
    assert reader.text(2) == "in 2"


def test_constant_counters_are_sent_twice_only(host: Host, reader: Reader) -> None:
    for _ in range(6):
        reader.look(host)
    assert sum(kind == Kind.COUNTERS for kind, _ in reader.seen) == 2


def test_tables_and_namespaces_that_disappear_are_reported(
    host: Host, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.tables = ("filter", "nat")
    reader.look(host)
    assert len(reader.rulesets.tables(HOME)) == 2
    host.tables = ("filter",)
    reader.look(host)
    assert [one.table for one in reader.rulesets.tables(HOME)] == ["filter"]
    monkeypatch.setattr(netns, "paths", lambda only: {})
    host.change(netns=7)
    reader.look(host)
    assert reader.rulesets.tables(HOME) == []
    assert reader.text(1) == "in 1"


def test_a_watch_that_fails_to_start_does_not_keep_the_agent_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "loaded", lambda: False)
    rules = kernel_watch.KernelRules()
    with pytest.raises(CaptureError):
        rules.make()
    assert isinstance(rules.first, threading.Event)
    assert rules.first.is_set()
