# SPDX-License-Identifier: GPL-2.0-only
"""Damaged answers of the kernel to a dump cause no traceback and no endless loop."""

from __future__ import annotations

import errno
import random
import struct
from collections.abc import Callable

import pytest

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.netlink.nft.dump import ChainInfo, Dump, RuleExpressions, TableInfo
from ipttrace.capture.netlink.nft.wire import NftSocket, attribute, nested, number, text
from ipttrace.capture.rules import nft_expressions as nft_words

MUTATIONS = 10_000
GETTABLE, GETCHAIN, GETRULE, GETGEN = 1, 4, 7, 16
INET = 1


def wide(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">Q", value))


def expression(name: bytes, *inner: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *inner))


COUNTER = expression(b"counter", wide(1, 60), wide(2, 7))
RULE = nested(4, expression(b"meta", number(1, 1), number(2, 16)), COUNTER)
ANSWERS = {
    GETGEN: [number(1, 5) + text(3, b"test")],
    GETTABLE: [text(1, b"t") + number(2, 0) + wide(4, 3)],
    GETCHAIN: [
        text(1, b"t") + text(3, b"in") + nested(4, number(1, 1), number(2, 0xFFFFFF6A))
        + number(5, 0) + text(7, b"filter") + attribute(12, b"\0\x03hi\0"),
        text(1, b"t") + text(3, b"\xffx") + number(6, 1),
    ],
    GETRULE: [text(1, b"t") + text(2, b"in") + wide(3, handle) + RULE for handle in (4, 9, 7)],
}  # fmt: skip


class Kernel:
    """A socket to a kernel that answers with ANSWERS, changed by `spoil`."""

    def __init__(self, spoil: Callable[[bytes], bytes] = lambda data: data) -> None:
        self.spoil = spoil
        self.flags = 2  # NLM_F_MULTI
        self.error = 0
        self.sent = 0
        self._ready: list[bytes] = []

    def sendto(self, data: bytes, to: object) -> None:
        self.sent += 1
        assert self.sent < 1000, "endless requests"
        kind, _, sequence = struct.unpack_from("=HHI", data, 4)
        if self.error:
            body = struct.pack("=i", -self.error) + data[:16]
            self._ready.append(struct.pack("=IHHII", 36, 2, 0, sequence, 0) + body)
            return
        answer = b""
        for body in ANSWERS[kind & 0xFF]:
            message = struct.pack(">BBH", INET, 0, 5) + body
            head = struct.pack("=IHHII", 16 + len(message), 0xA00, self.flags, sequence, 0)
            answer += head + message
        done = struct.pack("=IHHIIi", 20, 3, 2, sequence, 0, 0)
        self._ready.append(self.spoil(answer + (b"" if kind & 0xFF == GETGEN else done)))

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if not self._ready:
            raise BlockingIOError
        return self._ready.pop(0)[:size], (0, 0)


def dump_of(kernel: Kernel) -> Dump:
    link = NftSocket.__new__(NftSocket)
    link.__dict__.update(_socket=kernel, _sequence=0)
    dump = Dump.__new__(Dump)
    dump.__dict__["_socket"] = link
    return dump


def test_a_dump_has_all_that_the_kernel_lists() -> None:
    dump = dump_of(Kernel())
    snapshot = dump.snapshot()
    assert snapshot.genid == 5
    assert snapshot.tables == {(INET, "t"): TableInfo(3, 0, None)}
    assert len(snapshot.chains[INET, "t", "in"].contents) == 3
    assert snapshot.chains == {
        (INET, "t", "in"): ChainInfo(
            1,
            -150,
            "filter",
            0,
            (),
            [4, 9, 7],
            "hi",
            contents=snapshot.chains[INET, "t", "in"].contents,
            verdicts=[None, None, None],
        ),
        (INET, "t", "\udcffx"): ChainInfo(None, None, "", None),
    }
    made = dump.rules()
    assert [rule[:4] for rule in made] == [(INET, "t", "in", handle) for handle in (4, 9, 7)]
    assert isinstance(made[0], RuleExpressions)
    assert nft_words.counter(made[0].expressions) == (7, 60)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Flips bits, sets wrong lengths, removes and inserts bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        if not changed:
            break
        at = rng.randrange(len(changed))
        damage = rng.randrange(5)
        if damage == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif damage == 1:
            at &= ~3
            changed[at : at + 2] = struct.pack("=H", rng.choice([0, 1, 3, 4, 5, 0xFFFF, 0x8000]))
        elif damage == 2:
            del changed[at:]
        elif damage == 3:
            del changed[at : at + rng.randrange(9)]
        else:
            changed[at:at] = rng.randbytes(rng.randrange(9))
    return bytes(changed)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_answers_give_a_snapshot_or_one_line(seed: int) -> None:
    rng = random.Random(seed)
    good = 0
    for _ in range(MUTATIONS // 4):
        # GIVEN a kernel whose every third answer is damaged
        kernel = Kernel(lambda data: mutated(rng, data) if rng.random() < 0.3 else data)
        dump = dump_of(kernel)
        # THEN there is a snapshot, or an error of one line
        message = "none"
        try:
            snapshot = dump.snapshot()
            for _, _, _, _, made in dump.rules():
                nft_words.counter(made)
                nft_words.iptables_prints_all(2, made)
        except CaptureError as error:
            message = str(error)
        else:
            good += 1
            for chain in snapshot.chains.values():
                assert all(0 <= handle < 1 << 64 for handle in chain.handles)
        assert len(message.splitlines()) == 1
    assert good > MUTATIONS // 20


def test_expressions_of_random_bytes_are_parsed_without_an_error() -> None:
    rng = random.Random(5)
    for _ in range(MUTATIONS):
        data = mutated(rng, RULE[4:])
        nft_words.counter(data)
        for family in (2, 10, 1):
            nft_words.iptables_prints_all(family, data)
    assert nft_words.counter(b"") is None
    assert nft_words.counter(expression(b"counter", attribute(1, b"\1"))) is None


def test_rules_that_change_all_the_time_give_an_error_of_one_line() -> None:
    kernel = Kernel()
    kernel.flags = 0x12  # and NLM_F_DUMP_INTR
    with pytest.raises(CaptureError, match=r"^nftables' rules change faster than .*listed$"):
        dump_of(kernel).snapshot()


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EPERM, "needs CAP_NET_ADMIN in the network namespace: run with sudo$"),
        (errno.EOPNOTSUPP, "this kernel has no nf_tables"),
        (errno.EINVAL, "^nf_tables: Invalid argument$"),
    ],
)
def test_a_kernel_that_refuses_gives_an_error_of_one_line(number: int, words: str) -> None:
    kernel = Kernel()
    kernel.error = number
    with pytest.raises(CaptureError, match=words):
        dump_of(kernel).genid()
