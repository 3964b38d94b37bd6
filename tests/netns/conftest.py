# SPDX-License-Identifier: GPL-2.0-only
"""What the tests in namespaces need: root, and a lab network of their own each."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ipttrace.lab.network import Network
from tests.netns.labs import fresh_prefix, lab_network
from tests.paths import PROJECT

_INSIDE = "IPTTRACE_TEST_ALONE"
# Mounts of its own, with no named namespace; processes of its own; the network of nobody.
_ALONE = ("unshare", "-m", "-n", "-p", "-f", "--mount-proc", "--kill-child", "sh", "-c",
          'mkdir -p /run/netns && mount -t tmpfs none /run/netns && exec "$@"', "sh")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "alone: the test runs where no namespace and process but its own are seen"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> object:
    """Runs a test that is marked `alone` in a pytest of its own, in new namespaces."""
    if pyfuncitem.get_closest_marker("alone") is None or _INSIDE in os.environ:
        return None
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    one = f"{PROJECT}/{pyfuncitem.nodeid}"
    argv = [*_ALONE, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", one]
    done = subprocess.run(
        argv, cwd=PROJECT, env={**os.environ, _INSIDE: "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "1 skipped" in done.stdout:
        pytest.skip(done.stdout)
    assert "1 passed" in done.stdout, done.stdout
    return True


@pytest.fixture
def prefix() -> str:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    return fresh_prefix()


@pytest.fixture
def make_network() -> Iterator[Callable[[], Network]]:
    with ExitStack() as stack:
        yield lambda: stack.enter_context(lab_network())


@pytest.fixture
def network() -> Iterator[Network]:
    with lab_network() as one:
        yield one
