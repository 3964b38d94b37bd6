# SPDX-License-Identifier: GPL-2.0-only
"""Lab networks for tests, each with unique names."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from ipttrace.lab.network import Network, NetworkError

_numbers = itertools.count()


def fresh_prefix() -> str:
    """A prefix for names of namespaces that no other test uses."""
    return f"ipt{os.getpid()}-{next(_numbers)}"


@contextmanager
def lab_network(backend: str = "legacy") -> Iterator[Network]:
    """A lab network; skips the test if it cannot be made here."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with ExitStack() as stack:
        try:
            network = stack.enter_context(Network(fresh_prefix(), backend=backend))
        except NetworkError as error:
            if "this kernel has no" in str(error):
                pytest.skip(str(error))
            raise
        yield network
