# SPDX-License-Identifier: GPL-2.0-only
"""A kernel that refuses fentry, for the programs that have kprobes to take their place."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any
from unittest import mock

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf
from ipttrace.capture.libbpf.objects import BpfObject

_HAVE_PROBES = ("nft.bpf.o", "legacy.bpf.o", "stations.bpf.o")


def refuse_fentry() -> contextlib.AbstractContextManager[object]:
    """During a with statement no object is loaded whose programs are of fentry alone."""
    load = BpfObject.__init__

    def refuse(
        self: BpfObject, libbpf: Libbpf, name: str, names: Sequence[str], **how: Any
    ) -> None:
        if name in _HAVE_PROBES and not any(each.endswith("_probe") for each in names):
            raise CaptureError("fentry is refused")
        load(self, libbpf, name, names, **how)

    return mock.patch.object(BpfObject, "__init__", refuse)
