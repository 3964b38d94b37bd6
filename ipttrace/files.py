# SPDX-License-Identifier: GPL-2.0-only
"""Files that root may write or use where others can write too, as in /tmp.

"Others" are all users but root and the one who runs the program.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import stat
from pathlib import Path
from typing import Final

_MOST_LINKS: Final = 40  # in a path, as in the kernel
_PROCESS_FILES: Final = re.compile(r"/proc/\d+(/task/\d+)?/fd")


def create(path: str | os.PathLike[str], *, exclusive: bool = False, empty: bool = False) -> int:
    """Opens `path` for writing; a new file is for its owner alone (0600).

    Returns a descriptor.  No symbolic link of others is followed, anywhere in the path;
    in a folder that all may write to, nor is a file of others written or one that has
    further names.  `exclusive`: the file must be new; `empty`: its old contents are
    removed.  Raises OSError.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    folder, name, magic = _resolve(os.fspath(path), last=not exclusive)
    try:
        if magic:  # /proc/self/fd/N: what this process has open
            flags &= ~(os.O_NOFOLLOW | os.O_CREAT)
        if exclusive:
            flags |= os.O_EXCL
        fd = os.open(name, flags, 0o600, dir_fd=folder)
        try:
            if not magic and _is_a_trap(os.fstat(folder), os.fstat(fd)):
                raise PermissionError(
                    errno.EACCES, "the file belongs to another user", os.fspath(path)
                )
            if empty and stat.S_ISREG(os.fstat(fd).st_mode):
                os.ftruncate(fd, 0)
        except OSError:
            os.close(fd)
            raise
        return fd
    finally:
        os.close(folder)


def write(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file as `create` does, in place of its old contents.  Raises OSError."""
    with os.fdopen(create(path, empty=True), "wb") as file:
        file.write(data)


def make_private_folder(path: Path) -> None:
    """Makes `path` and the folders above it that are missing, for their owner alone (0700)."""
    for folder in reversed([path, *path.parents]):
        if not folder.is_dir():
            folder.mkdir(0o700, exist_ok=True)


def is_roots_file(fd: int) -> bool:
    """Whether the open file `fd` is a regular one that only root can have made or changed."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != 0 or _others_write(found):
        return False
    return is_roots_folder(Path(os.readlink(f"/proc/self/fd/{fd}")).parent)


def is_roots_folder(path: Path) -> bool:
    """Whether only root can replace what root has in the folder `path`, or will have if missing.

    True of /tmp too, where others can make files, but not replace those of root.
    """
    path = path.resolve()
    for folder in (path, *path.parents):
        try:
            found = folder.lstat()
        except FileNotFoundError:
            continue
        except OSError:
            return False
        sticky = found.st_mode & stat.S_ISVTX
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0:
            return False
        if _others_write(found) and not sticky:
            return False
    return True


def _others_write(found: os.stat_result) -> bool:
    mask = stat.S_IWOTH if found.st_gid == 0 else stat.S_IWOTH | stat.S_IWGRP
    return bool(found.st_mode & mask)


def _is_a_trap(folder: os.stat_result, file: os.stat_result) -> bool:
    if not folder.st_mode & stat.S_IWOTH or not stat.S_ISREG(file.st_mode):
        return False
    return file.st_uid not in (os.geteuid(), folder.st_uid) or file.st_nlink > 1


def _resolve(path: str, *, last: bool) -> tuple[int, str, bool]:
    """Follows the links of root and this user in `path`, also the `last` part if wanted.

    Returns a descriptor of the folder, the name in it, which is no link then, and
    whether the name is one of /proc's links to open files.
    """
    at = os.open("/" if path.startswith("/") else ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not path or path.endswith("/"):
        os.close(at)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    parts = [part for part in path.split("/") if part not in ("", ".")][::-1]
    links = 0
    try:
        while parts:
            name = parts.pop()
            if not parts and not last:
                return at, name, False
            try:
                found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            except FileNotFoundError:
                if parts:
                    raise
                return at, name, False
            try:
                kind = os.fstat(found)
                if stat.S_ISLNK(kind.st_mode):
                    links += 1
                    if kind.st_uid not in (0, os.geteuid()):
                        raise PermissionError(
                            errno.EACCES, "the path goes through another user's symbolic link", path
                        )
                    if links > _MOST_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    target = os.readlink("", dir_fd=found)
                    if not parts and _PROCESS_FILES.fullmatch(os.readlink(f"/proc/self/fd/{at}")):
                        return at, name, True
                    if target.startswith("/"):
                        os.close(at)
                        at = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                    parts += [part for part in target.split("/") if part not in ("", ".")][::-1]
                elif parts:
                    at, found = found, at
                else:
                    return at, name, False
            finally:
                os.close(found)
    except BaseException:
        os.close(at)
        raise
    os.close(at)
    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)


def raise_limit() -> None:
    """Allows as many descriptors as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
