// SPDX-License-Identifier: GPL-2.0-only
/*
 * Follows packets where the kernel clears nf_trace, and from a packet to its copies.
 *
 * skb_scrub_packet() clears it: where a packet goes to another network namespace (veth, macvlan's
 * bridge mode, all that calls dev_forward_skb()), and into and out of tunnels.  It stays the same
 * packet at the same address, so it is marked as carried, which a rule of our table asks for by
 * ipttrace_carried and flips it again.  An address proves nothing once its packet was freed.
 * Therefore all ways in which the kernel frees one are seen, before its memory is.
 */

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "packets.h"
#include "ring.h"

/* Set by who loads it: the ring has what happens here, as bpf/nft.bpf.c reports flips. */
const volatile __u8 report;

/* Whether a packet was carried or copied yet: until then, none has to be forgotten. */
bool any_followed;

SEC("fentry/skb_scrub_packet")
int BPF_PROG(ipttrace_scrubbed, struct sk_buff *skb)
{
	__u64 address = (unsigned long)skb;
	__u64 now;
	struct packet_set *set;
	__u32 *known;

	/* One that is carried already stays so. */
	if (!is_traced(skb, false))
		return 0;
	set = packet_set_of(address);
	now = bpf_ktime_get_ns();
	known = set ? known_packet(set, address, now) : NULL;
	/* It has met legacy tables alone: the module has flipped it. */
	if (set && !known && report)
		known = remember_packet(set, address, FOLLOWED, now);
	if (!known || *known == REFUSED)
		return 0;
	any_followed = true;
	if (*known == CROSSING)
		*known = FOLLOWED;
	*known |= CARRIED;
	if (report)
		report_flip(address, 0, IPTTRACE_RUN_CARRIED, now);
	return 0;
}

/* The match of a rule of our table, through xt_bpf. */
SEC("socket")
int ipttrace_carried(struct __sk_buff *skb)
{
	__u64 address = (unsigned long)skb;
	struct packet_set *set;
	__u32 way;

	if (!any_followed)
		return 0;
	set = packet_set_of(address);
	if (!set)
		return 0;
#pragma unroll
	for (way = 0; way < PACKET_WAYS; way++)
		if (set->skb[way] == address)
			return !!(set->state[way] & CARRIED);
	return 0;
}

static __always_inline int freed(const struct sk_buff *skb)
{
	__u64 address = (unsigned long)skb;
	struct packet_set *set;
	__u32 way;

	if (!any_followed)
		return 0;
	set = packet_set_of(address);
	if (!set)
		return 0;
#pragma unroll
	for (way = 0; way < PACKET_WAYS; way++) {
		if (set->skb[way] != address)
			continue;
		/* A copy, too: the agent remembers its original until then. */
		if (report &&
		    (set->state[way] & CARRIED || set->state[way] == COPIED))
			report_flip(address, 0, IPTTRACE_RUN_FREED,
				    bpf_ktime_get_ns());
		set->skb[way] = 0;
		break;
	}
	return 0;
}

#define SEES_FREED(name, section)                          \
	SEC(section)                                       \
	int BPF_PROG(ipttrace_##name, struct sk_buff *skb) \
	{                                                  \
		return freed(skb);                         \
	}

SEES_FREED(dropped, "tp_btf/kfree_skb")
SEES_FREED(consumed, "tp_btf/consume_skb")
/* Those that call neither tracepoint. */
SEES_FREED(freed, "fentry/__kfree_skb")
SEES_FREED(freed_partly, "fentry/kfree_skb_partial")
/* GRO has merged it into another one. */
SEES_FREED(merged, "fentry/napi_skb_free_stolen_head")
SEES_FREED(merged_old, "fentry/__kfree_skb_defer")
SEES_FREED(merged_new, "fentry/__napi_kfree_skb")

/* A copy is another packet, even if it is carried as its original is. */
static __always_inline int copied(const struct sk_buff *skb,
				  const struct sk_buff *copy)
{
	__u64 original = (unsigned long)skb, address = (unsigned long)copy;
	__u64 now, call;
	struct packet_set *set;
	__u32 *known, state;

	if (!copy || !(is_traced(skb, false) || any_followed))
		return 0;
	now = bpf_ktime_get_ns();
	set = packet_set_of(original);
	known = set ? known_packet(set, original, now) : NULL;
	if (!known || !(is_traced(skb, false) || *known & CARRIED))
		return 0;
	any_followed = true;
	state = *known == REFUSED ? REFUSED : COPIED | (*known & CARRIED);
	call = kept_number(known, BESIDE(call));
	set = packet_set_of(address);
	if (!set)
		return 0;
	known = known_packet(set, address, now);
	if (known)
		*known = state;
	else
		known = remember_packet(set, address, state, now);
	if (!known)
		return 0;
	keep_number(known, BESIDE(call), 0);
	keep_number(known, BESIDE(origin), call);
	if (report)
		report_flip(address, original, IPTTRACE_RUN_COPIED, now);
	return 0;
}

/* A bridge that floods, multicast, act_mirred. */
SEC("fexit/skb_clone")
int BPF_PROG(ipttrace_cloned, struct sk_buff *skb, __u64 flags,
	     struct sk_buff *copy)
{
	return copied(skb, copy);
}

/* TEE and dup. */
SEC("fexit/__pskb_copy_fclone")
int BPF_PROG(ipttrace_headers_copied, struct sk_buff *skb, __u64 headroom,
	     __u64 flags, __u64 fclone, struct sk_buff *copy)
{
	return copied(skb, copy);
}

SEC("fexit/skb_copy")
int BPF_PROG(ipttrace_all_copied, struct sk_buff *skb, __u64 flags,
	     struct sk_buff *copy)
{
	return copied(skb, copy);
}

char LICENSE[] SEC("license") = "GPL";
