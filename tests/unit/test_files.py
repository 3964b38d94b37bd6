# SPDX-License-Identifier: GPL-2.0-only
"""What is written or used where others can write too, as in /tmp."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipttrace.cli.outcome import Failed
from ipttrace.cli.recording import Recording
from ipttrace.files import create, is_roots_file, is_roots_folder, make_private_folder, write

NOBODY = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")


@pytest.fixture(autouse=True)
def permissive_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_recording_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = Recording(str(tmp_path / "a.iptr"))
    file.write(b"x")
    file.close()
    assert mode(tmp_path / "a.iptr") == 0o600


@root_only
def test_a_recording_does_not_follow_another_users_link(shared: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (shared / "a.iptr").symlink_to(victim)
    os.chown(shared / "a.iptr", NOBODY, NOBODY, follow_symlinks=False)
    with pytest.raises(Failed, match=r"a\.iptr: the path goes through another user's sym"):
        Recording(str(shared / "a.iptr"))
    assert victim.read_text() == "kept"


@root_only
def test_a_ready_file_does_not_follow_another_users_link_on_the_way(
    shared: Path, tmp_path: Path
) -> None:
    (tmp_path / "etc").mkdir()
    (shared / "way").symlink_to(tmp_path / "etc")
    os.chown(shared / "way", NOBODY, NOBODY, follow_symlinks=False)
    (tmp_path / "mine").symlink_to(shared / "way")
    for path in (shared / "way" / "ready", tmp_path / "mine" / "ready"):
        with pytest.raises(PermissionError):
            write(path, b"1\n")
    assert not list((tmp_path / "etc").iterdir())


@root_only
def test_another_users_file_or_hard_link_in_tmp_is_not_written(
    shared: Path, tmp_path: Path
) -> None:
    (shared / "ready").write_text("theirs")
    os.chown(shared / "ready", NOBODY, NOBODY)
    (tmp_path / "victim").write_text("kept")
    (shared / "second").hardlink_to(tmp_path / "victim")
    for name in ("ready", "second"):
        with pytest.raises(PermissionError):
            write(shared / name, b"1\n")
    assert (tmp_path / "victim").read_text() == "kept"


def test_own_links_files_and_devices_are_written_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("a longer text")
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "c").symlink_to(tmp_path / "new")
    (tmp_path / "here").symlink_to(".")
    monkeypatch.chdir(tmp_path)
    write("here/../" + tmp_path.name + "/b", b"1\n")
    write("c", b"2\n")
    assert (Path("a").read_text(), Path("new").read_text()) == ("1\n", "2\n")
    write("/dev/null", b"3\n")


def test_a_recording_goes_through_dev_fd_to_a_pipe() -> None:
    ours, theirs = os.pipe()
    fd = create(f"/dev/fd/{theirs}")
    os.write(fd, b"x")
    assert os.read(ours, 2) == b"x"
    for one in (ours, theirs, fd):
        os.close(one)


def test_a_loop_of_links_and_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    open_before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "a", tmp_path, "/", "", f"{tmp_path}/no/file", f"{tmp_path}/x/"):
        with pytest.raises(OSError):  # noqa: PT011  which one differs
            create(path)
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_an_exclusive_file_is_new(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    with pytest.raises(FileExistsError):
        create(tmp_path / "a", exclusive=True)
    os.close(create(tmp_path / "c", exclusive=True))
    assert mode(tmp_path / "c") == 0o600


def test_a_cache_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    make_private_folder(tmp_path / "a" / "b")
    assert (mode(tmp_path / "a"), mode(tmp_path / "a" / "b")) == (0o700, 0o700)


@root_only
def test_only_what_root_alone_can_change_is_roots() -> None:
    # Not tmp_path: it may lie anywhere.
    done = subprocess.run(["mktemp", "-d"], capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    try:
        inner = folder / "inner"
        inner.mkdir(0o755)
        file = inner / "file"
        file.write_text("")
        file.chmod(0o644)

        def roots() -> tuple[bool, bool]:
            with file.open() as opened:
                return is_roots_file(opened.fileno()), is_roots_folder(inner / "new")

        assert roots() == (True, True)
        inner.chmod(0o777)
        assert roots() == (False, False)
        inner.chmod(0o755)
        os.chown(folder, NOBODY, NOBODY)
        assert roots() == (False, False)
        os.chown(folder, 0, NOBODY)
        folder.chmod(0o770)
        assert roots() == (False, False)
        folder.chmod(0o755)
        os.chown(file, NOBODY, 0)
        assert roots() == (False, True)
    finally:
        subprocess.run(["rm", "-r", str(folder)], check=True)
