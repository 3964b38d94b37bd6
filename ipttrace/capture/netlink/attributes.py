# SPDX-License-Identifier: GPL-2.0-only
"""Parses the netlink attributes of many messages at once, as columns.

Messages are the rows of one array, as they were read.  Lengths in messages are not
trusted: an attribute that reaches beyond its message ends it.  Layout: linux/netlink.h.
Must not do I/O, and must not loop over messages in Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

NLMSG_HEADER: Final = 16  # struct nlmsghdr
NFGEN: Final = NLMSG_HEADER + 4  # and struct nfgenmsg: then a netfilter message's attributes begin

# Netfilter's messages have some 20 attributes; what follows the first 64 is ignored.
_MOST: Final = 64
_TYPE: Final = 0x3FFF  # NLA_TYPE_MASK


@dataclass(frozen=True, slots=True)
class Attributes:
    """The attributes of n messages: `data`, uint8, shape (n, width), has their values.

    `at`, `size`: offset and length of each value, int32, shape (types, n); `at` is 0 if
    there is none.  Of several attributes of one type, the last counts.
    """

    data: Array
    at: Array
    size: Array

    def has(self, kind: int, size: int = 0) -> Array:
        """Which messages have the attribute, with `size` bytes or more: bool, shape (n,)."""
        found: Array = (self.at[kind] > 0) & (self.size[kind] >= size)
        return found

    def integer(self, kind: int, dtype: str) -> Array:
        """The values as `dtype`, shape (n,); 0 if there is none or it is too short."""
        wanted = np.dtype(dtype)
        found = np.zeros(len(self.data), wanted)
        which = np.flatnonzero(self.has(kind, wanted.itemsize))
        if len(which):
            at = self.at[kind][which, None] + np.arange(wanted.itemsize)
            found[which] = self.data[which[:, None], at].view(wanted)[:, 0]
        return found

    def bytes(self, kind: int, most: int) -> Array:
        """The first `most` bytes of the values, padded with zeros: uint8, shape (n, most)."""
        found = np.zeros((len(self.data), most), np.uint8)
        which = np.flatnonzero(self.at[kind])
        if len(which):
            sizes = np.minimum(self.size[kind][which], most)
            longest = int(sizes.max())
            column = np.arange(longest)
            at = np.minimum(self.at[kind][which, None] + column, self.data.shape[1] - 1)
            found[which, :longest] = self.data[which[:, None], at] * (column < sizes[:, None])
        return found


def attributes(data: Array, lengths: Array, start: Array | int, types: int) -> Attributes:
    """Finds the attributes of types below `types`.

    `data`: uint8, shape (n, width), C-contiguous, width a multiple of four; `lengths`:
    where each message ends, shape (n,); `start`: where the first attribute begins, a
    multiple of four, one for all or shape (n,).
    """
    count, width = data.shape
    at = np.zeros((types, count), np.int32)
    size = np.zeros((types, count), np.int32)
    halves = data.view(np.uint16)  # both fields of the head, in host order
    ends = np.minimum(lengths, width).astype(np.int32)
    here = np.broadcast_to(np.asarray(start, np.int32), (count,)).copy()
    alive = np.flatnonzero(here + 4 <= ends)
    for _ in range(_MOST):
        if not len(alive):
            break
        where = here[alive]
        length = halves[alive, where >> 1].astype(np.int32)
        kind = halves[alive, (where >> 1) + 1] & _TYPE
        good = (length >= 4) & (where + length <= ends[alive])
        if not good.all():
            alive, where, length, kind = alive[good], where[good], length[good], kind[good]
        known = kind < types
        if known.all():
            at[kind, alive] = where + 4
            size[kind, alive] = length - 4
        else:
            at[kind[known], alive[known]] = where[known] + 4
            size[kind[known], alive[known]] = length[known] - 4
        after = where + ((length + 3) & ~3)
        here[alive] = after
        alive = alive[after + 4 <= ends[alive]]
    return Attributes(data, at, size)
