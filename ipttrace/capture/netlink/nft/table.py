# SPDX-License-Identifier: GPL-2.0-only
"""The table that turns tracing on for packets that the filter takes, in one namespace.

It comes before every other chain, and belongs to the socket that made it: however
ipttrace ends, the kernel removes it.  Kernels before 5.12 have no such tables; there
the table bears the name of the process, and `clean_stale` removes those of dead ones.
Must not read traces.
"""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter.nft import Compiled
from ipttrace.capture.netlink.nft import wire
from ipttrace.capture.netlink.nft.wire import NftSocket, Order, Refused, in_words
from ipttrace.netfilter import NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6

_COUNTER: Final = b"flipped"
_FIRST: Final = -(1 << 31)  # before all other chains, defragmentation included
_OWNER: Final = 0x2  # NFT_TABLE_F_OWNER
# Hooks: NF_INET_* and NF_BR_* number alike, NF_ARP_* do not.
_CHAINS: Final = ((b"prerouting", 0), (b"output", 3))
_ARP_CHAINS: Final = ((b"input", 0), (b"output", 1))
_ETHERTYPES: Final = (0x0800, 0x86DD)
_NAME: Final = re.compile(rb"ipttrace-(\d{1,10})-(\d{1,20})")


class FlipTable:
    """One namespace's table; of the calling thread's when it is made.  One thread at a time."""

    def __init__(self, *, owner: bool = True, inet: bool = True) -> None:
        """`owner`, `inet`: try what old kernels do not have.  Raises CaptureError."""
        self._want_owner = owner
        self._want_inet = inet
        self.name: Final = _own_name()
        self.owned = False  # by the socket
        self.families: tuple[int, ...] = ()  # where the table is: NFPROTO_*
        self._before = (0, 0)  # of tables that were removed
        self._socket = NftSocket()

    def __enter__(self) -> FlipTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def portid(self) -> int:
        """The address of the socket that owns the table."""
        return self._socket.portid

    def install(self, compiled: Compiled, families: Iterable[int] = (NFPROTO_INET,)) -> None:
        """Flips from now on what `compiled` takes.  `families`: of NFPROTO_INET, _BRIDGE, _ARP.

        ARP packets are flipped only where there is no filter.  Raises CaptureError, and
        then nothing is installed.
        """
        if self.families:
            raise CaptureError(f"the nft table {self.name.decode()} is installed already")
        try:
            for family in families:
                self._install(compiled, family)
        except BaseException as error:
            self.remove()
            if isinstance(error, Refused):
                raise self._in_words(error) from error
            raise

    def replace(self, compiled: Compiled) -> None:
        """Another filter, at once in all families; what was counted stays.  Raises CaptureError."""
        orders = []
        for family in self.families:
            for chain, _ in _chains(family):
                place = wire.text(1, self.name) + wire.text(2, chain)
                orders.append(Order(wire.DELRULE, family, place))
            orders += self._rules(compiled, family)
        if orders:
            self._commit(orders)

    def counted(self) -> tuple[int, int]:
        """Packets and bytes flipped since the beginning.  Raises CaptureError."""
        packets, octets = self._before
        try:
            for family in self.families:
                more = self._counter(family)
                packets, octets = packets + more[0], octets + more[1]
        except Refused as error:
            raise self._in_words(error) from error
        return packets, octets

    def remove(self) -> None:
        """Flips no more, and the table is gone.  What was counted can still be asked for."""
        for family in self.families:
            self._remove(family)
        self.families = ()

    def close(self) -> None:
        """Removes the table, and lets go of the namespace."""
        if self._socket.fileno() < 0:
            return
        try:
            self.remove()
        finally:
            self._socket.close()

    def _install(self, compiled: Compiled, family: int) -> None:
        if family == NFPROTO_INET and not self._want_inet:
            return self._install_both(compiled)
        try:
            self._create(compiled, family)
        except Refused as refused:
            # Chains of a family that the kernel was built without are not found.
            if family == NFPROTO_INET and (refused.errno, refused.order) in (
                (errno.ENOENT, wire.NEWCHAIN),
                (errno.EAFNOSUPPORT, wire.NEWTABLE),
            ):
                return self._install_both(compiled)
            raise
        return None

    def _install_both(self, compiled: Compiled) -> None:
        self._create(compiled, NFPROTO_IPV4)
        try:
            self._create(compiled, NFPROTO_IPV6)
        except Refused as refused:
            if refused.order not in (wire.NEWCHAIN, wire.NEWTABLE) or refused.errno not in (
                errno.ENOENT,
                errno.EAFNOSUPPORT,
            ):
                raise

    def _create(self, compiled: Compiled, family: int) -> None:
        # Only the first try tells whether the kernel has tables with owners.
        for owned in (True, False):
            if owned and not self._want_owner:
                continue
            try:
                self._socket.commit(self._orders(compiled, family, owned=owned))
            except Refused as refused:
                unknown = refused.errno in (errno.EINVAL, errno.EOPNOTSUPP)
                if owned and unknown and refused.order == wire.NEWTABLE:
                    self._want_owner = False
                    continue
                raise
            self.owned = owned
            self.families = (*self.families, family)
            return

    def _orders(self, compiled: Compiled, family: int, *, owned: bool) -> list[Order]:
        new = wire.CREATE | wire.EXCL
        flags = wire.number(2, _OWNER) if owned else b""
        orders = [Order(wire.NEWTABLE, family, wire.text(1, self.name) + flags, new)]
        counter = wire.text(1, self.name) + wire.text(2, _COUNTER)
        # A counter of its own outlives the rules that count in it.
        counter += wire.number(3, wire.COUNTER) + wire.nested(4)
        orders.append(Order(wire.NEWOBJ, family, counter, new))
        for chain, hook in _chains(family):
            place = wire.number(1, hook) + wire.number(2, _FIRST & 0xFFFFFFFF)
            made = wire.text(1, self.name) + wire.text(3, chain) + wire.nested(4, place)
            made += wire.number(5, 1) + wire.text(7, b"filter")
            orders.append(Order(wire.NEWCHAIN, family, made, new))
        return orders + self._rules(compiled, family)

    def _rules(self, compiled: Compiled, family: int) -> list[Order]:
        if family == NFPROTO_ARP and compiled.program:
            return []
        flip = wire.count(_COUNTER) + wire.trace() + wire.accept()
        rules = []
        if family == NFPROTO_BRIDGE and compiled.program:
            # A filter is about IP: bytes of something else could look like it.
            rules.append(wire.no_protocol_of(*_ETHERTYPES) + wire.accept())
        for checks in compiled.rules:
            said = b"".join(wire.said(*check.load, check.mask, check.compares) for check in checks)
            rules.append(said + flip)
        orders = []
        for chain, _ in _chains(family):
            place = wire.text(1, self.name) + wire.text(2, chain)
            for rule in rules:
                made = place + wire.nested(4, rule)
                orders.append(Order(wire.NEWRULE, family, made, wire.CREATE | wire.APPEND))
        return orders

    def _counter(self, family: int) -> tuple[int, int]:
        wanted = wire.text(1, self.name) + wire.text(2, _COUNTER) + wire.number(3, wire.COUNTER)
        for _, found in self._socket.ask(Order(wire.GETOBJ, family, wanted)):
            inner = wire.attributes(found.get(4, b""))
            if len(inner.get(1, b"")) == 8 and len(inner.get(2, b"")) == 8:
                octets, packets = struct.unpack(">QQ", inner[1] + inner[2])
                return packets, octets
        raise Refused(errno.ENOENT, wire.GETOBJ)

    def _remove(self, family: int) -> None:
        """Takes no error for one: what is gone is gone."""
        gone = Order(wire.DELTABLE, family, wire.text(1, self.name))
        places = [wire.text(1, self.name) + wire.text(2, chain) for chain, _ in _chains(family)]
        try:
            # Without rules the counter stands still, and none is lost.
            self._socket.commit([Order(wire.DELRULE, family, place) for place in places])
            packets, octets = self._counter(family)
            self._before = (self._before[0] + packets, self._before[1] + octets)
            self._socket.commit([gone])
        except Refused as error:
            if error.errno != errno.ENOENT:
                raise self._in_words(error) from error

    def _commit(self, orders: list[Order]) -> None:
        try:
            self._socket.commit(orders)
        except Refused as error:
            raise self._in_words(error) from error

    def _in_words(self, error: Refused) -> CaptureError:
        name = self.name.decode()
        if error.errno == errno.ENOENT and error.order in (wire.DELRULE, wire.GETOBJ):
            return CaptureError(f"another program has deleted the nft table {name}: trace anew")
        if error.errno == errno.ENOENT and error.order == wire.NEWCHAIN:
            return CaptureError("this kernel's nf_tables lacks the chains of a family to be traced")
        if error.errno == errno.ENOENT:
            return CaptureError(
                "this kernel's nf_tables lacks what tracing needs: try modprobe nft_objref "
                "nft_counter"
            )
        if error.errno == errno.EEXIST:
            return CaptureError(f"this process traces here already: the nft table {name} exists")
        return in_words(error.errno, f"the nft table {name}")


