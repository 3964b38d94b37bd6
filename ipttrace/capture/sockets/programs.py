# SPDX-License-Identifier: GPL-2.0-only
"""The programs of bpf/sockets.bpf.c: loaded, attached, and their counters.

Must not interpret records.
"""

from __future__ import annotations

import contextlib
from typing import Final

import numpy as np

from ipttrace.capture.errors import CaptureError
from ipttrace.capture.libbpf import Libbpf
from ipttrace.capture.libbpf.btf import BTF, functions
from ipttrace.capture.libbpf.counters import Counters
from ipttrace.capture.libbpf.objects import BpfObject
from ipttrace.capture.libbpf.ring import HEADER, Ring
from ipttrace.stream.record import SOCKET_DTYPE, Records

_OBJECT: Final = "sockets.bpf.o"
_TRACEPOINTS: Final = tuple(f"ipttrace_{name}" for name in ("retransmit", "read", "reset"))
# The programs by the function that each is attached to, at its beginning or its end.
_FUNCTIONS: Final = (
    ("inet_listen", "listen"),
    ("tcp_connect", "connect"),
    ("tcp_finish_connect", "finish"),
    ("tcp_conn_request", "syn"),
    ("tcp_conn_request", "syn_end"),
    ("security_socket_connect", "denied_connect"),
    ("security_socket_accept", "denied_accept"),
    ("tcp_make_synack", "synack"),
    ("tcp_check_req", "last_ack"),
    ("tcp_get_cookie_sock", "last_ack_cookie"),
    ("inet_csk_complete_hashdance", "child"),
    ("inet_csk_reqsk_queue_add", "cookie_child"),
    ("inet_csk_accept", "accept"),
    ("tcp_done", "done"),
    ("__tcp_close", "close"),
    ("tcp_disconnect", "disconnect"),
    ("inet_csk_listen_stop", "listen_stop"),
    ("tcp_v4_send_reset", "send_reset"),
    ("tcp_v6_send_reset", "send_reset6"),
    ("tcp_send_active_reset", "active_reset"),
    ("inet_csk_reqsk_queue_drop_and_put", "abandoned"),
    ("udp_lib_get_port", "udp_bound"),
    ("__ip4_datagram_connect", "udp_connect"),
    ("__ip6_datagram_connect", "udp_connect6"),
    ("skb_consume_udp", "udp_read"),
    ("__nf_conntrack_confirm", "confirm"),
)
# Attached when there is a reason: each connection pays for it.
_DENIED: Final = ("security_inet_conn_request", "ipttrace_denied")
_MODULES: Final = ("ipv6", "nf_conntrack")  # that functions may be in
# Of IPv6, conntrack and security modules, which a kernel need not have.
_OPTIONAL: Final = frozenset(
    (
        *("tcp_v6_send_reset", "__ip6_datagram_connect", "__nf_conntrack_confirm"),
        *("security_inet_conn_request", "security_socket_connect", "security_socket_accept"),
    )
)
# Without these no handshake can be followed.
_NEEDED: Final = frozenset(("tcp_conn_request", "tcp_make_synack", "inet_csk_accept"))


class Programs:
    """The programs; attached by `attach`."""

    def __init__(self, buffer: int, only_netns: int) -> None:
        """`buffer`: bytes of the ring, a power of two; `only_netns`: an inode, 0: all.

        Raises CaptureError with what is missing.
        """
        if not (BTF / "vmlinux").exists():
            raise CaptureError(f"the kernel has no BTF ({BTF / 'vmlinux'})")
        self._libbpf = libbpf = Libbpf()
        wanted = {function for function, _ in _FUNCTIONS} | {_DENIED[0]}
        found = set().union(*(functions(libbpf, module, wanted) for module in _MODULES))
        if missing := _NEEDED - found:
            raise CaptureError(f"this kernel has no function {min(missing)}")
        self.lacking = sorted(wanted - found - _OPTIONAL)
        names = [f"ipttrace_{name}" for function, name in _FUNCTIONS if function in found]
        self._denied = _DENIED[1] if _DENIED[0] in found else ""
        self._denials = False  # whether it is attached
        cpus = libbpf.lib.libbpf_num_possible_cpus()
        with contextlib.ExitStack() as stack:
            self._object = BpfObject(
                libbpf,
                _OBJECT,
                (*_TRACEPOINTS, *names),
                sizes={"ring": buffer, "counters": cpus},
                constants=only_netns.to_bytes(4, "little"),
                unattached=[self._denied] if self._denied else [],
            )
            stack.callback(self._object.close)
            self._ring = Ring(self._object.map_fd("ring"), buffer)
            stack.callback(self._ring.close)
            self._counters = Counters(self._object.map_fd("counters"), cpus)
            self._stack = stack.pop_all()

    def attach(self) -> None:
        """Attaches them.  Raises CaptureError."""
        self._object.attach()

    def see_denials(self) -> None:
        """From now on, SYNs that a security module does not let a listener take are known."""
        if self._denied and not self._denials:
            with contextlib.suppress(CaptureError):
                self._object.attach_also(self._denied)
            self._denials = True

    def detach(self) -> None:
        """Detaches them; what they have written can still be taken."""
        self._object.detach()
        self._denials = False

    def take(self) -> Records:
        """What has been written, in the order of the ring: shape (n,)."""
        words, starts, lengths = self._ring.take()
        starts = starts[lengths == SOCKET_DTYPE.itemsize]
        found = np.zeros(len(starts), SOCKET_DTYPE)
        if len(starts):
            each = starts[:, None] + np.arange(SOCKET_DTYPE.itemsize // 8)
            found.view(np.uint64)[:] = words[each].ravel()
        return found

    def written(self) -> int:
        """How many records have been written, as the kernel counts them."""
        return self._ring.written() // (SOCKET_DTYPE.itemsize + HEADER)

    def lost(self) -> int:
        """Records for which the ring had no room."""
        return self._counters.sums(1)[0]

    def missed(self) -> int:
        """How often a program could not run, since it was running on the same CPU."""
        return self._object.recursion_misses()

    def close(self) -> None:
        """Detaches and unloads the programs."""
        self._stack.close()
