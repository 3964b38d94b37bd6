# SPDX-License-Identifier: GPL-2.0-only
"""The debug kernel: found by its name alone, and built with exactly the options of its list."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipttrace.lab import kernels
from ipttrace.lab.kernels import KernelError, debug
from ipttrace.lab.kernels.debug import OPTIONS, is_current, parse_options, refused


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A debug kernel in the cache."""
    monkeypatch.setenv("IPTTRACE_CACHE", str(tmp_path))
    root = tmp_path / "kernels" / "debug"
    root.mkdir(parents=True)
    stamp = {"release": "6.12.117-debug", "options": debug._digest()}
    (root / "complete.json").write_text(json.dumps(stamp))
    return root


def test_a_series_never_means_the_debug_kernel(built: Path) -> None:
    kernel = kernels.find("debug")
    assert kernel is not None
    assert kernel.release == "6.12.117-debug"
    assert kernel.arguments == ("kmemleak=on",)
    assert kernels.find("6.12") is None
    assert kernels.available() == []


def test_it_is_built_again_once_its_options_have_changed(
    built: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kernel = kernels.find("debug")
    assert kernel is not None
    assert is_current(kernel)
    other = tmp_path / "debug.config"
    other.write_text("CONFIG_KASAN=y\n")
    monkeypatch.setattr(debug, "OPTIONS", other)
    assert not is_current(kernel)


def test_one_that_is_not_built_is_named_with_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("IPTTRACE_CACHE", str(tmp_path))
    with pytest.raises(KernelError, match="run `make debug-kernel`"):
        kernels.ensure("debug")


def test_an_option_that_the_kernel_did_not_keep_is_found() -> None:
    wanted = parse_options('CONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D="x"\n')
    assert wanted == {"CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_C": "n", "CONFIG_D": '"x"'}
    assert refused(wanted, wanted) == []
    assert refused(wanted, {"CONFIG_A": "y", "CONFIG_C": "y"}) == [
        "CONFIG_B",
        "CONFIG_C",
        "CONFIG_D",
    ]


def test_what_finds_mistakes_is_in_its_options() -> None:
    options = parse_options(OPTIONS.read_text())
    for name in ("KASAN", "PROVE_LOCKING", "DEBUG_LOCKDEP", "DEBUG_ATOMIC_SLEEP", "DEBUG_KMEMLEAK"):
        assert options[f"CONFIG_{name}"] == "y"
    assert options["CONFIG_SLUB_TINY"] == "n"
