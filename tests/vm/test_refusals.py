# SPDX-License-Identifier: GPL-2.0-only
"""The module refuses wrong requests with an errno and a sentence, and registers nothing."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.kernel.control import CMD_ARM, CMD_DISARM, CMD_FILTER, CMD_WATCH, Control
from ipttrace.capture.kernel.programs import PINS
from ipttrace.lab import traffic
from tests.vm.bare import Bare, references
from tests.vm.conftest import SHARED, kprobes
from tests.vm.forked import fork
from tests.vm.patience import PATIENCE
from tests.vm.pinned import EXIT, ZERO, instruction, pin_kprobe
from tests.vm.plain import LOOPBACK, Plain, raw_and_filter

pytestmark = SHARED

NAMES = ("IPTTRACE_A_PROG_CALL", "IPTTRACE_A_PROG_RULE")
NOBODY = 65534
RETURN_0 = struct.pack("=HBBI", 6, 0, 0, 0)  # linux/filter.h: BPF_RET | BPF_K
NETLINK_GENERIC = 16  # linux/netlink.h
NLMSG_ERROR = 2
REQUEST_ACK = 5  # NLM_F_REQUEST | NLM_F_ACK
GET_ATTACH_COOKIE = 174  # linux/bpf.h: BPF_FUNC_get_attach_cookie
COOKIE = instruction(0x85, value=GET_ATTACH_COOKIE)  # r0 = bpf_get_attach_cookie(r1)
KPROBE_MULTI = 42  # linux/bpf.h: BPF_TRACE_KPROBE_MULTI, an attach type
SLEEPABLE = 1 << 4  # linux/bpf.h: BPF_F_SLEEPABLE
SOCKET_FILTER = 1  # linux/bpf.h: BPF_PROG_TYPE_SOCKET_FILTER

Attributes = list[tuple[str, object]]


def since(major: int, minor: int) -> pytest.MarkDecorator:
    """Skips on kernels to which no such BPF program can be given."""
    return pytest.mark.skipif(
        tuple(map(int, os.uname().release.split(".")[:2])) < (major, minor),
        reason=f"Linux has such BPF programs from {major}.{minor} on",
    )


@pytest.fixture
def bare() -> Iterator[Bare]:
    with Bare() as one:
        yield one


def pins(**other: Path | str) -> Attributes:
    """Attributes with the pins of the two programs, of which `other` replaces some."""
    return [
        (name, str(other.get(name[-5:].strip("_").lower(), PINS / program)))
        for name, program in zip(NAMES, ("ipttrace_call", "ipttrace_rule"), strict=True)
    ]


def refused(control: Control, command: int, attributes: Attributes) -> tuple[int, str]:
    """The errno and sentence of a command, which must fail and change nothing."""
    before = kprobes(), references(), control.status().state
    with pytest.raises(CaptureError) as caught:
        control._request(command, attributes)
    assert (kprobes(), references(), control.status().state) == before
    return caught.value.__cause__.code, str(caught.value)  # type: ignore[union-attr]


def pin_socket_filter(path: Path) -> None:
    """Pins a valid program of another type."""
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    fd = lib.bpf_prog_load(SOCKET_FILTER, b"other", b"GPL", ZERO + EXIT, ctypes.c_size_t(2), None)
    assert fd >= 0, os.strerror(-fd)
    assert lib.bpf_obj_pin(fd, os.fsencode(path)) == 0
    os.close(fd)


def test_arm_without_its_programs_is_refused(bare: Bare) -> None:
    sentence = "ARM needs the pins of two BPF programs"
    assert refused(bare.control, CMD_ARM, []) == (errno.EINVAL, sentence)
    for at in range(len(NAMES)):
        some = pins()
        del some[at]
        assert refused(bare.control, CMD_ARM, some) == (errno.EINVAL, sentence)


def test_a_program_without_an_array_for_calls_is_refused(bare: Bare) -> None:
    # GIVEN a program for calls that the module would have nowhere to put them for
    other = PINS / "other"
    pin_kprobe(other, b"ipttrace_call")
    # THEN the module refuses it
    sentence = "the BPF program for calls lacks a per-CPU array of this version's call records"
    assert refused(bare.control, CMD_ARM, pins(call=other)) == (errno.EINVAL, sentence)


def test_another_kprobe_program_is_refused(bare: Bare) -> None:
    # GIVEN pins of other programs of type kprobe: one of ours in the wrong place, and a foreign one
    foreign = PINS / "foreign"
    pin_kprobe(foreign, b"foreign")
    sentence = "the BPF program at this path is not the one of ipttrace"
    for other in (pins(call=PINS / "ipttrace_rule"), pins(rule=foreign)):
        assert refused(bare.control, CMD_ARM, other) == (errno.EINVAL, sentence)


@pytest.mark.parametrize(
    ("attach_type", "flags"),
    [
        pytest.param(KPROBE_MULTI, 0, id="multi", marks=since(5, 18)),
        pytest.param(0, SLEEPABLE, id="sleepable", marks=since(6, 0)),
    ],
)
def test_a_program_under_our_name_for_another_place_is_refused(
    bare: Bare, attach_type: int, flags: int
) -> None:
    # GIVEN a program that has the name of ours, but is made to be attached elsewhere, or to sleep
    other = PINS / "other"
    pin_kprobe(other, b"ipttrace_rule", attach_type, flags)
    # THEN the module does not run it
    sentence = "the BPF program at this path is not the one of ipttrace"
    assert refused(bare.control, CMD_ARM, pins(rule=other)) == (errno.EINVAL, sentence)


def test_a_pin_that_others_can_replace_is_refused(bare: Bare) -> None:
    # GIVEN our own program, at a pin that belongs to somebody else
    pin = PINS / "ipttrace_rule"
    os.chown(pin, NOBODY, NOBODY)
    sentence = "others than root can replace the BPF program at this path"
    assert refused(bare.control, CMD_ARM, pins()) == (errno.EPERM, sentence)
    # AND one in a folder where others can write
    os.chown(pin, 0, 0)
    PINS.chmod(0o777)
    assert refused(bare.control, CMD_ARM, pins()) == (errno.EPERM, sentence)


@since(5, 15)
def test_a_program_under_our_name_that_asks_for_its_cookie_does_no_harm(bare: Bare) -> None:
    # GIVEN a program that has the name of ours, and asks how it is attached
    other = PINS / "other"
    pin_kprobe(other, b"ipttrace_rule", code=COOKIE + EXIT)
    with Plain() as plain:
        plain.load(raw_and_filter("-A OUTPUT -p udp -m udp --dport 9\n" * 10), 4)
        bare.control._request(CMD_ARM, pins(rule=other))
        # WHEN it is run for each rule that has no room in its call
        assert traffic.udp(plain.name, LOOPBACK[4], 9, 23).sent == 23
        assert bare.control.status().due[1] >= 23 * 11
        # THEN the kernel survives (conftest checks its log)
        bare.control.disarm()


@pytest.mark.parametrize("which", ["call", "rule"])
def test_a_pin_that_is_not_a_kprobe_program_is_refused(
    bare: Bare, which: str, tmp_path: Path
) -> None:
    def arm(path: Path | str) -> tuple[int, str]:
        return refused(bare.control, CMD_ARM, pins(**{which: path}))

    other = PINS / "other"
    pin_socket_filter(other)
    try:
        wrong = "the pin at this path is not a BPF program of type kprobe"
        assert arm(other) == (errno.EINVAL, wrong)
        assert arm(PINS / "rules") == (errno.EINVAL, wrong)
    finally:
        other.unlink()
    assert arm(other) == (errno.ENOENT, "no BPF program is pinned at this path")
    (tmp_path / "file").touch()
    assert arm(tmp_path / "file") == (errno.EACCES, "this path is not a pin of a BPF program")
    assert arm("") == (errno.EACCES, "this path is not a pin of a BPF program")
    assert arm("/" + "x" * 300)[0] in (errno.ERANGE, errno.EINVAL)


@pytest.mark.parametrize(
    ("code", "sentence"),
    [
        (b"", "the filter's length is not a multiple of a BPF instruction's"),
        (RETURN_0[:7], "the filter's length is not a multiple of a BPF instruction's"),
        (RETURN_0 * 2 + b"x", "the filter's length is not a multiple of a BPF instruction's"),
        (b"\xff" * 8, "the filter is not a valid classic BPF program"),
        (struct.pack("=HBBI", 0, 0, 0, 1), "the filter is not a valid classic BPF program"),
        # a jump beyond the end
        (
            struct.pack("=HBBI", 5, 0, 0, 9) + RETURN_0,
            "the filter is not a valid classic BPF program",
        ),
    ],
)
def test_an_invalid_filter_is_refused(bare: Bare, code: bytes, sentence: str) -> None:
    attributes: Attributes = [("IPTTRACE_A_FILTER", code)]
    # WHEN it is given to ARM, or to FILTER while armed
    assert refused(bare.control, CMD_ARM, pins() + attributes) == (errno.EINVAL, sentence)
    bare.control.arm(bare.pins, RETURN_0)
    assert refused(bare.control, CMD_FILTER, attributes) == (errno.EINVAL, sentence)
    # THEN it stays armed
    assert kprobes()
    bare.control.disarm()


def test_a_filter_too_long_and_too_many_calls_are_refused(bare: Bare) -> None:
    long: Attributes = [("IPTTRACE_A_FILTER", RETURN_0 * 4097)]
    assert refused(bare.control, CMD_ARM, pins() + long)[0] in (errno.ERANGE, errno.EINVAL)
    many: Attributes = [("IPTTRACE_A_MAXACTIVE", 65537)]
    sentence = "MAXACTIVE is over 65536 calls"
    assert refused(bare.control, CMD_ARM, pins() + many) == (errno.EINVAL, sentence)


def test_only_the_socket_that_armed_can_change_the_filter_and_disarm(bare: Bare) -> None:
    # GIVEN two sockets, of which one arms
    other = Control()
    sentence = "not armed by this socket"
    for command in (CMD_FILTER, CMD_DISARM):
        assert refused(other, command, []) == (errno.EPERM, sentence)
    bare.control.arm(bare.pins)
    try:
        # WHEN the other arms, sets the filter or disarms, THEN it is refused
        busy = (errno.EBUSY, "another ipttrace is already tracing on this host")
        assert refused(other, CMD_ARM, pins()) == busy
        assert refused(bare.control, CMD_ARM, pins()) == busy
        for command in (CMD_FILTER, CMD_DISARM):
            assert refused(other, command, []) == (errno.EPERM, sentence)
        # AND a user reads which process has armed
        with pytest.raises(
            CaptureError, match=rf"another ipttrace \(pid {os.getpid()}\) is already"
        ):
            other.arm(bare.pins)
        # AND closing the other socket disarms nothing
        other.close()
        assert bare.control.status().state == "armed"
        assert kprobes()
    finally:
        bare.control.disarm()


def test_every_command_needs_root(bare: Bare) -> None:
    def as_nobody(act: Callable[[Control], object], sentence: str) -> int:
        def run() -> int:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            control = Control()
            try:
                act(control)
            except CaptureError as error:
                return 0 if sentence in str(error) else 3
            return 4

        return os.waitstatus_to_exitcode(os.waitpid(fork(run), 0)[1])

    root = "tracing needs root: run with sudo"
    assert as_nobody(lambda control: control.arm(bare.pins), root) == 0
    assert as_nobody(lambda control: control.status(), root) == 0
    assert as_nobody(lambda control: control.disarm(), root) == 0
    assert as_nobody(lambda control: control.filter(b""), root) == 0
    # changes() would need root for its buffer already.
    assert as_nobody(lambda control: control._request(CMD_WATCH, []), root) == 0
    assert not kprobes()


def test_random_messages_neither_arm_nor_harm(bare: Bare) -> None:
    # GIVEN any number of attributes of any length, which is sometimes not that in their header
    chance = random.Random(23)
    family = bare.control._socket.prid

    def attribute() -> bytes:
        data = chance.randbytes(chance.choice((0, 1, 3, 4, 8, 300, 5000)))
        length = 4 + len(data) if chance.random() < 0.7 else chance.randrange(1 << 16)
        return struct.pack("=HH", length, chance.randrange(30)) + data + bytes(-len(data) % 4)

    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_GENERIC) as sock:
        sock.bind((0, 0))
        sock.settimeout(PATIENCE)
        for turn in range(499):
            command = chance.choice((CMD_ARM, CMD_DISARM, CMD_FILTER, 9, 255))
            body = struct.pack("=BBH", command, chance.randrange(3), 0)
            body += b"".join(attribute() for _ in range(chance.randrange(6)))
            head = struct.pack("=IHHII", 16 + len(body), family, REQUEST_ACK, turn, 0)
            # WHEN sent, THEN each is refused
            sock.sendall(head + body)
            answer = sock.recv(1 << 16)
            kind, _, answered = struct.unpack_from("=HHI", answer, 4)
            assert (kind, answered) == (NLMSG_ERROR, turn)
            assert struct.unpack_from("=i", answer, 16)[0] < 0, head + body
    # AND nothing has changed
    assert bare.control.status().state == "idle"
    assert references() == 0
