# SPDX-License-Identifier: GPL-2.0-only
"""The structs of bpf/guard.h as numpy dtypes; a test compares every field with the header.

Must not import anything of ipttrace.
"""

from __future__ import annotations

from typing import Final

import numpy as np

RULES: Final = 1024
WORDS: Final = RULES // 64
SPANS: Final = 2048
SEVERAL: Final = 0xFFFF
CONTAINERS: Final = 256
COMM: Final = 16

# enum ipttrace_guard_call
CONNECT, ACCEPT, ARRIVAL, RECEIVE = range(4)
# enum ipttrace_guard_protocol
TCP, UDP, OTHER = range(3)
# enum ipttrace_guard_counter
DENIED, LOST = range(2)

DRY: Final = 0x01
PROCESS: Final = 0x02

VALUE_DTYPE: Final[np.dtype[np.void]] = np.dtype([("high", "<u8"), ("low", "<u8")])
_BITS: Final = ("<u8", (WORDS,))
VALUES_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [("from", VALUE_DTYPE, (SPANS,)), ("rules", "<u8", (SPANS, WORDS))]
)
NUMBERS_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [("from", "<u4", (SPANS,)), ("rules", "<u8", (SPANS, WORDS))]
)
POLICY_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("version", "<u4"),
        ("rules", "<u4"),
        ("dry", "<u4"),
        ("calls", "<u4"),
        ("remotes", "<u4"),
        ("locals", "<u4"),
        ("comms", "<u4"),
        ("remote_ports", "<u4"),
        ("local_ports", "<u4"),
        ("uids", "<u4"),
        ("containers", "<u4"),
        ("reserved", "<u4"),
        ("words", "<u2", (4,)),
        ("allow", *_BITS),
        ("call", "<u8", (4, WORDS)),
        ("protocol", "<u8", (4, WORDS)),
        ("any_container", *_BITS),
        ("cgroup", "<u8", (CONTAINERS,)),
        ("of_cgroup", "<u8", (CONTAINERS, WORDS)),
        ("remote", VALUES_DTYPE),
        ("local", VALUES_DTYPE),
        ("comm", VALUES_DTYPE),
        ("remote_port", NUMBERS_DTYPE),
        ("local_port", NUMBERS_DTYPE),
        ("uid", NUMBERS_DTYPE),
        ("remote_words", "<u2", (SPANS,)),
        ("four", "<u2", (1 << 16,)),
    ]
)
EVENT_DTYPE: Final[np.dtype[np.void]] = np.dtype(
    [
        ("time", "<u8"),
        ("cgroup", "<u8"),
        ("version", "<u4"),
        ("rule", "<u4"),
        ("netns", "<u4"),
        ("pid", "<u4"),
        ("tid", "<u4"),
        ("uid", "<u4"),
        ("remote_port", "<u2"),
        ("local_port", "<u2"),
        ("call", "u1"),
        ("protocol", "u1"),
        ("flags", "u1"),
        ("reserved", "u1"),
        ("remote", VALUE_DTYPE),
        ("local", VALUE_DTYPE),
        ("comm", "S16"),
    ]
)
