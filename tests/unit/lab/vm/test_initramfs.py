# SPDX-License-Identifier: GPL-2.0-only
"""The guest receives its command, settings and arguments unchanged, whatever their text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ipttrace.lab.kernels import Kernel
from ipttrace.lab.vm.initramfs import INIT, START, cpio, job_archive
from ipttrace.lab.vm.qemu import qemu_arguments


def unpack(archive: bytes) -> dict[str, bytes]:
    """Returns the files of a newc archive."""
    files: dict[str, bytes] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        size, name_size = fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            assert len(archive) == start
            return files
        files[name] = archive[start : start + size]
        at = (start + size + 3) // 4 * 4


def job(tmp_path: Path, command: list[str], cwd: Path | None = None) -> dict[str, bytes]:
    kernel = Kernel("6.1.0-1-amd64", tmp_path / "it's a cache")
    return unpack(
        job_archive(
            kernel,
            command,
            cwd=cwd or tmp_path,
            environment={"X": "a 'b' $c"},
            share=None,
            token="t",
            terminal=(24, 80),
        )
    )


def test_concatenated_archives_stay_aligned() -> None:
    archive = cpio({"a": b"1", "bb": b"22222", "empty": b""}, ["folder"])
    assert len(archive) % 4 == 0
    assert unpack(archive) == {"folder": b"", "a": b"1", "bb": b"22222", "empty": b""}


def test_arguments_with_spaces_quotes_and_newlines_reach_the_command(tmp_path: Path) -> None:
    # GIVEN a folder and arguments that a shell would split or expand
    cwd = tmp_path / "it's here $HOME"
    cwd.mkdir()
    words = ["a b", "it's", "$HOME", "x\ny", "*", ""]
    script = tmp_path / "command"
    # WHEN the guest's script is run
    command = ["sh", "-c", 'pwd; printf "<%s>" "$X" "$@"', "sh", *words]
    script.write_bytes(job(tmp_path, command, cwd)["job/command"])
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True)
    # THEN the command receives them unchanged
    assert done.stdout == f"{cwd}\n<a 'b' $c>" + "".join(f"<{word}>" for word in words)
    assert done.returncode == 0


def test_settings_survive_a_quote_in_the_cache_folder(tmp_path: Path) -> None:
    settings = tmp_path / "settings"
    settings.write_bytes(job(tmp_path, ["true"])["job/settings"])
    done = subprocess.run(
        ["sh", "-c", '. "$1"; printf %s "$MODULES"', "sh", str(settings)],
        capture_output=True,
        text=True,
    )
    assert done.stdout == str(tmp_path / "it's a cache" / "lib/modules/6.1.0-1-amd64")


@pytest.mark.parametrize("script", [INIT, START], ids=["init", "start"])
def test_the_guests_scripts_have_no_syntax_errors(script: str) -> None:
    done = subprocess.run(["sh", "-n"], input=script, text=True, capture_output=True)
    assert done.stderr == ""


def test_a_comma_in_the_shared_folder_is_not_a_qemu_option(tmp_path: Path) -> None:
    arguments = qemu_arguments(
        Kernel("6.1.0-1-amd64", tmp_path),
        accel="tcg",
        cpus=2,
        memory="3G",
        append=["module.sig_enforce=1"],
        share=Path("/tmp/a,readonly=on"),
        initramfs=9,
        ports={"console": 5, "status": 6},
    )
    share = next(word for word in arguments if word.startswith("local,id=share"))
    assert "path=/tmp/a,,readonly=on," in share
    assert arguments[arguments.index("-append") + 1].endswith(" module.sig_enforce=1")
