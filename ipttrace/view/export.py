# SPDX-License-Identifier: GPL-2.0-only
"""Rows of a selection to a file, step by step, all of it or nothing.

Made to be driven by a worker thread while another thread appends to the store:
it takes a few rows at a time, says how far it is, and can be stopped between
two steps.  It writes under a name of its own beside the target and gives the
file its name when it is whole and on the disk.  Must not import textual, nor
know a clock.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import numpy as np

from ipttrace.trace.arrays.hashing import Array
from ipttrace.trace.store import Store
from ipttrace.view.cells import SECOND, safe
from ipttrace.view.formats import ENDINGS, output
from ipttrace.view.places import Named

# Rows a step: some 50 ms of work, so that a stop is felt at once.
_STEP: Final = 2000
_FULL: Final = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota used up"}
# File systems without hard links.
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class ExportError(Exception):
    """Nothing was written: one clear line that says why."""


class ExportExists(ExportError):
    """The target is there already: ask, then export again with `overwrite`."""


class Export:
    """One export.  All counts may be read by any thread at any time.

    `total`: rows selected; `done`: those that are dealt with; `written`; `gone`:
    those that the store no longer held when their turn came.
    """

    def __init__(
        self,
        store: Store,
        selection: Array | Iterable[Array],
        format: str,
        path: str | os.PathLike[str],
        *,
        names: Named = None,
        about: Mapping[str, object] | None = None,
        overwrite: bool = False,
    ) -> None:
        """`selection`: sequence numbers, in one array or several, in the order of the file.

        `format`: one of FORMATS; `path`: a leading ~ is the home directory;
        `names`: of namespaces by inode, or of several hosts; `about`: the stream's HELLO.  Raises
        KeyError for an unknown format.
        """
        arrays = [selection] if isinstance(selection, np.ndarray) else list(selection)
        self._arrays: list[Array] = [np.asarray(some, np.int64) for some in arrays]
        self._store = store
        self._output = output(format, names)
        self._about = about or {}
        self._overwrite = overwrite
        # One whose home is not known stays as it is.
        self.path = Path(os.path.expanduser(path))
        self.total = sum(map(len, self._arrays))
        self.done = 0
        self.written = 0
        self.gone = 0
        self.size = 0  # bytes

    def run(
        self,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Export it all; False where it was cancelled, and nothing is kept then.

        `progress` takes rows done and total after each step, in this thread.
        Raises ExportError.
        """
        with contextlib.closing(self.steps()) as steps:
            for done, total in steps:
                progress(done, total)
                if done < total and cancelled():
                    return False
        return True

    def steps(self) -> Generator[tuple[int, int], None, None]:
        """Export a step at a time; yields rows done and total.  For one use.

        With the last one the file is there under its name.  To leave earlier
        (close the generator) removes all that was written.  Raises ExportError.
        """
        target = self._target()
        # Hidden, and never the name of another export's.
        made = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
        fd = -1
        try:
            fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if self._overwrite and target.exists():
                # What was not for others' eyes before is not now.
                os.fchmod(fd, stat.S_IMODE(target.stat().st_mode))
            self._write(fd, self._output.begin(self._about))
            for seqs in self._batches():
                data, written = self._output.rows(self._store, seqs)
                self._write(fd, data)
                self.done += len(seqs)
                self.written += written
                self.gone += len(seqs) - written
                if self.done < self.total:
                    yield self.done, self.total
            self._write(fd, self._output.end())
            # A full disk of another machine is told of no earlier than here.
            os.fsync(fd)
            os.close(fd)
            fd = -1
            self._name(made, target)
        except OSError as error:
            raise self._error(error) from error
        finally:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(made)
        yield self.done, self.total

    @property
    def outcome(self) -> str:
        """What was done, as one line."""
        line = f"{self.written:,} rows written to {safe(str(self.path))}"
        if self.gone:
            line += f"; {self.gone:,} had left the memory before their turn came"
        return line

    def _batches(self) -> Iterator[Array]:
        for some in self._arrays:
            for start in range(0, len(some), _STEP):
                yield some[start : start + _STEP]

    def _write(self, fd: int, data: bytes) -> None:
        self.size += len(data)
        left = memoryview(data)
        while left:
            left = left[os.write(fd, left) :]

    def _target(self) -> Path:
        """Where the file will be.  Raises ExportError where none can or may be."""
        try:
            # A link stays, what it points at is replaced.
            target = Path(os.path.realpath(self.path))
            there = target.stat() if target.exists() else None
        except (OSError, ValueError) as error:
            raise ExportError(f"cannot write {self._shown}: {_reason(error)}") from error
        if not self.path.name:
            raise ExportError("name a file to write to")
        if there is None:
            return target
        if stat.S_ISDIR(there.st_mode):
            raise ExportError(f"{self._shown} is a directory: name a file in it")
        if not stat.S_ISREG(there.st_mode):
            raise ExportError(f"{self._shown} is no plain file: name another")
        if not self._overwrite:
            raise ExportExists(f"{self._shown} is there already")
        return target

    def _name(self, made: Path, target: Path) -> None:
        """Give the file its name; one that somebody made meanwhile is not overwritten."""
        if self._overwrite:
            os.replace(made, target)
            return
        try:
            os.link(made, target)
        except FileExistsError as error:
            raise ExportExists(f"{self._shown} is there already") from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(target):
                raise ExportExists(f"{self._shown} is there already") from error
            os.rename(made, target)

    @property
    def _shown(self) -> str:
        return safe(str(self.path))

    def _error(self, error: OSError) -> ExportError:
        kept = f"{self.written:,} of {self.total:,} rows written, nothing kept"
        if error.errno in _FULL:
            return ExportError(f"{_FULL[error.errno]}: {kept}")
        if not self.size:
            return ExportError(f"cannot write {self._shown}: {_reason(error)}")
        return ExportError(f"cannot write {self._shown}: {_reason(error)}: {kept}")


def _reason(error: OSError | ValueError) -> str:
    # A path with a NUL in it is a ValueError.
    return safe((error.strerror if isinstance(error, OSError) else None) or str(error))


def suggested(format: str, nanoseconds: int) -> str:
    """A file name for rows of this time (ns since the epoch): `ipttrace-20261121-010203.csv`."""
    ending = next(ending for ending, name in ENDINGS.items() if name == format)
    try:
        at = time.strftime("-%Y%m%d-%H%M%S", time.localtime(nanoseconds // SECOND))
    except (OverflowError, ValueError, OSError):
        at = ""
    return f"ipttrace{at}{ending}"


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The format that a file's name speaks of: `x.csv` → csv; None where it does not."""
    return ENDINGS.get(Path(path).suffix.lower())
