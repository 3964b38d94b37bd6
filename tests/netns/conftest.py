# SPDX-License-Identifier: GPL-2.0-only
"""What the tests in namespaces need: root, and a lab network of their own each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ipttrace.lab.network import Network
from tests.netns.labs import fresh_prefix, lab_network


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
