# SPDX-License-Identifier: GPL-2.0-only
"""The config file on disk: where it is, whose rights open it, how it is replaced."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.tui.config import file
from tests.paths import PROJECT

NOBODY = pwd.getpwnam("nobody")
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
SUDO = {"SUDO_UID": str(NOBODY.pw_uid), "HOME": "/root"}


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can enter, of nobody.  Not tmp_path: it is root's alone."""
    made = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True)
    folder = Path(made.stdout.strip())
    os.chown(folder, NOBODY.pw_uid, NOBODY.pw_gid)
    yield folder
    subprocess.run(["rm", "-r", str(folder)], check=True)


def test_the_file_is_below_xdg_config_home_or_home() -> None:
    assert file.path({"HOME": "/home/a"}) == Path("/home/a/.config/ipttrace/config.toml")
    both = {"HOME": "/home/a", "XDG_CONFIG_HOME": "/etc/xdg"}
    assert file.path(both) == Path("/etc/xdg/ipttrace/config.toml")
    assert file.path({"HOME": "/h", "XDG_CONFIG_HOME": "here"}) == Path(
        "/h/.config/ipttrace/config.toml"
    )
    assert file.path({}) is None


@root_only
def test_under_sudo_it_is_the_invoking_users() -> None:
    home = Path(NOBODY.pw_dir)
    assert file.path(SUDO) == home / ".config/ipttrace/config.toml"
    for uid in ("", "0", "x", "9" * 30, "4294967294", "²"):
        environ = {"SUDO_UID": uid, "HOME": "/root"}
        assert file.path(environ) == Path("/root/.config/ipttrace/config.toml")


def test_a_file_that_does_not_exist_is_none(tmp_path: Path) -> None:
    assert file.read(tmp_path / "no" / "config.toml", {}) is None


def test_a_pipe_a_device_a_folder_and_a_large_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            file.read(path, {})
    (tmp_path / "large").write_bytes(b"#" * (file.LIMIT + 1))
    with pytest.raises(OSError, match="larger than 64 KiB"):
        file.read(tmp_path / "large", {})
    # Files of /proc have no size.
    with pytest.raises(OSError, match="larger than 64 KiB"):
        file.read(Path("/proc/kallsyms"), {})


@root_only
def test_under_sudo_nothing_is_read_that_the_user_may_not_read(open_folder: Path) -> None:
    secret = open_folder / "secret"
    secret.write_text("root's")
    secret.chmod(0o600)
    (open_folder / "config.toml").symlink_to("secret")
    with pytest.raises(PermissionError):
        file.read(open_folder / "config.toml", SUDO)
    assert file.read(open_folder / "config.toml", {}) == b"root's"
    assert (os.geteuid(), os.getegid()) == (0, 0)


@root_only
def test_under_sudo_the_file_that_is_written_is_the_users(open_folder: Path) -> None:
    path = open_folder / "ipttrace" / "config.toml"
    file.write(path, b"x", SUDO)
    found = path.stat()
    assert (found.st_uid, found.st_gid) == (NOBODY.pw_uid, NOBODY.pw_gid)
    assert stat.S_IMODE(found.st_mode) == 0o600
    # AND a link to a folder of root leads nowhere
    (open_folder / "etc").symlink_to(PROJECT / "docs")
    with pytest.raises(PermissionError):
        file.write(open_folder / "etc" / "config.toml", b"x", SUDO)
    assert (os.geteuid(), os.getegid()) == (0, 0)


def test_the_file_is_replaced_in_one_step_and_its_mode_and_link_stay(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles.toml"
    real.write_text("old")
    real.chmod(0o644)
    link = tmp_path / "ipttrace" / "config.toml"
    link.parent.mkdir()
    link.symlink_to("../dotfiles.toml")
    before = real.stat().st_ino
    with real.open() as held:
        file.write(link, b"new", {})
        assert held.read() == "old"
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert real.stat().st_ino != before
    assert stat.S_IMODE(real.stat().st_mode) == 0o644
    assert sorted(one.name for one in tmp_path.iterdir()) == ["dotfiles.toml", "ipttrace"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        file.write(path, b"new", {})
    assert [one.name for one in tmp_path.iterdir()] == ["config.toml"]
