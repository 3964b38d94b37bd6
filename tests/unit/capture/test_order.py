# SPDX-License-Identifier: GPL-2.0-only
"""The rings are read in order on processors that need barriers for it."""

from __future__ import annotations

import ctypes

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.order import fences


def test_x86_needs_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", None)
    for fence in fences("x86_64"):
        fence()


def test_other_processors_use_libatomics_fence() -> None:
    try:
        acquire, release = fences("aarch64")
    except CaptureError as error:
        pytest.skip(str(error))
    acquire()
    release()


def test_without_libatomic_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(CaptureError, match="apt-get install libatomic1"):
        fences("aarch64")
