# SPDX-License-Identifier: GPL-2.0-only
"""Selected rows to a file: the complete file or none, whatever happens."""

from __future__ import annotations

import csv
import errno
import os
import re
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.session import Trace
from ipttrace.trace.store import Store
from ipttrace.view import export
from ipttrace.view.export import Export, ExportError, ExportExists, format_of, suggested
from ipttrace.view.formats import FORMATS, output
from tests.data import synth
from tests.data.traces import feed_records


def feed(trace: Trace, records: synth.Records) -> None:
    feed_records(trace, records.entries, records.rules, records.exits)
    trace.finish()


def filled(capacity: int = 100_000, calls: int = 2500) -> Trace:
    trace = Trace(capacity)
    feed(trace, synth.make(calls))
    return trace


@pytest.fixture(scope="module")
def store() -> Store:
    return filled().store


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_STEP", 23)


def everything(store: Store) -> Array:
    return np.arange(store.first, store.end)


def nothing_else(folder: Path, *names: str) -> bool:
    return sorted(os.listdir(folder)) == sorted(names)


@pytest.mark.parametrize("format", FORMATS)
def test_the_file_has_what_the_view_writes(store: Store, tmp_path: Path, format: str) -> None:
    # GIVEN a selection in several arrays, WHEN it is exported
    seqs = everything(store)
    done = Export(store, iter([seqs[3:10], seqs[100:]]), format, tmp_path / "x")
    assert done.run()
    # THEN the file has the same bytes as without steps, and no other file is left
    whole = output(format)
    data = whole.begin({})
    for some in (seqs[3:10], seqs[100:]):
        data += whole.rows(store, some)[0]
    data += whole.end()
    if format != "text":  # its columns widen with the rows
        assert (tmp_path / "x").read_bytes() == data
    assert done.size == (tmp_path / "x").stat().st_size
    assert (done.written, done.gone, done.total) == (len(seqs) - 93, 0, len(seqs) - 93)
    assert nothing_else(tmp_path, "x")


def test_progress_is_reported_per_step_and_the_file_exists_at_the_last(
    store: Store, tmp_path: Path
) -> None:
    seen = []
    Export(store, everything(store)[:50], "csv", tmp_path / "x.csv").run(
        lambda done, total: seen.append((done, total, (tmp_path / "x.csv").exists()))
    )
    assert seen == [(23, 50, False), (46, 50, False), (50, 50, True)]


def test_an_empty_selection_gives_a_file_with_a_header(store: Store, tmp_path: Path) -> None:
    seen = []
    nothing = np.zeros(0, np.int64)
    Export(store, nothing, "csv", tmp_path / "x.csv").run(lambda *step: seen.append(step))
    assert seen == [(0, 0)]
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 1


def test_cancelling_leaves_no_file(store: Store, tmp_path: Path) -> None:
    # GIVEN a running export, WHEN it is cancelled after the second step
    done = Export(store, everything(store), "csv", tmp_path / "x.csv")
    assert not done.run(cancelled=lambda: done.done > 23)
    # THEN it stops there, and no file is left
    assert done.done == 46
    assert nothing_else(tmp_path)


def test_closing_the_steps_leaves_no_file(store: Store, tmp_path: Path) -> None:
    steps = Export(store, everything(store), "jsonl", tmp_path / "x").steps()
    next(steps)
    assert not nothing_else(tmp_path)
    steps.close()
    assert nothing_else(tmp_path)


def test_an_existing_file_is_kept_without_overwrite(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("mine")
    path.chmod(0o600)
    # GIVEN a file of that name WHEN rows are exported THEN the export fails
    with pytest.raises(ExportExists, match="already exists"):
        Export(store, everything(store), "csv", path).run()
    assert path.read_text() == "mine"
    # AND with `overwrite` it is replaced, and keeps its permissions
    assert Export(store, everything(store), "csv", path, overwrite=True).run()
    assert path.read_text().startswith("time,")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert nothing_else(tmp_path, "x.csv")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_made_during_the_export_is_kept(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:

        def link(*names: object) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    path = tmp_path / "x.csv"

    def made_by_another(done: int, total: int) -> None:
        path.write_text("theirs")

    # GIVEN an export, WHEN another process makes a file of that name before it ends
    with pytest.raises(ExportExists):
        Export(store, everything(store), "csv", path).run(made_by_another)
    # THEN that file stays
    assert path.read_text() == "theirs"
    assert nothing_else(tmp_path, "x.csv")
    # AND without it the file gets its name there as well
    assert Export(store, everything(store), "csv", tmp_path / "y").run()
    assert nothing_else(tmp_path, "x.csv", "y")


def test_a_symbolic_link_stays_a_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x.csv").write_text("old")
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "there" / "x.csv")
    Export(store, everything(store), "csv", link, overwrite=True).run()
    assert link.is_symlink()
    assert (tmp_path / "there" / "x.csv").read_text().startswith("time,")


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("no/x.csv", "cannot write .*/no/x.csv: No such file or directory$"),
        (".", "is a directory: add a file name"),
        ("/dev/full", "/dev/full is not a regular file: choose another name"),
        ("a\0b", "cannot write .*: embedded null byte"),
        ("\x1b[2J/x", r"cannot write .*\\x1b\[2J/x: No such file or directory$"),
        ("n" * 300, "cannot write .*: File name too long$"),
    ],
)
def test_an_impossible_target_is_reported_in_one_line(
    store: Store, tmp_path: Path, path: str, why: str
) -> None:
    with pytest.raises(ExportError, match=why) as caught:
        Export(store, everything(store), "csv", tmp_path / path, overwrite=True).run()
    assert str(caught.value).isprintable()
    assert nothing_else(tmp_path)


