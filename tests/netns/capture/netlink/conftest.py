# SPDX-License-Identifier: GPL-2.0-only
"""A namespace with only lo for each test of the netlink engine."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.netns.loopback import LoopbackNamespace


@pytest.fixture
def namespace() -> Iterator[LoopbackNamespace]:
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    with LoopbackNamespace() as one:
        yield one