def clean_stale() -> list[str]:
    """Deletes the tables that dead processes left in the calling thread's namespace.

    Returns their names.  A process is known by its id and its start, as this
    process's /proc tells them: those of another pid namespace look dead.  Where tables
    have owners there is nothing to clean.  Raises CaptureError.
    """
    try:
        link = NftSocket()
    except CaptureError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EPROTONOSUPPORT:
            return []
        raise
    try:
        left = []
        for family, found in link.ask(Order(wire.GETTABLE, 0, b"", wire.DUMP)):
            name = found.get(1, b"").rstrip(b"\0")
            # Type 7 is NFTA_TABLE_OWNER: the socket is alive.
            if (match := _NAME.fullmatch(name)) and 7 not in found and not _alive(*match.groups()):
                left.append((family, name))
        gone = []
        for family, name in left:
            try:
                link.commit([Order(wire.DELTABLE, family, wire.text(1, name))])
            except Refused as error:
                if error.errno != errno.ENOENT:
                    raise
            else:
                gone.append(name.decode())
        return list(dict.fromkeys(gone))
    except Refused as error:
        if error.errno == errno.EOPNOTSUPP:
            return []
        raise in_words(error.errno) from error
    finally:
        link.close()


def _chains(family: int) -> tuple[tuple[bytes, int], ...]:
    return _ARP_CHAINS if family == NFPROTO_ARP else _CHAINS


def _own_name() -> bytes:
    pid, start, _ = _process("self")
    return b"ipttrace-%d-%d" % (pid, start)


def _process(name: str) -> tuple[int, int, bytes]:
    """Process id, start in ticks and state, of /proc/`name`.  Raises CaptureError."""
    try:
        stat = (Path("/proc") / name / "stat").read_bytes()
        # The command's name, in brackets, may hold anything.
        fields = stat[stat.rindex(b")") + 1 :].split()
        return int(stat[: stat.index(b" ")]), int(fields[19]), fields[0]
    except (OSError, ValueError, IndexError) as error:
        raise CaptureError("/proc does not tell of this process: mount it") from error


def _alive(pid: bytes, start: bytes) -> bool:
    try:
        _, began, state = _process(str(int(pid)))
    except CaptureError:
        return False
    return began == int(start) and state not in (b"Z", b"X")
