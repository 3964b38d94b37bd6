# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's functions in which packets die: what that means where the reason does not say it.

Kernels before 5.17 have no reasons, and many drops of later ones have none.  Where a function
drops for several causes, the sentence names them all.  In braces are facts of the packet, see
explain.py.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

from ipttrace.trace.drops.reasons import REASONS

_RPF_OR_MARTIAN: Final = (
    "routing refused it as a martian: {src} → {dst} cannot come from {dev} (an address of this host"
    " or of loopback, or a broadcast as the source); see dmesg with sysctl"
    " net.ipv4.conf.{dev}.log_martians=1, `{ip} route get {dst} from {src} iif {dev}`"
)
_RPF_TOO: Final = (
    "routing refused it: the reverse path filter of {dev} does not expect {src} (see sysctl"
    " net.ipv4.conf.{dev}.rp_filter, `{ip} route get {src}`), or the addresses are martian (see"
    " dmesg with log_martians=1)"
)
_HOP_LIMIT: Final = (
    "its TTL ended here: {src} sent it with too small a TTL, or there is a routing loop; see"
    " `{ip} route get {dst}`, and `traceroute {dst}` from {src}"
)
_FORWARDING_OFF: Final = (
    "{dst} is not an address of this host, which does not forward what comes from {dev}; see"
    " `{exec}sysctl net.ipv4.ip_forward net.ipv4.conf.{dev}.forwarding`"
)
_REFUSED_BY_ROUTE: Final = (
    "a blackhole, unreachable or prohibit route, or rule, refuses {dst} (mark {mark}); see"
    " `{ip} rule`, `{ip} route get {dst} from {src} iif {dev}{with_mark}`"
)
_SIX_FORWARDING: Final = (
    "not forwarded: IPv6 forwarding is off (see sysctl net.ipv6.conf.all.forwarding), or it is a"
    " packet that must not be forwarded"
)
_NO_SOCKET_TCP: Final = (
    "TCP refused it: nothing listens on {dst_end} (see `{exec}ss -an{sockets}`), or its checksum or"
    " state is wrong (see `{exec}nstat -az 'Tcp*'`)"
)
_NO_SOCKET_UDP: Final = (
    "UDP refused it: no socket on {dst_end} (see `{exec}ss -anu`), or a bad checksum (see"
    " `{exec}nstat -az 'Udp*'`)"
)
_REASSEMBLY: Final = REASONS["FRAG_REASM_TIMEOUT"]
_BRIDGE: Final = (
    "the bridge did not forward it ({dev}); see `bridge link`, `bridge fdb`, `bridge vlan`"
)
_CONNTRACK: Final = (
    "conntrack dropped it: its table is full, or the packet does not fit a connection; see"
    " `{exec}conntrack -S`, sysctl net.netfilter.nf_conntrack_count and _max, dmesg"
)
_TUN: Final = (
    "{dev} could not take it: its queue is full or no program has it open; see"
    " `{ip} -s link show dev {dev}`"
)
_VETH: Final = "the other end of {dev} is down or too slow; see `{ip} -s link show dev {dev}`"

# A reason that means several things, in a function in which it means one.
BY_BOTH: Final[dict[tuple[str, str], str]] = {
    ("IP_INHDR", "ip_forward"): _HOP_LIMIT,
    ("IP_INHDR", "ip6_forward"): _HOP_LIMIT,
    ("IP_INADDRERRORS", "ip_error"): _FORWARDING_OFF,
    ("IP_INNOROUTES", "ip_error"): REASONS["IP_INNOROUTES"],
}

