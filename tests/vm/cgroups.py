# SPDX-License-Identifier: GPL-2.0-only
"""Cgroups that tests make.  Must not check anything but that they are gone."""

from __future__ import annotations

from pathlib import Path

from tests.vm.forked import until


def remove(folder: Path) -> None:
    """Removes a cgroup: a thread that has just ended may still be in it."""

    def gone() -> bool:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    assert until(gone), f"{folder} has processes"
