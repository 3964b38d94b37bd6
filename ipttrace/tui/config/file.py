# SPDX-License-Identifier: GPL-2.0-only
"""The config file on disk: `$XDG_CONFIG_HOME/ipttrace/config.toml`, else below ~/.config.

Under sudo it is the invoking user's, and is opened with that user's rights: what the
user may not read or write, ipttrace does not read or write for the user.
"""

from __future__ import annotations

import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from ipttrace.files import create, make_private_folder

LIMIT: Final = 1 << 16  # bytes
NAME: Final = Path("ipttrace") / "config.toml"


def _invoking_user(environ: Mapping[str, str]) -> pwd.struct_passwd | None:
    """The user who called sudo; None: no sudo, or root did."""
    uid = environ.get("SUDO_UID", "")
    if os.geteuid() != 0 or not (uid.isascii() and uid.isdigit() and 0 < len(uid) < 11):
        return None
    try:
        return pwd.getpwuid(int(uid)) if int(uid) else None
    except (KeyError, OverflowError):
        return None


def path(environ: Mapping[str, str]) -> Path | None:
    """The path of the file, which need not exist; None: the user has no home."""
    folder = environ.get("XDG_CONFIG_HOME", "")
    if folder.startswith("/"):  # the XDG specification ignores others
        return Path(folder) / NAME
    user = _invoking_user(environ)
    home = user.pw_dir if user is not None else environ.get("HOME", "")
    return Path(home) / ".config" / NAME if home.startswith("/") else None


@contextmanager
def _as_owner(environ: Mapping[str, str]) -> Iterator[None]:
    """Acts with the rights of the user who called sudo."""
    user = _invoking_user(environ)
    if user is None:
        yield
        return
    group, groups = os.getegid(), os.getgroups()
    try:
        os.setgroups(os.getgrouplist(user.pw_name, user.pw_gid))
        os.setegid(user.pw_gid)
        os.seteuid(user.pw_uid)
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
        os.setgroups(groups)


def read(file: Path, environ: Mapping[str, str]) -> bytes | None:
    """The file's content; None: there is no file.  Raises OSError, also if it is no file."""
    with _as_owner(environ):
        try:
            # Before it is opened: opening a device may have effects.
            _check(os.stat(file))
            fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except FileNotFoundError:
            return None
    with os.fdopen(fd, "rb") as opened:
        _check(os.fstat(fd))
        data = opened.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise OSError(0, _TOO_LARGE)
    return data


_TOO_LARGE: Final = f"larger than {LIMIT // 1024} KiB"


def _check(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(0, "not a regular file")
    if found.st_size > LIMIT:
        raise OSError(0, _TOO_LARGE)


def write(file: Path, data: bytes, environ: Mapping[str, str]) -> None:
    """Replaces the file in one step.  Raises OSError.

    A symbolic link stays, as those who keep such files elsewhere want it: what it leads
    to is replaced.  A new file is for its owner alone; otherwise the mode stays.
    """
    with _as_owner(environ):
        make_private_folder(file.parent)
        target = Path(os.path.realpath(file))
        try:
            found = target.stat()
            _check(found)
            mode = stat.S_IMODE(found.st_mode) & 0o644 | 0o200
        except FileNotFoundError:
            mode = 0o600
        new = target.with_name(f".{target.name}.{os.getpid()}")
        with suppress(FileNotFoundError):
            new.unlink()
        try:
            with os.fdopen(create(new, exclusive=True), "wb") as opened:
                opened.write(data)
                opened.flush()
                os.fchmod(opened.fileno(), mode)
                os.fsync(opened.fileno())
            new.replace(target)
        except OSError:
            with suppress(OSError):
                new.unlink()
            raise
