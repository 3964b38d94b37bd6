# SPDX-License-Identifier: GPL-2.0-only
"""Selected rows to a file, step by step: the complete file or none.

For a worker thread, while another thread appends to the store: each step writes a
few rows and reports progress, and the export can be cancelled between two steps.  It
writes to a temporary file beside the target, which gets the target's name only when
it is complete and on the disk.  Must not import textual or depend on the time.
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

from ipttrace.text import escape
from ipttrace.trace.arrays import Array
from ipttrace.trace.store import Store
from ipttrace.view.formats import EXTENSIONS, output
from ipttrace.view.labels import LabelSource
from ipttrace.view.values import SECOND

# Rows per step: about 50 ms, so that cancelling is immediate.
_STEP: Final = 2000
_FULL: Final = {errno.ENOSPC: "disk full", errno.EDQUOT: "disk quota used up"}
# File systems without hard links.
_NO_LINKS: Final = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class ExportError(Exception):
    """No file was made; the message is one line."""


class ExportExists(ExportError):
    """The target exists: ask, then export again with `overwrite`."""


class Export:
    """One export.  Any thread may read its counts at any time.

    `total`: rows selected; `done`: rows processed, of which `written` are in the file
    and `gone` had left the store; `size`: bytes written.
    """

    def __init__(
        self,
        store: Store,
        selection: Array | Iterable[Array],
        format: str,
        path: str | os.PathLike[str],
        *,
        names: LabelSource = None,
        about: Mapping[str, object] | None = None,
        overwrite: bool = False,
    ) -> None:
        """`selection`: sequence numbers in the order of the file, one array or several.

        `format`: one of FORMATS; `path`: a leading ~ is the home directory; `about`:
        the stream's HELLO.  Raises KeyError if the format is unknown.
        """
        arrays = [selection] if isinstance(selection, np.ndarray) else list(selection)
        self._arrays: list[Array] = [np.asarray(some, np.int64) for some in arrays]
        self._store = store
        self._output = output(format, names)
        self._about = about or {}
        self._overwrite = overwrite
        # A ~user without a known home directory stays as it is.
        self.path = Path(os.path.expanduser(path))
        self.total = sum(map(len, self._arrays))
        self.done = 0
        self.written = 0
        self.gone = 0
        self.size = 0

    def run(
        self,
        progress: Callable[[int, int], None] = lambda done, total: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Runs the export; returns False if it was cancelled, which leaves no file.

        `progress` is called after each step with the rows done and the total.  Raises
        ExportError.
        """
        with contextlib.closing(self.steps()) as steps:
            for done, total in steps:
                progress(done, total)
                if done < total and cancelled():
                    return False
        return True

    def steps(self) -> Generator[tuple[int, int], None, None]:
        """Runs the export stepwise; yields the rows done and the total.  Single use.

        After the last step the file has its name.  Closing the generator earlier
        removes what was written.  Raises ExportError.
        """
        target = self._target()
        # Hidden, and unique to this export.
        temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(4)}.part")
        fd = -1
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            if self._overwrite and target.exists():
                # Others must not gain access to a file that was private.
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
            # Network file systems report a full disk only here.
            os.fsync(fd)
            os.close(fd)
            fd = -1
            self._name(temporary, target)
        except OSError as error:
            raise self._error(error) from error
        finally:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        yield self.done, self.total

    @property
    def outcome(self) -> str:
        """The result in one line."""
        line = f"{self.written:,} rows written to {escape(str(self.path))}"
        if self.gone:
            line += f"; {self.gone:,} rows were no longer held"
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
        """Returns the file to make.  Raises ExportError if it cannot or may not be made."""
        try:
            # A symbolic link stays; the file that it points to is replaced.
            target = Path(os.path.realpath(self.path))
            existing = target.stat() if target.exists() else None
        except (OSError, ValueError) as error:
            raise ExportError(f"cannot write {self._shown}: {_reason(error)}") from error
        if not self.path.name:
            raise ExportError("enter a file name")
        if existing is None:
            return target
        if stat.S_ISDIR(existing.st_mode):
            raise ExportError(f"{self._shown} is a directory: add a file name")
        if not stat.S_ISREG(existing.st_mode):
            raise ExportError(f"{self._shown} is not a regular file: choose another name")
        if not self._overwrite:
            raise ExportExists(f"{self._shown} already exists")
        return target

    def _name(self, temporary: Path, target: Path) -> None:
        """Renames the file; does not overwrite one that was made in the meantime."""
        if self._overwrite:
            os.replace(temporary, target)
            return
        try:
            os.link(temporary, target)
        except FileExistsError as error:
            raise ExportExists(f"{self._shown} already exists") from error
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            if os.path.lexists(target):
                raise ExportExists(f"{self._shown} already exists") from error
            os.rename(temporary, target)

    @property
    def _shown(self) -> str:
        return escape(str(self.path))

    def _error(self, error: OSError) -> ExportError:
        failed = f"cannot write {self._shown}: {_FULL.get(error.errno or 0) or _reason(error)}"
        if not self.size:
            return ExportError(failed)
        kept = f"{self.written:,} of {self.total:,} rows written, no file kept"
        return ExportError(f"{failed}: {kept}")


def _reason(error: OSError | ValueError) -> str:
    # A path that contains a NUL raises ValueError.
    return escape((error.strerror if isinstance(error, OSError) else None) or str(error))


def suggested(format: str, nanoseconds: int) -> str:
    """Returns `ipttrace-20261121-010203.csv` for rows of this time, ns since the epoch."""
    extension = next(extension for extension, name in EXTENSIONS.items() if name == format)
    try:
        at = time.strftime("-%Y%m%d-%H%M%S", time.localtime(nanoseconds // SECOND))
    except (OverflowError, ValueError, OSError):
        at = ""
    return f"ipttrace{at}{extension}"


def format_of(path: str | os.PathLike[str]) -> str | None:
    """Returns the format that the file name's extension means; None if it means none."""
    return EXTENSIONS.get(Path(path).suffix.lower())
