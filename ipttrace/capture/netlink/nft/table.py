# SPDX-License-Identifier: GPL-2.0-only
"""The flip table: the nft table that sets nf_trace on packets that match the filter.

One for each traced namespace.  Its chains that flip precede all others.  It is owned by the socket
that made it, so that the kernel removes it however ipttrace ends.  Kernels before 5.12
have no owned tables: there its name holds the process id, and stale.remove_stale removes the
tables of dead processes.  Must not read trace messages.
"""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Callable, Container, Iterable
from functools import partial
from typing import Final

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.filter.nft import Compiled
from ipttrace.capture.netlink.events import PASSED
from ipttrace.capture.netlink.nft import wire, xt_bpf
from ipttrace.capture.netlink.nft.dump import Devices
from ipttrace.capture.netlink.nft.flip_rules import COUNTER, FlipRules
from ipttrace.capture.netlink.nft.stale import own_name
from ipttrace.capture.netlink.nft.wire import NftSocket, Refused, Request, capture_error
from ipttrace.netfilter import (
    NFPROTO_ARP,
    NFPROTO_BRIDGE,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFPROTO_NETDEV,
)

_FIRST_PRIORITY: Final = -(1 << 31)  # before all other chains, and before defragmentation
_LAST_PRIORITY: Final = (1 << 31) - 1
_POSTROUTING: Final = 4
_OWNER: Final = 0x2  # NFT_TABLE_F_OWNER
_WITHOUT_POSTROUTING: Final = (NFPROTO_ARP, NFPROTO_BRIDGE, NFPROTO_NETDEV)
# Chain and hook: NF_INET_* and NF_BR_* have the same numbers, NF_ARP_* others.
_CHAINS: Final = ((b"prerouting", 0), (b"output", 3))
_ARP_CHAINS: Final = ((b"input", 0), (b"output", 1))
_DEVICE_CHAINS: Final = ((b"ingress", 0),)