FULL = """
import subprocess, sys, os
from pathlib import Path
import numpy as np
from tests.unit.view.test_export import filled
from ipttrace.view import export
from ipttrace.view.export import Export, ExportError
export._STEP = 23
folder = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=True)
store = filled().store
try:
    Export(store, np.arange(store.end), "jsonl", folder / "x.jsonl").run()
except ExportError as error:
    print(error, os.listdir(folder))
"""


def test_a_full_disk_is_reported_in_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    # GIVEN a disk with too little room for the rows
    private = ["unshare", "--user", "--map-root-user", "--mount"]
    if subprocess.run([*private, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here: no small disk to fill")
    # WHEN they are exported to it
    run = subprocess.run(
        [*private, sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True
    )
    # THEN the message has the file and the number of rows, and the disk is as before
    assert run.stderr == ""
    said = re.fullmatch(
        r"cannot write (\S+): disk full: ([\d,]+) of ([\d,]+) rows written, no file kept \[\]\n",
        run.stdout,
    )
    assert said is not None, run.stdout
    assert Path(said[1]).parent == tmp_path
    assert 0 < int(said[2].replace(",", "")) < filled().store.end
    assert said[3] == f"{filled().store.end:,}"


def test_an_empty_name_is_an_error(store: Store) -> None:
    with pytest.raises(ExportError, match="enter a file name"):
        Export(store, everything(store), "csv", "").run()


def test_an_io_error_is_not_reported_as_a_full_disk(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = os.write, [5]

    def broken(fd: int, data: bytes) -> int:
        left[0] -= 1
        if not left[0]:
            raise OSError(errno.EIO, "Input/output error")
        return write(fd, data)

    monkeypatch.setattr(os, "write", broken)
    with pytest.raises(ExportError) as caught:
        Export(store, everything(store)[:1000], "csv", tmp_path / "x").run()
    assert str(caught.value) == (
        f"cannot write {tmp_path}/x: Input/output error: 69 of 1,000 rows written, no file kept"
    )
    assert nothing_else(tmp_path)


@pytest.mark.parametrize("format", ["csv", "pcapng"])
def test_rows_evicted_during_the_export_are_counted(tmp_path: Path, format: str) -> None:
    # GIVEN a store that evicts selected rows during the export
    trace = filled(capacity=3000)
    store, seqs = trace.store, everything(trace.store)
    later = synth.make(2500, seed=2)
    done = Export(store, seqs, format, tmp_path / "x")
    steps = done.steps()
    next(steps)
    feed(trace, later)
    # WHEN the export continues to its end
    for _ in steps:
        pass
    # THEN each row is written or counted as gone
    assert store.first > seqs[23]
    assert done.gone == store.first - 23
    assert done.written + done.gone == done.total == len(seqs)
    assert done.outcome == (
        f"{done.written:,} rows written to {tmp_path}/x; {done.gone:,} rows were no longer held"
    )


def test_one_thread_exports_while_another_appends(tmp_path: Path) -> None:
    # GIVEN a store that grows
    trace = filled()
    store, seqs = trace.store, everything(trace.store)
    before = [(row.time, row.src) for row in store.rows(seqs)]
    done = Export(store, seqs, "csv", tmp_path / "x.csv")
    worker = threading.Thread(target=done.run)
    # WHEN a thread exports the rows held so far, while others come
    worker.start()
    for seed in range(2, 6):
        feed(trace, synth.make(1000, seed=seed))
    worker.join()
    # THEN the file has exactly these rows
    with open(tmp_path / "x.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["src"] for row in rows] == [src for _, src in before]
    assert done.written == len(seqs) < store.end


def test_a_tilde_is_the_home_directory(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Export(store, everything(store), "csv", "~/x.csv").run()
    assert nothing_else(tmp_path, "x.csv")


def test_file_names_and_formats_match() -> None:
    for format in FORMATS:
        assert format_of(suggested(format, 1_795_222_923_000_000_000)) == format
    assert suggested("csv", 2**100) == "ipttrace.csv"
    assert format_of("/x/Y.CSV") == "csv"
    assert format_of("x.doc") is None
