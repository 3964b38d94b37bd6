# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's reasons for drops: what each means, and what to look at next.

Names of enum skb_drop_reason (include/net/dropreason-core.h and dropreason.h of Linux 5.17 and
later) and of the reasons of mac80211 and openvswitch.  In braces are facts of the packet, see
explain.py.  Must not do I/O.
"""

from __future__ import annotations

from typing import Final

_TCP_STATE: Final = "see `{exec}nstat -az 'TcpExt*'`"
_QDISC: Final = "see drops in `{tc} -s qdisc show dev {dev}`"
_NEIGHBOUR: Final = "see `{ip} neigh show {hop}`"
_MD5: Final = "compare the keys of both ends of the connection"
_ND: Final = "see `{ip} -6 neigh`, and the sender {src}"
_AGAIN: Final = "harmless unless frequent; " + _TCP_STATE

REASONS: Final[dict[str, str]] = {
    "NO_SOCKET": "no socket: nothing listens on {dst_end} ({proto}), or the connection is gone;"
    " see `{exec}ss -an{sockets}`",
    "SOCKET_CLOSE": "the socket was closed while the packet waited in its queue",
    "SOCKET_FILTER": "the socket's own filter (SO_ATTACH_FILTER) does not accept it",
    "SOCKET_RCVBUFF": "the socket's receive buffer is full: the program on {dst_end} reads too"
    " slowly; see Recv-Q in `{exec}ss -anm{sockets}`, `{exec}nstat -az UdpRcvbufErrors`, and"
    " sysctl net.core.rmem_max",
    "SOCKET_BACKLOG": "the socket's backlog is full: its program or the CPU is too slow; see"
    " `{exec}nstat -az TcpExtTCPBacklogDrop`, sysctl net.core.rmem_max",
    "PROTO_MEM": "{proto} has used up its memory on this host; see sysctl net.ipv4.{proto_low}_mem"
    " and /proc/net/sockstat",
    "UNIX_SKIP_OOB": "out-of-band data that the reader skipped",
    "PKT_TOO_SMALL": "it is shorter than its headers say, from {src}; look for a broken sender,"
    " device or tunnel",
    "TCP_CSUM": "bad TCP checksum from {src}; see `{exec}nstat -az TcpInCsumErrors`, and offloads"
    " in `{exec}ethtool -k {dev}`",
    "UDP_CSUM": "bad UDP checksum from {src}; see `{exec}nstat -az UdpInCsumErrors`, and offloads"
    " in `{exec}ethtool -k {dev}`",
    "ICMP_CSUM": "bad ICMP checksum from {src}; see `{exec}nstat -az IcmpInCsumErrors`",
    "IP_CSUM": "bad checksum of the IP header from {src}; see `{exec}nstat -az IpExtInCsumErrors`",
    "SKB_CSUM": "its checksum could not be computed or is bad; see `{exec}ethtool -k {dev}`",
    "NETFILTER_DROP": "a netfilter hook dropped it, and no traced rule did: conntrack (table full:"
    " see `{exec}conntrack -S`, sysctl net.netfilter.nf_conntrack_count and _max, dmesg), or a"
    " table that is not traced",
    "OTHERHOST": "it is for another host's link-layer address ({mac}): seen only because {dev} is"
    " promiscuous",
    "IP_INHDR": "bad IP header, or its TTL ended; see `{exec}nstat -az IpInHdrErrors`",
    "IP_RPFILTER": "RPF: the reverse path filter on {dev} does not expect {src} from there; see"
    " sysctl net.ipv4.conf.{dev}.rp_filter (and conf.all), `{ip} route get {src}`",
    "UNICAST_IN_L2_MULTICAST": "a unicast IP packet to a link-layer multicast address ({mac}); see"
    " sysctl net.ipv4.conf.{dev}.drop_unicast_in_l2_multicast",
    "XFRM_POLICY": "an IPsec policy does not allow it; see `{ip} xfrm policy`",
    "IP_NOPROTO": "this host has no handler for IP protocol {proto}",
    "TCP_AUTH_HDR": "TCP-MD5 or TCP-AO option twice or malformed, from {src}",
    "TCP_MD5NOTFOUND": f"a TCP-MD5 signature is required, but {{src}} sent none; {_MD5}",
    "TCP_MD5UNEXPECTED": f"{{src}} sent a TCP-MD5 signature that is not expected; {_MD5}",
    "TCP_MD5FAILURE": f"wrong TCP-MD5 signature from {{src}}; {_MD5}",
    "TCP_AONOTFOUND": f"a TCP-AO signature is required, but {{src}} sent none; {_MD5}",
    "TCP_AOUNEXPECTED": f"{{src}} sent a TCP-AO signature that is not expected; {_MD5}",
    "TCP_AOKEYNOTFOUND": f"the TCP-AO key that {{src}} uses is unknown here; {_MD5}",
    "TCP_AOFAILURE": f"wrong TCP-AO signature from {{src}}; {_MD5}",
    "TCP_FLAGS": "TCP flags ({flags}) that make no sense in this state of the connection",
    "TCP_ABORT_ON_DATA": "data for a connection that the program has closed: it was reset",
    "TCP_ZEROWINDOW": "data beyond a closed window: the program on {dst_end} does not read; see"
    " Recv-Q in `{exec}ss -an{sockets}`",
    "TCP_OLD_DATA": f"TCP data that had arrived before (a retransmission); {_AGAIN}",
    "TCP_OVERWINDOW": f"TCP data beyond the receive window; {_TCP_STATE}",
    "TCP_OFOMERGE": f"TCP data that is in the out-of-order queue already; {_AGAIN}",
    "TCP_RFC7323_PAWS": "TCP timestamp older than the last one (PAWS): often NAT in front of"
    " several hosts; see `{exec}nstat -az TcpExtPAWSEstab`",
    "TCP_OLD_SEQUENCE": f"old TCP sequence number (a duplicate); {_AGAIN}",
    "TCP_INVALID_SEQUENCE": f"TCP sequence number outside the window; {_TCP_STATE}",
    "TCP_INVALID_ACK_SEQUENCE": f"TCP acknowledges what is outside the window; {_TCP_STATE}",
    "TCP_RESET": "a TCP reset, which ended the connection or was not valid for it",
    "TCP_INVALID_SYN": "a SYN within an established TCP connection",
    "TCP_CLOSE": "for a TCP socket that is closed",
    "TCP_FASTOPEN": "TCP Fast Open: a segment that its request does not accept",
    "TCP_OLD_ACK": f"TCP acknowledges what was acknowledged before; {_AGAIN}",
    "TCP_TOO_OLD_ACK": f"TCP acknowledges what was acknowledged long ago; {_TCP_STATE}",
    "TCP_ACK_UNSENT_DATA": "TCP acknowledges data that was never sent: a forged or misrouted"
    " segment",
    "TCP_OFO_QUEUE_PRUNE": "the socket's memory is used up: out-of-order data was discarded; see"
    " `{exec}nstat -az TcpExtOfoPruned`, sysctl net.ipv4.tcp_rmem",
    "TCP_OFO_DROP": "out-of-order TCP data for which there is no room, or that was received; see"
    " `{exec}nstat -az TcpExtTCPOFODrop`",
    "TCP_MINTTL": "its TTL is below what the socket accepts (IP_MINTTL, as BGP sets it)",
    "IP_OUTNOROUTES": "no route to {dst}; see `{ip} route get {dst}`",
    "IP_INADDRERRORS": "{dst} cannot be reached from here: no forwarding, or an unreachable route;"
    " see sysctl net.ipv4.conf.{dev}.forwarding, `{ip} route get {dst} from {src} iif {dev}`",
    "IP_INNOROUTES": "no route to {dst}; see `{ip} route get {dst} from {src} iif {dev}`,"
    " `{ip} rule`",
    "IP_LOCAL_SOURCE": "martian source: {src}, from {dev}, is an address of this host; see sysctl"
    " net.ipv4.conf.{dev}.accept_local, dmesg (log_martians)",
    "IP_INVALID_SOURCE": "martian source: {src} cannot be the source of a packet; see dmesg"
    " (sysctl net.ipv4.conf.{dev}.log_martians)",
    "IP_LOCALNET": "martian: loopback addresses ({src} → {dst}) from {dev}; see sysctl"
    " net.ipv4.conf.{dev}.route_localnet",
    "IP_INVALID_DEST": "martian destination: {dst} cannot be reached by a packet from {dev}",
    "BPF_CGROUP_EGRESS": "a BPF program of the sender's cgroup dropped it; see `bpftool cgroup"
    " tree`",
    "IPV6DISABLED": "IPv6 is disabled on {dev}; see sysctl net.ipv6.conf.{dev}.disable_ipv6",
    "NEIGH_CREATEFAIL": "no entry could be made for the next hop {hop}: the neighbour table is full"
    " or {dev} is down; see `{ip} ntable show name {table}`, dmesg (table overflow)",
    "NEIGH_FAILED": "no neighbour: {hop} does not answer {resolution} on {dev}; " + _NEIGHBOUR,
    "NEIGH_QUEUEFULL": "too many packets wait for {hop} on {dev}, which does not answer"
    " {resolution}; " + _NEIGHBOUR + ", sysctl net.ipv4.neigh.{dev}.unres_qlen_bytes",
    "NEIGH_DEAD": "the neighbour entry of {hop} on {dev} was being removed; " + _NEIGHBOUR,
    "NEIGH_HH_FILLFAIL": "the link-layer header could not be made for {hop} on {dev}; "
    + _NEIGHBOUR,
    "TC_EGRESS": "a tc filter on {dev} dropped it (egress); see `{tc} -s filter show dev {dev}"
    " egress`",
    "TC_INGRESS": "a tc filter on {dev} dropped it (ingress); see `{tc} -s filter show dev {dev}"
    " ingress`",
    "TC_CHAIN_NOTFOUND": "tc: a filter jumps to a chain that does not exist; see `{tc} filter show"
    " dev {dev}`",
    "TC_COOKIE_ERROR": "tc: hardware and software filters do not fit together on {dev}",
    "TC_RECLASSIFY_LOOP": "tc: filters on {dev} classify again and again; see `{tc} filter show dev"
    " {dev}`",
    "SECURITY_HOOK": "a security module (SELinux, Smack, AppArmor, BPF LSM) does not allow it; see"
    " `ausearch -m avc` or dmesg",
    "QDISC_DROP": f"the queue of {{dev}} did not take it: it is full, or drops by itself (netem"
    f" loss, a policer); {_QDISC}",
    "QDISC_BURST_DROP": "too many CPUs send through {dev} at once; see sysctl"
    " net.core.qdisc_max_burst",
    "QDISC_OVERLIMIT": f"the queue of {{dev}} is full; {_QDISC}",
    "QDISC_CONGESTED": f"{{dev}} is congested: its queue drops early (AQM); {_QDISC}",
    "CAKE_FLOOD": f"cake on {{dev}}: an unresponsive flow was throttled; {_QDISC}",
    "FQ_BAND_LIMIT": f"fq on {{dev}}: too many packets of this priority wait; {_QDISC}",
    "FQ_HORIZON_LIMIT": f"fq on {{dev}}: it was to be sent too far in the future; {_QDISC}",
    "FQ_FLOW_LIMIT": f"fq on {{dev}}: too many packets of this flow wait; {_QDISC}",
    "CPU_BACKLOG": "the CPU's backlog is full, or RPS limits the flow: too many packets for one"
    " CPU; see sysctl net.core.netdev_max_backlog, column 2 of /proc/net/softnet_stat",
    "XDP": "an XDP program on {dev} dropped it; see `{ip} link show dev {dev}`, `bpftool net`",
    "UNHANDLED_PROTO": "nothing on this host handles this protocol (ethertype) on {dev}",
    "SKB_GSO_SEG": "a large packet could not be segmented for {dev}; see `{exec}ethtool -k {dev}`",
    "SKB_BAD_GSO": "a malformed large (GSO) packet",
    "SKB_UCOPY_FAULT": "the sender's memory could not be read (zero copy)",
    "DEV_HDR": "the device's own header is not valid (tun, virtio) on {dev}",
    "DEV_READY": "{dev} is not ready: down, or no program has it open; see `{ip} link show dev"
    " {dev}`",
    "FULL_RING": "the ring of {dev} is full: the program or peer behind it is too slow; see"
    " `{ip} -s link show dev {dev}`",
    "NOMEM": "no memory for it in the kernel; see `free`, dmesg",
    "HDR_TRUNC": "its headers are cut off, from {src}",
    "TAP_FILTER": "the filter of the program that has {dev} open dropped it (TUNSETFILTEREBPF)",
    "TAP_TXFILTER": "the address filter of {dev} dropped it (TUNSETTXFILTER)",
    "INVALID_PROTO": "it breaks the rules of its protocol, as an ICMP query to a broadcast address",
    "PKT_TOO_BIG": "too big: {len} bytes do not fit the MTU of {out}, and it must not be"
    " fragmented; see `{ip} link show dev {out}`, `{ip} route get {dst}`, and whether"
    " ICMP gets back to {src}",
    "DUP_FRAG": "a fragment that had arrived before; see `{exec}nstat -az IpReasmFails`",
    "FRAG_REASM_TIMEOUT": "reassembly timed out: not all fragments of the packet from {src} came;"
    " see `{exec}nstat -az IpReasmTimeout`, sysctl net.ipv4.ipfrag_time",
    "FRAG_TOO_FAR": "fragments of too many packets of {src} are mixed; see sysctl"
    " net.ipv4.ipfrag_max_dist",
    "IPV6_BAD_EXTHDR": "an IPv6 extension header that is malformed or not accepted, from {src}",
    "IPV6_NDISC_FRAG": f"a fragmented neighbour discovery message; {_ND}",
    "IPV6_NDISC_HOP_LIMIT": f"a neighbour discovery message that was routed (hop limit); {_ND}",
    "IPV6_NDISC_BAD_CODE": f"a neighbour discovery message with a bad code; {_ND}",
    "IPV6_NDISC_BAD_OPTIONS": f"a neighbour discovery message with bad options; {_ND}",
    "IPV6_NDISC_NS_OTHERHOST": "a neighbour solicitation for another host",
    "QUEUE_PURGE": "it waited in a queue that was emptied: the socket or device was closed",
    "PACKET_SOCK_ERROR": "a packet socket (as tcpdump's) could not take its copy",
    "VXLAN_INVALID_HDR": "the VXLAN header is not valid, from {src}",
    "VXLAN_VNI_NOT_FOUND": "no VXLAN device has this VNI; see `{ip} -d link show type vxlan`",
    "VXLAN_ENTRY_EXISTS": "VXLAN does not move a static entry; see `bridge fdb show dev {dev}`",
    "VXLAN_NO_REMOTE": "VXLAN: no remote end for this address; see `bridge fdb show dev {dev}`",
    "NO_TX_TARGET": "no target to send it to; see `bridge fdb show dev {dev}`",
    "MAC_INVALID_SOURCE": "its source hardware address is not valid",
    "IP_TUNNEL_ECN": "ECN bits inside and outside the tunnel contradict each other (RFC 6040)",
    "TUNNEL_TXINFO": "{dev} needs the tunnel's addresses from a route or program, and got none",
    "LOCAL_MAC": "its source hardware address is that of {dev} itself: look for a loop",
    "ARP_PVLAN_DISABLE": "ARP in a private VLAN; see sysctl net.ipv4.conf.{dev}.proxy_arp_pvlan",
    "MAC_IEEE_MAC_CONTROL": "for a link-local address (pause frames, LLDP) that is not forwarded",
    "BRIDGE_INGRESS_STP_STATE": "the bridge port {dev} does not forward now; see `bridge link show"
    " dev {dev}`",
    "BRIDGE_NON_FORWARDING_STATE": "the bridge port {dev} does not forward now; see `bridge link"
    " show dev {dev}`",
    "RECURSION_LIMIT": "it came back through the same devices too often: look for a loop of tunnels"
    " or bridges at {dev}",
    "DEV_STOPPED": "{dev} was stopped; see `{ip} link show dev {dev}`",
}