# Without a reason; the longest name with which a function begins counts.
BY_FUNCTION: Final[dict[str, str]] = {
    "ip_rcv_finish_core": _RPF_OR_MARTIAN,
    "ip_rcv_finish": _RPF_OR_MARTIAN,
    "ip_sublist_rcv": _RPF_OR_MARTIAN,
    "ip_list_rcv": _RPF_OR_MARTIAN,
    "ip_route_use_hint": _RPF_OR_MARTIAN,
    "ip_rcv_core": "bad IP header or checksum, or for another host's link-layer address ({mac});"
    " see `{exec}nstat -az 'Ip*'`",
    "ip_error": _REFUSED_BY_ROUTE,
    "ip_forward": "not forwarded: its TTL ended, or {len} bytes do not fit the MTU of {out} (DF);"
    " see `{exec}nstat -az IpInHdrErrors IpFragFails`, `{ip} route get {dst}`",
    "ip6_forward": _SIX_FORWARDING,
    "ip6_pkt_drop": "no route to {dst}, or one that is unreachable, prohibit or blackhole; see"
    " `{ip} -6 route get {dst} from {src} iif {dev}`, `{ip} -6 rule`",
    "ip6_rcv_core": "bad IPv6 header, or IPv6 is disabled on {dev}; see `{exec}nstat -az 'Ip6*'`",
    "ip6_mc_input": "this host is not a member of the group {dst} on {dev}; of ff02::1:ff…, an"
    " address is missing, or ARP and ND are off there; see `{ip} maddr show dev {dev}`,"
    " `{ip} addr show dev {dev}`",
    "ip_protocol_deliver_rcu": REASONS["IP_NOPROTO"],
    "ip6_protocol_deliver_rcu": REASONS["IP_NOPROTO"],
    "dst_discard": _REFUSED_BY_ROUTE,
    "fib_": _REFUSED_BY_ROUTE,
    "ip_finish_output2": REASONS["NEIGH_CREATEFAIL"],
    "ip6_finish_output2": REASONS["NEIGH_CREATEFAIL"],
    "ip_fragment": REASONS["PKT_TOO_BIG"],
    "ip_do_fragment": "it could not be fragmented for {out}; see `{exec}nstat -az IpFragFails`",
    "ip6_fragment": REASONS["PKT_TOO_BIG"],
    "tcp_v4_rcv": _NO_SOCKET_TCP,
    "tcp_v6_rcv": _NO_SOCKET_TCP,
    "tcp_v4_do_rcv": _NO_SOCKET_TCP,
    "tcp_v6_do_rcv": _NO_SOCKET_TCP,
    "tcp_add_backlog": REASONS["SOCKET_BACKLOG"],
    "tcp_conn_request": "the listening socket's queues are full, or the request is not acceptable;"
    " see `{exec}nstat -az TcpExtListenDrops TcpExtListenOverflows`, Recv-Q in `{exec}ss -lnt`",
    "tcp_rcv_state_process": "TCP: not acceptable in this state of the connection; see"
    " `{exec}nstat -az 'TcpExt*'`",
    "tcp_data_queue": "TCP data that was received before or does not fit the window; see"
    " `{exec}nstat -az 'TcpExt*'`",
    "tcp_validate_incoming": "TCP: outside the window, or an old timestamp; see"
    " `{exec}nstat -az 'TcpExt*'`",
    "__udp4_lib_rcv": _NO_SOCKET_UDP,
    "__udp6_lib_rcv": _NO_SOCKET_UDP,
    "udp_queue_rcv_one_skb": REASONS["SOCKET_RCVBUFF"],
    "udpv6_queue_rcv_one_skb": REASONS["SOCKET_RCVBUFF"],
    "__udp_enqueue_schedule_skb": REASONS["SOCKET_RCVBUFF"],
    "skb_consume_udp": "UDP: a bad checksum, found when the program read it",
    "udp_recvmsg": REASONS["UDP_CSUM"],
    "__skb_udp_": REASONS["UDP_CSUM"],
    "sock_queue_rcv_skb": REASONS["SOCKET_RCVBUFF"],
    "__sock_queue_rcv_skb": REASONS["SOCKET_RCVBUFF"],
    "raw_rcv": REASONS["SOCKET_RCVBUFF"],
    "icmp_rcv": "ICMP that this host ignores, or with a bad checksum; see"
    " `{exec}nstat -az 'Icmp*'`, sysctl net.ipv4.icmp_echo_ignore_all",
    "icmpv6_rcv": "ICMPv6 that this host ignores, or with a bad checksum; see"
    " `{exec}nstat -az 'Icmp6*'`",
    "arp_error_report": REASONS["NEIGH_FAILED"],
    "ndisc_error_report": REASONS["NEIGH_FAILED"],
    "ip6_link_failure": REASONS["NEIGH_FAILED"],
    "ipv4_link_failure": REASONS["NEIGH_FAILED"],
    "neigh_invalidate": REASONS["NEIGH_FAILED"],
    "__neigh_event_send": REASONS["NEIGH_QUEUEFULL"],
    "neigh_": REASONS["NEIGH_FAILED"],
    "arp_": "ARP that this host does not answer: not for an address on {dev}; see sysctl"
    " net.ipv4.conf.{dev}.arp_ignore, arp_filter",
    "ip_expire": _REASSEMBLY,
    "ip_frag_": _REASSEMBLY,
    "ip_defrag": "a fragment that does not fit the others of its packet, or no memory for it; see"
    " `{exec}nstat -az IpReasmFails`, sysctl net.ipv4.ipfrag_high_thresh",
    "inet_frag_": _REASSEMBLY,
    "ip6frag_expire_frag_queue": _REASSEMBLY,
    "ip6_frag_": _REASSEMBLY,
    "nf_ct_frag6_": _REASSEMBLY,
    "nf_hook_slow": REASONS["NETFILTER_DROP"],
    "nf_conntrack_": _CONNTRACK,
    "__nf_conntrack_": _CONNTRACK,
    "nf_ct_": _CONNTRACK,
    "nf_": "netfilter dropped it outside the tables",
    "nft_": REASONS["NETFILTER_DROP"],
    "br_nf_": "netfilter dropped it on the bridge; see sysctl net.bridge.bridge-nf-call-iptables",
    "br_": _BRIDGE,
    "__br_": _BRIDGE,
    "__netif_receive_skb_core": REASONS["UNHANDLED_PROTO"],
    "enqueue_to_backlog": REASONS["CPU_BACKLOG"],
    "do_xdp_generic": REASONS["XDP"],
    "sch_handle_ingress": REASONS["TC_INGRESS"],
    "sch_handle_egress": REASONS["TC_EGRESS"],
    "__dev_queue_xmit": REASONS["QDISC_DROP"],
    "__dev_xmit_skb": REASONS["QDISC_DROP"],
    "dev_qdisc_enqueue": REASONS["QDISC_DROP"],
    "sch_": REASONS["QDISC_DROP"],
    "netem_": REASONS["QDISC_DROP"],
    "pfifo_": REASONS["QDISC_DROP"],
    "fq_codel_": REASONS["QDISC_DROP"],
    "tbf_": REASONS["QDISC_DROP"],
    "htb_": REASONS["QDISC_DROP"],
    "qdisc_": "its queue on {dev} was emptied or changed; see `{tc} -s qdisc show dev {dev}`",
    "validate_xmit_": "{dev} could not send it: its checksum, segments or encryption failed",
    "dev_hard_start_xmit": "{dev} did not take it; see `{ip} -s link show dev {dev}`",
    "tun_net_xmit": _TUN,
    "tun_": _TUN,
    "tap_": _TUN,
    "veth_xmit": _VETH,
    "veth_": _VETH,
    "ip_tunnel_": "the tunnel {dev} did not take it; see `{ip} -d tunnel show`, `{ip} -s link show"
    " dev {dev}`",
    "vxlan_": "VXLAN did not take it; see `{ip} -d -s link show dev {dev}`",
    "gre_": "no GRE tunnel for it; see `{ip} -d tunnel show`",
    "xfrm_": REASONS["XFRM_POLICY"],
    "xfrm4_": REASONS["XFRM_POLICY"],
    "xfrm6_": REASONS["XFRM_POLICY"],
    "esp_": "IPsec could not decrypt or encrypt it; see `{ip} -s xfrm state`, /proc/net/xfrm_stat",
    "wg_": "WireGuard: no peer for {dst}, or no handshake; see `wg show {dev}`",
    "packet_rcv": "a packet socket (as tcpdump's) could not take its copy: the packet itself goes"
    " on",
    "tpacket_rcv": "a packet socket (as tcpdump's) could not take its copy: the packet itself goes"
    " on",
    "unix_": "a message between processes, not a packet of the network",
    "netlink_": "a message between processes and the kernel, not a packet of the network",
    "inet_csk_destroy_sock": REASONS["QUEUE_PURGE"],
    "skb_queue_purge": REASONS["QUEUE_PURGE"],
    "__skb_queue_purge": REASONS["QUEUE_PURGE"],
}
# As the first ones, on kernels that have no reason for the reverse path filter either.
WITHOUT_REASONS: Final = dict.fromkeys(
    ("ip_rcv_finish_core", "ip_rcv_finish", "ip_sublist_rcv", "ip_list_rcv", "ip_route_use_hint"),
    _RPF_TOO,
)
