// SPDX-License-Identifier: GPL-2.0-only
/*
 * Denies what programs of a cgroup can, by the same rules as bpf/guard.bpf.c: for kernels that do not
 * have BPF among their security modules.
 *
 * connect() and datagrams that are sent to an address are denied in the call.  Of accept() and
 * recvmsg() nothing is known here: connections and data are dropped as they arrive.  Unlike
 * programs at the functions of security modules, none of these is left out when it interrupts itself.
 */

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "guard_call.h"

#define ALLOW	     1
#define DENY	     0
#define MIN_HEADER   20 /* of TCP */
#define ETH_P_IP     0x0800
#define DATA_OFFSET  12
#define TCP_FLAGS_AT 13
#define OFFSET_SHIFT 4
#define BYTES_A_WORD 4

struct sock_common___guarded {
	unsigned char skc_state;
} ACCESS;

/* Set by who loads it: the kernel lets these programs choose the error; else it is EPERM. */
const volatile __u32 chooses_error;

/* What `place` points to, as a number: of the kernel's own pointers, programs may not read. */
static __always_inline const void *address_in(const void *place)
{
	const void *found = NULL;

	bpf_probe_read_kernel(&found, sizeof(found), place);
	return found;
}

static __always_inline int answer(int error)
{
	if (!error)
		return ALLOW;
	if (chooses_error)
		bpf_set_retval(error);
	return DENY;
}

static __always_inline int to_four(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *own = ctx->sk;
	const struct sock___guarded *sk = address_in(&own);
	struct call call;

	if (!begin(&call, sk, IPTTRACE_GUARD_CONNECT, true))
		return ALLOW;
	/* Zeros are this host, as the kernel reads it. */
	set_four(&call.remote, ctx->user_ip4 ?: bpf_htonl(LOOPBACK));
	call.remote_port = bpf_ntohs(ctx->user_port);
	return answer(decide(&call, sk, true, true));
}

static __always_inline int to_six(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *own = ctx->sk;
	const struct sock___guarded *sk = address_in(&own);
	struct call call;
	__u64 high, low;

	if (!begin(&call, sk, IPTTRACE_GUARD_CONNECT, true))
		return ALLOW;
	high = (__u64)bpf_ntohl(ctx->user_ip6[0]) << 32 |
	       bpf_ntohl(ctx->user_ip6[1]);
	low = (__u64)bpf_ntohl(ctx->user_ip6[2]) << 32 |
	      bpf_ntohl(ctx->user_ip6[3]);
	if (!high && !low)
		low = 1; /* ::1 */
	if (!high && low == MAPPED)
		low |= LOOPBACK;
	set_value(&call.remote, high, low);
	call.remote_port = bpf_ntohs(ctx->user_port);
	return answer(decide(&call, sk, true, true));
}

SEC("cgroup/connect4")
int ipttrace_guard_connect4(struct bpf_sock_addr *ctx)
{
	return to_four(ctx);
}

SEC("cgroup/connect6")
int ipttrace_guard_connect6(struct bpf_sock_addr *ctx)
{
	return to_six(ctx);
}

SEC("cgroup/sendmsg4")
int ipttrace_guard_send4(struct bpf_sock_addr *ctx)
{
	return to_four(ctx);
}

SEC("cgroup/sendmsg6")
int ipttrace_guard_send6(struct bpf_sock_addr *ctx)
{
	return to_six(ctx);
}

/* Of a segment of TCP, what it is to the socket; -1: neither a new connection nor data. */
static __always_inline int arrives(const struct sock___guarded *sk,
				   const unsigned char *transport, __u32 length)
{
	const struct sock_common___guarded *common = (const void *)sk;
	__u8 header[MIN_HEADER] = {};
	__u32 size;

	if (bpf_probe_read_kernel(header, sizeof(header), transport))
		return -1;
	if (BPF_CORE_READ(common, skc_state) == TCP_LISTEN)
		return (header[TCP_FLAGS_AT] & (TCP_FLAG_SYN | TCP_FLAG_ACK)) ==
				       TCP_FLAG_SYN ?
			       IPTTRACE_GUARD_ARRIVAL :
			       -1;
	size = (header[DATA_OFFSET] >> OFFSET_SHIFT) * BYTES_A_WORD;
	return length > size ? IPTTRACE_GUARD_RECEIVE : -1;
}

SEC("cgroup_skb/ingress")
int ipttrace_guard_ingress(struct __sk_buff *ctx)
{
	const struct sk_buff___guarded *skb = address_in(&ctx);
	struct bpf_sock *own = ctx->sk;
	const struct sock___guarded *sk = address_in(&own);
	__u16 network, transport;
	int kind = IPTTRACE_GUARD_RECEIVE;
	const unsigned char *head;
	struct call call;
	__be16 ports[2];
	__be32 four;

	if (!sk || (!policy_of(IPTTRACE_GUARD_ARRIVAL) &&
		    !policy_of(IPTTRACE_GUARD_RECEIVE)))
		return ALLOW;
	head = BPF_CORE_READ(skb, head);
	network = BPF_CORE_READ(skb, network_header);
	transport = BPF_CORE_READ(skb, transport_header);
	if (BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP)
		kind = arrives(sk, head + transport,
			       ctx->len - (transport - network));
	if (kind < 0 || !begin(&call, sk, kind, true))
		return ALLOW;
	if (ctx->protocol == bpf_htons(ETH_P_IP)) {
		if (bpf_probe_read_kernel(&four, sizeof(four),
					  head + network + 12))
			return ALLOW;
		set_four(&call.remote, four);
	} else {
		set_six(&call.remote, head + network + 8);
	}
	if (!may_meet(&call))
		return ALLOW;
	if (call.protocol_at != IPTTRACE_GUARD_OTHER &&
	    !bpf_probe_read_kernel(ports, sizeof(ports), head + transport))
		call.remote_port = bpf_ntohs(ports[0]);
	return settle(&call, sk, false, true) ? DENY : ALLOW;
}

char LICENSE[] SEC("license") = "GPL";
