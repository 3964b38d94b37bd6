# SPDX-License-Identifier: GPL-2.0-only
"""What `auto` takes, with the module and without."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ipttrace.capture import choice, doctor
from ipttrace.capture.doctor import Check, Host
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.request import Request

NO_MODULE = Check("modules", "fail", "this kernel takes no modules")


def engine(name: str) -> Any:
    return SimpleNamespace(name=name, notes=[])


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host that takes no module; the engines are stubs."""
    found = SimpleNamespace(root_user=True)
    monkeypatch.setattr(Host, "here", lambda: found)
    monkeypatch.setattr(doctor, "why_not", lambda host: NO_MODULE)
    monkeypatch.setattr(doctor, "why_not_bpf", lambda host: None)
    monkeypatch.setattr(choice, "_bpf", lambda request, program: engine("bpf"))
    monkeypatch.setattr(choice, "_netlink", lambda request, program: engine("netlink"))
    return found


def test_without_a_module_bpf_traces_everything_and_a_note_says_so(host: Any) -> None:
    # WHEN no engine is chosen
    taken: Any = choice.open_engine(Request())
    # THEN it is that of BPF, and one line says why
    assert taken.name == "bpf"
    where = "in this network namespace (--netns all: in every one)"
    text = f"tracing by BPF {where}; no kernel engine: {NO_MODULE.text}"
    assert taken.notes == [("info", text)]


def test_where_the_kernel_refuses_bpf_it_goes_on_over_netlink(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a kernel that refuses the programs
    def refuse(request: Request, program: bytes) -> Any:
        raise CaptureError("the kernel refused the BPF programs: not permitted")

    monkeypatch.setattr(choice, "_bpf", refuse)
    # WHEN no engine is chosen
    taken: Any = choice.open_engine(Request(netns="there"))
    # THEN one line has both reasons
    assert taken.name == "netlink"
    text = (
        "tracing over netlink; no bpf engine: the kernel refused the BPF programs: not permitted;"
        f" no kernel engine: {NO_MODULE.text}"
    )
    assert taken.notes == [("warn", text)]


def test_what_the_doctor_finds_keeps_bpf_from_being_tried(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a lockdown that hides the kernel's memory
    refusal = Check("engine: bpf", "fail", "no, because lockdown=confidentiality")
    monkeypatch.setattr(doctor, "why_not_bpf", lambda host: refusal)
    taken: Any = choice.open_engine(Request(netns="there"))
    assert taken.name == "netlink"
    assert "; no bpf engine: lockdown=confidentiality; no kernel engine: " in taken.notes[0][1]
    # WHEN the user is not root, who cannot use BPF anywhere
    host.root_user = False
    taken = choice.open_engine(Request(netns="there"))
    # THEN it is not mentioned
    assert taken.notes == [("warn", f"tracing over netlink; no kernel engine: {NO_MODULE.text}")]


@pytest.fixture
def with_module(host: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host that takes the module and uses nftables."""
    host.modules = {"nf_tables"}
    monkeypatch.setattr(doctor, "why_not", lambda host: None)
    monkeypatch.setattr(choice, "_with_bpf", lambda *_: engine("kernel+bpf"))
    monkeypatch.setattr(choice, "_with_netlink", lambda *_: engine("kernel+netlink"))
    monkeypatch.setattr(choice, "_kernel", lambda *_: engine("kernel"))
    return host


def test_beside_the_module_bpf_traces_nftables(with_module: Any) -> None:
    taken: Any = choice.open_engine(Request())
    assert (taken.name, taken.notes) == ("kernel+bpf", [])
    # AND nothing is beside it if nftables is not in use, which asking for it would load
    with_module.modules = set()
    assert choice.open_engine(Request()).name == "kernel"


def test_beside_the_module_netlink_traces_nftables_if_bpf_is_refused(
    with_module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a kernel that refuses the programs
    def refuse(*_: Any) -> Any:
        raise CaptureError("the kernel rejected the BPF programs: not permitted")

    monkeypatch.setattr(choice, "_with_bpf", refuse)
    taken: Any = choice.open_engine(Request())
    # THEN netlink is beside the module, and one line has the reason
    assert taken.name == "kernel+netlink"
    text = "nftables is traced over netlink; no bpf engine: "
    assert taken.notes == [("info", f"{text}the kernel rejected the BPF programs: not permitted")]
    # AND so if the doctor knows beforehand
    refusal = Check("engine: bpf", "fail", "no, because libbpf.so.1 is missing")
    monkeypatch.setattr(doctor, "why_not_bpf", lambda host: refusal)
    taken = choice.open_engine(Request())
    assert taken.notes == [("info", f"{text}libbpf.so.1 is missing")]
