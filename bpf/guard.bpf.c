// SPDX-License-Identifier: GPL-2.0-only
/*
 * Denies connect(), accept() and what is received, by the rules in a map: BPF LSM.
 *
 * An attached program lasts as long as the process that holds its link; none is pinned.  The
 * rules are one value of an inner map: a program reads which one is current once, so each call
 * is decided by one set of rules, and never by parts of two.
 */

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "guard_call.h"

struct socket___guarded {
	struct sock___guarded *sk;
} ACCESS;

struct msghdr {
	void *msg_name;
	int msg_namelen;
} ACCESS;

struct request_sock {
	struct sock_common __req_common;
} ACCESS;

struct any_address {
	__u16 family;
	__be16 port;
	__be32 four; /* of IPv6: the flow label */
	__u8 six[16];
};

/*
 * `length`: of the address, as the process gave it.  An address of zeros is this host, as the kernel
 * reads it.
 */
static __always_inline int to_address(const struct sock___guarded *sk,
				      const void *address, int length,
				      const bool sends)
{
	struct any_address to = {};
	struct call call;

	if (!begin(&call, sk, IPTTRACE_GUARD_CONNECT, false) || !address ||
	    length < 8)
		return 0;
	bpf_probe_read_kernel(&to, 8, address);
	if (to.family == AF_INET6 && length >= 24)
		bpf_probe_read_kernel(&to, sizeof(to), address);
	/* A socket of IPv4 sends to it as if it were one of IPv4; connect() disconnects. */
	if (sends && to.family == AF_UNSPEC &&
	    sk->__sk_common.skc_family == AF_INET)
		to.family = AF_INET;
	if (to.family == AF_INET)
		set_four(&call.remote, to.four ?: bpf_htonl(LOOPBACK));
	else if (to.family == AF_INET6 && length >= 24)
		set_six(&call.remote, to.six);
	else
		return 0;
	if (!call.remote.high && !call.remote.low)
		call.remote.low = 1; /* ::1 */
	if (call.remote.low == MAPPED && !call.remote.high)
		call.remote.low |= LOOPBACK;
	call.remote_port = bpf_ntohs(to.port);
	return decide(&call, sk, true, false);
}

SEC("lsm/socket_connect")
int BPF_PROG(ipttrace_guard_connect, struct socket___guarded *socket,
	     void *address, int length)
{
	return to_address(socket->sk, address, length, false);
}

SEC("lsm/socket_sendmsg")
int BPF_PROG(ipttrace_guard_send, struct socket___guarded *socket,
	     struct msghdr *message, int size)
{
	const void *address = message->msg_name;

	/* Most have none: the socket is connected. */
	if (!address)
		return 0;
	return to_address(socket->sk, address, message->msg_namelen, true);
}

SEC("lsm/socket_accept")
int BPF_PROG(ipttrace_guard_accept, struct socket___guarded *socket,
	     void *newer)
{
	const struct sock___guarded *sk = socket->sk;
	struct call call;

	if (!begin(&call, sk, IPTTRACE_GUARD_ACCEPT, false))
		return 0;
	return decide(&call, sk, true, false);
}

SEC("lsm/inet_conn_request")
int BPF_PROG(ipttrace_guard_arrival, struct sock___guarded *sk, void *skb,
	     struct request_sock *request)
{
	struct call call;

	if (!begin(&call, sk, IPTTRACE_GUARD_ARRIVAL, false))
		return 0;
	remote_end(&call, &request->__req_common, false);
	return decide(&call, sk, false, false);
}

/* Of a socket with one peer; datagrams of others are looked at as they arrive. */
SEC("lsm/socket_recvmsg")
int BPF_PROG(ipttrace_guard_receive, struct socket___guarded *socket,
	     void *message, int size, int flags)
{
	const struct sock___guarded *sk = socket->sk;
	struct call call;

	if (!sk || !sk->__sk_common.skc_dport)
		return 0;
	if (!begin(&call, sk, IPTTRACE_GUARD_RECEIVE, false))
		return 0;
	remote_end(&call, &sk->__sk_common, false);
	return decide(&call, sk, true, false);
}

SEC("lsm/socket_sock_rcv_skb")
int BPF_PROG(ipttrace_guard_packet, struct sock___guarded *sk,
	     struct sk_buff___guarded *skb)
{
	unsigned char *head;
	struct call call;
	__be16 ports[2];
	__be32 four;

	/* A stream whose segments were dropped would not end. */
	if (sk->sk_protocol == IPPROTO_TCP)
		return 0;
	if (!begin(&call, sk, IPTTRACE_GUARD_RECEIVE, false))
		return 0;
	head = skb->head;
	if (skb->protocol == bpf_htons(0x0800)) {
		if (bpf_probe_read_kernel(&four, sizeof(four),
					  head + skb->network_header + 12))
			return 0;
		set_four(&call.remote, four);
	} else {
		set_six(&call.remote, head + skb->network_header + 8);
	}
	if (!may_meet(&call))
		return 0;
	if (call.protocol == IPPROTO_UDP &&
	    !bpf_probe_read_kernel(ports, sizeof(ports),
				   head + skb->transport_header))
		call.remote_port = bpf_ntohs(ports[0]);
	return settle(&call, sk, false, false);
}

char LICENSE[] SEC("license") = "GPL";
