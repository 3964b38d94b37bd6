// SPDX-License-Identifier: GPL-2.0-only
/*
 * Records packets that are dropped, wherever in the kernel that happens.
 *
 * The tracepoint skb:kfree_skb is called when the last reference to a packet is given up in
 * one of the ways that mean a drop; consumed packets go through another one.  It has the place
 * in the kernel's code, since Linux 5.17 a reason, and since 6.11 the socket: which of the
 * programs fits is seen from its BTF by who loads them.
 */

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "station.h"

#define IPPROTO_ICMP   1
#define IPPROTO_ICMPV6 58
#define AT_PROTOCOL    9 /* in a header of IPv4, and of IPv6 */
#define AT_NEXT_HEADER 6

enum skb_drop_reason {
	SKB_CONSUMED = 1,
	SKB_DROP_REASON_NO_SOCKET = 2,
};

/*
 * Kernels with this value hand all that is freed to the same function.  A segment that was
 * read to its end, or has no data, may stay in its socket's queue until that is closed.
 */
static __always_inline bool is_consumed(const struct sk_buff *skb, __u32 reason)
{
	if (bpf_core_enum_value_exists(enum skb_drop_reason, SKB_CONSUMED) &&
	    reason == bpf_core_enum_value(enum skb_drop_reason, SKB_CONSUMED))
		return true;
	return !skb->len && skb->sk;
}

/*
 * Whether it is a ping's answer for a raw socket: that has a copy of it, and the packet itself
 * is dropped for lack of a socket of ping.
 */
static __always_inline bool is_copied(const struct sk_buff *skb, __u32 reason,
				      const struct candidate *packet)
{
	bool four = packet->family == NFPROTO_IPV4;
	__u8 protocol = 0;

	if (!bpf_core_enum_value_exists(enum skb_drop_reason,
					SKB_DROP_REASON_NO_SOCKET) ||
	    reason != bpf_core_enum_value(enum skb_drop_reason,
					  SKB_DROP_REASON_NO_SOCKET) ||
	    !BPF_CORE_READ_BITFIELD(skb, cloned))
		return false;
	bpf_probe_read_kernel(&protocol, sizeof(protocol),
			      skb->head + packet->network +
				      (four ? AT_PROTOCOL : AT_NEXT_HEADER));
	return protocol == (four ? IPPROTO_ICMP : IPPROTO_ICMPV6);
}

static __always_inline int dropped(void *ctx, const struct sk_buff *skb,
				   const void *location, __u32 reason,
				   const struct sock *sk)
{
	__u64 address = (unsigned long)skb;
	struct station_event *event;
	struct candidate *packet;

	if (is_consumed(skb, reason))
		return 0;
	packet = wanted(skb, sk, false, 0, false);
	if (!packet || is_copied(skb, reason, packet))
		return 0;
	count(STATION_DUE, 1);
	event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	if (!event) {
		count(STATION_LOST, 1);
		return 0;
	}
	fill_station(&event->station, skb, packet, false, NULL,
		     IPTTRACE_DROPPED, false);
	event->station.reason = reason;
	event->station.place = (unsigned long)location;
	__builtin_memset(event->stack, 0, sizeof(event->stack));
	bpf_get_stack(ctx, event->stack, sizeof(event->stack), 0);
	bpf_ringbuf_submit(event, BPF_RB_NO_WAKEUP);
	if (packet->last)
		bpf_map_delete_elem(&seen, &address);
	return 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(ipttrace_drop, struct sk_buff *skb, void *location, __u32 reason)
{
	return dropped(ctx, skb, location, reason, NULL);
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(ipttrace_drop_sk, struct sk_buff *skb, void *location,
	     __u32 reason, struct sock *sk)
{
	return dropped(ctx, skb, location, reason, sk);
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(ipttrace_drop_old, struct sk_buff *skb, void *location)
{
	return dropped(ctx, skb, location, 0, NULL);
}

char LICENSE[] SEC("license") = "GPL";
