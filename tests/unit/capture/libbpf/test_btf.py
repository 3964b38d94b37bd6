# SPDX-License-Identifier: GPL-2.0-only
"""What the running kernel's BTF says of functions."""

from __future__ import annotations

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf
from ipttrace.capture.libbpf.btf import BTF, parameters

pytestmark = pytest.mark.skipif(not (BTF / "vmlinux").exists(), reason="the kernel has no BTF")


@pytest.fixture(scope="module")
def libbpf() -> Libbpf:
    try:
        return Libbpf()
    except CaptureError as error:
        pytest.skip(str(error))


def test_parameters_are_what_they_point_to(libbpf: Libbpf) -> None:
    found = parameters(libbpf, "vmlinux", "nf_hook_slow")
    assert found == ["sk_buff", "nf_hook_state", "nf_hook_entries", ""]


def test_a_void_pointer_is_told_from_a_number_and_from_further_arguments(libbpf: Libbpf) -> None:
    # int snprintf(char *buf, size_t size, const char *fmt, ...)
    assert parameters(libbpf, "vmlinux", "snprintf") == ["char", "", "char", ""]
    assert parameters(libbpf, "vmlinux", "kfree") == ["void"]


def test_a_function_that_is_not_there_is_none(libbpf: Libbpf) -> None:
    assert parameters(libbpf, "no_such_module", "no_such_function") is None