class FlipTable:
    """The flip table of the namespace in which it is made.  For one thread at a time."""

    def __init__(
        self, *, owner: bool = True, inet: bool = True, match: bool = True, exact: bool = False
    ) -> None:
        """`owner`, `inet`, `match`: try what kernels may lack: owned tables, family inet, xt_bpf.

        `exact`: refuse filters that would flip further packets.  Raises CaptureError.
        """
        self._want_owner = owner
        self._want_inet = inet
        self._want_match = match
        self._must_be_exact = exact
        self._inexact: set[int] = set()  # NFPROTO_* that `install` was called for
        self.name: Final = own_name()
        self.owned = False  # by the socket
        # NFPROTO_* that `install` was called for → those in which the table exists: without
        # family inet, ip and ip6 take its place.
        self._installed: dict[int, tuple[int, ...]] = {}
        self._reporting: set[int] = set()  # the families with the chain PASSED
        self.devices: Devices = ()  # where the chain of NFPROTO_NETDEV is hooked
        self._removed_counts = (0, 0)  # packets and bytes, of tables removed since
        self._carried = b""  # the match of packets that were flipped elsewhere
        self._socket = NftSocket()

    def __enter__(self) -> FlipTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def portid(self) -> int:
        """The netlink address of the socket that owns the table."""
        return self._socket.portid

    @property
    def installed(self) -> set[int]:
        """The families, NFPROTO_*, that `install` was called for."""
        return set(self._installed)

    @property
    def exact(self) -> bool:
        """Whether it flips exactly the packets that the filter matches; else also others."""
        return not self._inexact

    @property
    def families(self) -> tuple[int, ...]:
        """The families, NFPROTO_*, in which the table exists."""
        return tuple(family for tables in self._installed.values() for family in tables)

    def install(
        self,
        compiled: Compiled,
        families: Iterable[int] = (NFPROTO_INET,),
        devices: Devices = (),
    ) -> None:
        """Makes the table, which flips packets that match `compiled` from now on.

        `families`: any of NFPROTO_INET, _BRIDGE, _ARP, _NETDEV; ARP packets are flipped only
        if there is no filter; `devices`: of NFPROTO_NETDEV, which flips what they receive.
        Tables of other families stay as they are.  Raises CaptureError, with none of these
        families installed.
        """
        wanted = list(families)
        if NFPROTO_NETDEV in wanted:
            self.devices = devices
        if self.installed & set(wanted):
            raise CaptureError(f"the nft table {self.name.decode()} is installed already")
        try:
            for family in wanted:
                self._with_rules(compiled, [family], partial(self._install, family=family))
        except BaseException as error:
            self.remove(wanted)
            if isinstance(error, Refused):
                raise self._capture_error(error) from error
            raise

    def replace(self, compiled: Compiled) -> None:
        """Replaces the filter in all families at once; counters stay.

        Raises CaptureError.
        """

        def change(rules: FlipRules) -> None:
            requests = []
            for family in self.families:
                for chain, _ in _chains(family):
                    requests.append(self._flush_chain(family, chain))
                requests += self._rules(rules, family)
            if requests:
                self._socket.commit(requests)

        try:
            self._with_rules(compiled, self._installed, change)
        except Refused as error:
            raise self._capture_error(error) from error

    def report_passed(self) -> None:
        """Adds the chain PASSED behind all others at POSTROUTING, if it is not there.

        The kernel reports flipped packets that reach it, as of every chain.  A kernel that
        refuses it reports none.
        """
        for family in self.families:
            if family in self._reporting or family in _WITHOUT_POSTROUTING:
                continue
            self._reporting.add(family)
            chain = self._new_chain(family, PASSED, _POSTROUTING, _LAST_PRIORITY)
            with contextlib.suppress(Refused):
                self._socket.commit([chain])

    def counted(self) -> tuple[int, int]:
        """Packets and bytes flipped since the table was first installed.  Raises CaptureError."""
        packets, octets = self._removed_counts
        try:
            for family in self.families:
                more = self._counter(family)
                packets, octets = packets + more[0], octets + more[1]
        except Refused as error:
            raise self._capture_error(error) from error
        return packets, octets

    def remove(self, families: Iterable[int] | None = None) -> None:
        """Removes the table: no packet is flipped after this.  `counted` stays valid.

        `families`: only of these that `install` was called for.  Raises CaptureError.
        """
        for family in list(self._installed if families is None else families):
            for one in self._installed.get(family, ()):
                self._remove(one)
            self._installed.pop(family, None)
            self._inexact.discard(family)

    def forget_deleted(self, tables: Container[tuple[int, str]]) -> bool:
        """Notes where the table was deleted, so that it can be installed again.

        `tables`: those that exist, by family and name.  Returns whether one is gone.
        Raises CaptureError.
        """
        name = self.name.decode()
        gone = [
            wanted
            for wanted, families in self._installed.items()
            if any((family, name) not in tables for family in families)
        ]
        self.remove(gone)
        return bool(gone)

    def close(self) -> None:
        """Removes the table and closes the socket, which holds the namespace."""
        if self._socket.fileno() < 0:
            return
        try:
            self.remove()
        finally:
            self._socket.close()

    @property
    def carries(self) -> bool:
        """Whether it flips more than packets that match the filter: see `carry`."""
        return bool(self._carried)

    def carry(self, descriptor: int) -> None:
        """Lets the next `install` or `replace` flip what this socket filter matches too; -1: none.

        Where the kernel cannot run it so, only packets that match the filter are flipped.
        """
        self._carried = xt_bpf.of_descriptor(descriptor) if descriptor >= 0 else b""

    def _with_rules(
        self, compiled: Compiled, families: Iterable[int], make: Callable[[FlipRules], None]
    ) -> None:
        """See _with_matches; without the match of `carry` if the kernel refuses that."""
        before = self.installed
        try:
            self._with_matches(compiled, families, make)
        except Refused:
            if not self._carried:
                raise
            self._carried = b""
            self.remove(self.installed - before)
            self._with_matches(compiled, families, make)

    def _with_matches(
        self, compiled: Compiled, families: Iterable[int], make: Callable[[FlipRules], None]
    ) -> None:
        """Calls `make` with what matches the packets that `compiled` does, or if need be more.

        `families`: those that `install` was or is called for.  Raises Refused, CaptureError.
        """
        wanted = set(families)
        if not compiled.exact and self._make_exact(compiled.program, wanted, make):
            self._inexact -= wanted
            return
        if not compiled.exact and self._must_be_exact:
            raise CaptureError(xt_bpf.REFUSAL)
        make(FlipRules.of(compiled))
        self._inexact = self._inexact - wanted if compiled.exact else self._inexact | wanted

    def _make_exact(
        self, program: bytes, families: set[int], make: Callable[[FlipRules], None]
    ) -> bool:
        """Calls `make` with a match that runs `program`; returns whether the kernel takes it."""
        if not self._want_match:
            return False
        before = self.installed
        with xt_bpf.expression(program) as match:
            if match is None:
                return False
            try:
                make(FlipRules((match,)))
            except Refused:
                # Without the match, the same refusal comes again if that is not the reason.
                self.remove(families - before)
                return False
        return True

    def _install(self, rules: FlipRules, family: int) -> None:
        if family == NFPROTO_INET and not self._want_inet:
            return self._install_both(rules)
        try:
            self._create(rules, family, family)
        except Refused as refused:
            # ENOENT: the kernel was built without chains of this family.
            if family == NFPROTO_INET and (refused.errno, refused.kind) in (
                (errno.ENOENT, wire.NEWCHAIN),
                (errno.EAFNOSUPPORT, wire.NEWTABLE),
            ):
                return self._install_both(rules)
            raise
        return None

    def _install_both(self, rules: FlipRules) -> None:
        self._create(rules, NFPROTO_IPV4, NFPROTO_INET)
        try:
            self._create(rules, NFPROTO_IPV6, NFPROTO_INET)
        except Refused as refused:
            if refused.kind not in (wire.NEWCHAIN, wire.NEWTABLE) or refused.errno not in (
                errno.ENOENT,
                errno.EAFNOSUPPORT,
            ):
                raise

    def _create(self, rules: FlipRules, family: int, wanted: int) -> None:
        # Owned tables are tried until the kernel has refused one.
        for owned in (True, False):
            if owned and not self._want_owner:
                continue
            try:
                self._socket.commit(self._new_table(rules, family, owned=owned))
            except Refused as refused:
                unknown = refused.errno in (errno.EINVAL, errno.EOPNOTSUPP)
                if owned and unknown and refused.kind == wire.NEWTABLE:
                    self._want_owner = False
                    continue
                raise
            self.owned = owned
            self._installed[wanted] = (*self._installed.get(wanted, ()), family)
            return

    def _new_table(self, rules: FlipRules, family: int, *, owned: bool) -> list[Request]:
        new = wire.CREATE | wire.EXCL
        flags = wire.number(2, _OWNER) if owned else b""
        requests = [Request(wire.NEWTABLE, family, wire.text(1, self.name) + flags, new)]
        counter = wire.text(1, self.name) + wire.text(2, COUNTER)
        # A named counter outlives the rules that count in it.
        counter += wire.number(3, wire.COUNTER) + wire.nested(4)
        requests.append(Request(wire.NEWOBJ, family, counter, new))
        for chain, hook in _chains(family):
            requests.append(self._new_chain(family, chain, hook, _FIRST_PRIORITY))
        return requests + self._rules(rules, family)

    def _new_chain(self, family: int, chain: bytes, hook: int, priority: int) -> Request:
        position = wire.number(1, hook) + wire.number(2, priority & 0xFFFFFFFF)
        if family == NFPROTO_NETDEV:
            position += wire.nested(4, *(wire.text(kind, name) for kind, name in self.devices))
        base = wire.text(1, self.name) + wire.text(3, chain) + wire.nested(4, position)
        base += wire.number(5, 1) + wire.text(7, b"filter")
        return Request(wire.NEWCHAIN, family, base, wire.CREATE | wire.EXCL)

    def _flush_chain(self, family: int, chain: bytes) -> Request:
        return Request(wire.DELRULE, family, wire.text(1, self.name) + wire.text(2, chain))

    def _rules(self, rules: FlipRules, family: int) -> list[Request]:
        requests = []
        for chain, _ in _chains(family):
            where = wire.text(1, self.name) + wire.text(2, chain)
            for rule in rules.expressions(family, self._carried):
                body = where + wire.nested(4, rule)
                requests.append(Request(wire.NEWRULE, family, body, wire.CREATE | wire.APPEND))
        return requests

    def _counter(self, family: int) -> tuple[int, int]:
        wanted = wire.text(1, self.name) + wire.text(2, COUNTER) + wire.number(3, wire.COUNTER)
        for _, found in self._socket.ask(Request(wire.GETOBJ, family, wanted)):
            inner = wire.attributes(found.get(4, b""))
            if len(inner.get(1, b"")) == 8 and len(inner.get(2, b"")) == 8:
                octets, packets = struct.unpack(">QQ", inner[1] + inner[2])
                return packets, octets
        raise Refused(errno.ENOENT, wire.GETOBJ)

    def _remove(self, family: int) -> None:
        """Removes the family's table; a table that is gone already is no error."""
        self._reporting.discard(family)
        chains = [self._flush_chain(family, chain) for chain, _ in _chains(family)]
        try:
            # Without rules the counter no longer changes: the last value is exact.
            self._socket.commit(chains)
            packets, octets = self._counter(family)
            before = self._removed_counts
            self._removed_counts = (before[0] + packets, before[1] + octets)
            self._socket.commit([Request(wire.DELTABLE, family, wire.text(1, self.name))])
        except Refused as error:
            if error.errno != errno.ENOENT:
                raise self._capture_error(error) from error

    def _capture_error(self, error: Refused) -> CaptureError:
        name = self.name.decode()
        if error.errno == errno.ENOENT and error.kind in (wire.DELRULE, wire.GETOBJ):
            return CaptureError(
                f"another program deleted the nft table {name}: start the trace again"
            )
        if error.errno == errno.ENOENT and error.kind == wire.NEWCHAIN:
            return CaptureError("this kernel's nf_tables has no chains for a family to be traced")
        if error.errno == errno.ENOENT:
            return CaptureError(
                "this kernel's nf_tables lacks expressions that tracing needs: try modprobe "
                "nft_objref nft_counter"
            )
        if error.errno == errno.EEXIST:
            return CaptureError(f"this process already traces here: the nft table {name} exists")
        return capture_error(error.errno, f"the nft table {name}")


def _chains(family: int) -> tuple[tuple[bytes, int], ...]:
    return {NFPROTO_ARP: _ARP_CHAINS, NFPROTO_NETDEV: _DEVICE_CHAINS}.get(family, _CHAINS)
