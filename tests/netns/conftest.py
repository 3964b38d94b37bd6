# SPDX-License-Identifier: GPL-2.0-only
"""What the tests in namespaces need: root, and a lab network of their own each."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from ipttrace.lab.network import Network, NetworkError

_numbers = itertools.count()


def fresh_prefix() -> str:
    return f"ipt{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def prefix() -> str:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    return fresh_prefix()


@pytest.fixture
def make_network(prefix: str) -> Iterator[Callable[[], Network]]:
    with ExitStack() as stack:

        def make() -> Network:
            try:
                return stack.enter_context(Network(fresh_prefix()))
            except NetworkError as error:
                if "this kernel has no" in str(error):
                    pytest.skip(str(error))
                raise

        yield make


@pytest.fixture
def network(make_network: Callable[[], Network]) -> Network:
    return make_network()
