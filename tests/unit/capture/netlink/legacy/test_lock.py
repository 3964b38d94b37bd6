# SPDX-License-Identifier: GPL-2.0-only
"""How often iptables' lock was taken is counted exactly, or known to be unknown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ipttrace.capture.netlink.legacy.lock import LockWatch, Moment


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / "xtables.lock").touch()
    return tmp_path / "xtables.lock"


@pytest.fixture
def watch(lock: Path) -> Iterator[LockWatch]:
    with closing(LockWatch(lock)) as one:
        yield one


def most_replacements(since: Moment, now: Moment) -> int | None:
    """At most so many tables were replaced from `since` to `now`; None if it is unknown."""
    return since.open + now.opened - since.opened if now.doubts == since.doubts else None


def take(lock: Path) -> None:
    os.close(os.open(lock, os.O_RDONLY | os.O_CREAT, 0o600))


def test_each_command_counts_one_after_the_other(lock: Path, watch: LockWatch) -> None:
    before = watch.now()
    for _ in range(7):
        take(lock)
    assert most_replacements(before, watch.now()) == 7


def test_commands_that_wait_for_the_lock_together_count_each(lock: Path, watch: LockWatch) -> None:
    before = watch.now()
    # The kernel merges equal events that follow one another, such as these opens and closes.
    waiting = [os.open(lock, os.O_RDONLY) for _ in range(5)]
    for one in waiting:
        os.close(one)
    after = watch.now()
    assert most_replacements(before, after) == 5
    assert after.open == 0


def test_a_command_that_has_the_lock_may_replace_a_table_later(
    lock: Path, watch: LockWatch
) -> None:
    held = os.open(lock, os.O_RDONLY)
    before = watch.now()
    assert most_replacements(before, watch.now()) == 1
    os.close(held)
    assert most_replacements(before, watch.now()) == 1
    assert most_replacements(watch.now(), watch.now()) == 0


def test_other_files_of_the_directory_do_not_count(lock: Path, watch: LockWatch) -> None:
    before = watch.now()
    take(lock.with_name("other"))
    os.listdir(lock.parent)
    assert most_replacements(before, watch.now()) == 0


def test_a_lock_that_was_open_before_the_watch_makes_the_number_unknown(lock: Path) -> None:
    held = os.open(lock, os.O_RDONLY)
    with closing(LockWatch(lock)) as watch:
        before = watch.now()
        os.close(held)
        assert most_replacements(before, watch.now()) is None


def test_a_lock_that_is_removed_and_made_again_is_followed(lock: Path, watch: LockWatch) -> None:
    before = watch.now()
    lock.unlink()
    take(lock)
    assert most_replacements(before, watch.now()) is None
    take(lock)
    assert most_replacements(before, watch.now()) is None
    before = watch.now()
    take(lock)
    assert most_replacements(before, watch.now()) == 1


def test_a_lock_that_appears_may_have_been_used(tmp_path: Path) -> None:
    path = tmp_path / "xtables.lock"
    with closing(LockWatch(path)) as watch:
        before = watch.now()
        assert most_replacements(before, watch.now()) == 0
        take(path)
        assert most_replacements(before, watch.now()) is None


def test_so_many_events_that_the_kernel_drops_some_make_the_number_unknown(
    lock: Path, watch: LockWatch
) -> None:
    before = watch.now()
    queued = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(queued // 4 + 2):
        take(lock)
    assert most_replacements(before, watch.now()) is None


def test_without_inotify_the_number_is_unknown(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipttrace.capture.netlink.legacy.lock._libc.inotify_init1", lambda _: -1)
    with closing(LockWatch(lock)) as watch:
        assert most_replacements(watch.now(), watch.now()) is None
