/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What bpf/drops.bpf.c and bpf/stations.bpf.c do alike: which packets they take, and what they
 * record of them.
 */
#ifndef IPTTRACE_STATION_H
#define IPTTRACE_STATION_H

#include <linux/if_ether.h>
#include <stdbool.h>

#include <bpf/bpf_endian.h>

#include "entry.h"
#include "expr.h"
#include "ring.h"

#define NFPROTO_IPV4 2
#define NFPROTO_ARP  3
#define NFPROTO_IPV6 10
#define HOOK_UNKNOWN 255
#define DST_PTRMASK  (~3UL) /* SKB_DST_PTRMASK, linux/skbuff.h */
#define DST_METADATA 0x0080 /* net/dst.h */
#define RTN_UNICAST  1	    /* linux/rtnetlink.h */
#define RTF_GATEWAY  0x0002 /* linux/route.h */

#define FRAMES 36 /* of a stack: the first ones are those of the tracepoint */

/* What a drop writes; other stations write its first part. */
struct station_event {
	struct ipttrace_station station;
	__u64 stack[FRAMES];
};

/* The counters in `counters`, as the programs of this file use them. */
enum station_counter {
	STATION_DUE,	 /* records to be written */
	STATION_LOST,	 /* for which the ring had no room */
	STATION_REFUSED, /* packets that EXPR does not match */
};

/* Set by who loads it: the one network namespace whose packets are of interest; 0: all. */
const volatile __u32 only_netns;

/* What was last of packets that were taken while they live, by address: enum ipttrace_what. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u32);
} seen SEC(".maps");

static __always_inline bool is_kernels(const void *address)
{
	return (long)address < 0;
}

/* The route that was found for the packet, or NULL. */
static __always_inline const struct dst_entry *
route_of(const struct sk_buff *skb, const bool probed)
{
	const struct dst_entry *dst;

	dst = (void *)(GET(probed, skb, _skb_refdst) & DST_PTRMASK);
	if (!dst || BPF_CORE_READ(dst, flags) & DST_METADATA)
		return NULL;
	return dst;
}

/* The packet's device; NULL if there is none, or if UDP keeps other things in its place. */
static __always_inline const struct net_device *
device_of_packet(const struct sk_buff *skb)
{
	const struct net_device *device = BPF_CORE_READ(skb, dev);

	return is_kernels(device) ? device : NULL;
}

static __always_inline const struct net *net_of(const struct sk_buff *skb,
						const struct net_device *device,
						const struct sock *sk,
						const bool probed)
{
	const struct net *net = NULL;
	const struct dst_entry *dst;

	if (device)
		net = BPF_CORE_READ(device, nd_net.net);
	if (!net && sk)
		net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	if (!net) {
		dst = route_of(skb, probed);
		if (dst)
			net = BPF_CORE_READ(dst, dev, nd_net.net);
	}
	return net;
}

/* A packet that a program looks at; in a map, see MERGE(). */
struct candidate {
	const struct net_device *device, *in, *out;
	const struct net *net;
	const struct sock *sk;
	__u32 network; /* where its network header is, from skb->head on */
	__u32 last;    /* what was last of it, 0: unknown */
	__u16 family;
	__u8 flags; /* IPTTRACE_S_* */
	__u8 first; /* no record of it came before */
};

/* One for each program, as expr_runs. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EXPR_SLOTS);
	__type(key, __u32);
	__type(value, struct candidate);
} candidates SEC(".maps");

/* NFPROTO_* by skb->protocol; 0: none of those that are recorded. */
static __always_inline __u16 family_of(__be16 protocol)
{
	switch (protocol) {
	case bpf_htons(ETH_P_IP):
		return NFPROTO_IPV4;
	case bpf_htons(ETH_P_IPV6):
		return NFPROTO_IPV6;
	case bpf_htons(ETH_P_ARP):
		return NFPROTO_ARP;
	}
	return 0;
}

/*
 * Where the network header is.  Before netif_receive_skb() has set it, data is there, or
 * at the header before it.
 */
static __always_inline __u32 network_of(const struct sk_buff *skb,
					const bool arriving, const bool probed)
{
	__u32 data = GET(probed, skb, data) - GET(probed, skb, head);
	__u32 network = GET(probed, skb, network_header);

	if (network && !arriving)
		return network;
	if (!arriving && GET(probed, skb, mac_header) == data)
		return data + ETH_HLEN;
	return data;
}

/* Whether a header of this family is there: skb may be one that has none yet. */
static __always_inline bool has_header(const struct sk_buff *skb,
				       const struct candidate *packet,
				       const bool probed)
{
	__u8 first = 0;

	if (packet->family == NFPROTO_ARP)
		return true;
	if (bpf_probe_read_kernel(&first, sizeof(first),
				  GET(probed, skb, head) + packet->network))
		return false;
	return first >> 4 == (packet->family == NFPROTO_IPV4 ? 4 : 6);
}

/*
 * Returns the packet if it is one to record, with what is known of it, else NULL.  The cheapest
 * tests come first.  `sk`: its socket if skb->sk is not set; `arriving`: its network header is
 * not set; `slot`: see expr_result().
 */
static __always_inline struct candidate *wanted(const struct sk_buff *skb,
						const struct sock *sk,
						const bool arriving, __u32 slot,
						const bool probed)
{
	__u16 family = family_of(GET(probed, skb, protocol));
	__u64 address = (unsigned long)skb;
	struct candidate *packet;
	const struct net *net;
	__u32 *last, result;

	if (!family)
		return NULL;
	packet = bpf_map_lookup_elem(&candidates, &slot);
	if (!packet)
		return NULL;
	packet->family = family;
	packet->device = device_of_packet(skb);
	packet->sk = BPF_CORE_READ(skb, sk);
	MERGE();
	if (!packet->sk)
		packet->sk = sk;
	MERGE();
	packet->net = net_of(skb, packet->device, packet->sk, probed);
	MERGE();
	net = packet->net;
	if (!net || (only_netns && BPF_CORE_READ(net, ns.inum) != only_netns))
		return NULL;
	packet->network = network_of(skb, arriving, probed);
	MERGE();
	if (!has_header(skb, packet, probed))
		return NULL;
	last = bpf_map_lookup_elem(&seen, &address);
	packet->last = last ? *last : 0;
	MERGE();
	/* Another packet at the same address: nothing was seen of the end of the one before. */
	if (arriving ? packet->last != IPTTRACE_SENT :
		       packet->last == IPTTRACE_RECEIVED &&
			       !GET(probed, skb, skb_iif))
		packet->last = 0;
	packet->flags = is_traced(skb, probed) ? IPTTRACE_S_TRACED : 0;
	MERGE();
	packet->first = !packet->flags && !packet->last;
	result = expr_result(skb, packet->network, slot, probed);
	if (result == EXPR_MATCHES)
		packet->flags |= IPTTRACE_S_MATCHED;
	MERGE();
	if (packet->flags || packet->last || result == EXPR_DOUBTFUL)
		return packet;
	count(STATION_REFUSED, 1);
	return NULL;
}

/* RTN_* of a route, 0: unknown. */
static __always_inline __u8 type_of_route(const struct dst_entry *dst,
					  __u16 family)
{
	const struct rtable *four = (void *)dst;
	const struct rt6_info *six = (void *)dst;
	const struct fib6_info *from;

	if (family == NFPROTO_IPV4)
		return BPF_CORE_READ(four, rt_type);
	from = BPF_CORE_READ(six, from);
	return from ? BPF_CORE_READ(from, fib6_type) : 0;
}

/* Of a packet that has a route; IPv4 does not keep which table it is from. */
static __always_inline void fill_route(struct ipttrace_station *station,
				       const struct sk_buff *skb, __u16 family,
				       const bool probed)
{
	const struct dst_entry *dst = route_of(skb, probed);
	const struct rtable *four = (void *)dst;
	const struct rt6_info *six = (void *)dst;
	const struct fib6_info *from;

	if (!dst || family == NFPROTO_ARP)
		return;
	station->station_flags |= IPTTRACE_S_ROUTE;
	station->route_type = type_of_route(dst, family);
	if (family == NFPROTO_IPV4) {
		station->gateway_family = BPF_CORE_READ(four, rt_gw_family);
		if (station->gateway_family == NFPROTO_IPV4)
			bpf_core_read(station->gateway, 4, &four->rt_gw4);
		else if (station->gateway_family == NFPROTO_IPV6)
			bpf_core_read(station->gateway, 16, &four->rt_gw6);
		return;
	}
	from = BPF_CORE_READ(six, from);
	if (from)
		station->route_table = BPF_CORE_READ(from, fib6_table, tb6_id);
	if (BPF_CORE_READ(six, rt6i_flags) & RTF_GATEWAY) {
		station->gateway_family = NFPROTO_IPV6;
		bpf_core_read(station->gateway, 16, &six->rt6i_gateway);
	}
}

/*
 * The devices.  skb->dev is the one that the packet came from until it is handed to the one
 * that it leaves by; skb_iif stays the first.
 */
static __always_inline void
fill_devices(struct ipttrace_entry *entry, const struct sk_buff *skb,
	     struct candidate *packet, const bool arriving,
	     const struct net_device *leaving, const bool probed)
{
	const struct dst_entry *dst = route_of(skb, probed);
	const struct net_device *device = packet->device;
	__u32 iif = GET(probed, skb, skb_iif), index;

	packet->in = NULL;
	packet->out = leaving;
	if (device) {
		index = BPF_CORE_READ(device, ifindex);
		if (arriving || (iif && iif == index) ||
		    (!iif && !dst && !packet->sk))
			packet->in = device;
		else if (!packet->out)
			packet->out = device;
	}
	MERGE();
	if (!packet->in && iif && !arriving)
		packet->in = device_of(packet->net, iif);
	MERGE();
	/* A route to a socket of this host leads to lo. */
	if (!packet->out && dst && !arriving && packet->family != NFPROTO_ARP &&
	    (!iif || type_of_route(dst, packet->family) == RTN_UNICAST))
		packet->out = BPF_CORE_READ(dst, dev);
	MERGE();
	fill_device(packet->in, entry->in, &entry->head.in_ifindex, true);
	fill_device(packet->out, entry->out, &entry->head.out_ifindex, true);
}

/* All but the reason, the place and the neighbour.  The record's memory holds anything. */
static __always_inline void
fill_station(struct ipttrace_station *station, const struct sk_buff *skb,
	     struct candidate *packet, const bool arriving,
	     const struct net_device *leaving, __u8 what, const bool probed)
{
	struct ipttrace_entry_head *head = &station->entry.head;
	const struct net *net = packet->net;

	__builtin_memset(station, 0, sizeof(*station));
	head->time = bpf_ktime_get_ns();
	head->family = packet->family;
	head->hook = HOOK_UNKNOWN;
	if (packet->first)
		head->flags = IPTTRACE_F_FIRST;
	station->what = what;
	station->station_flags = packet->flags;
	MERGE();
	fill_devices(&station->entry, skb, packet, arriving, leaving, probed);
	MERGE();
	fill_entry(&station->entry, skb, net, BPF_CORE_READ(net, ns.inum),
		   probed);
	head->sk = (unsigned long)packet->sk;
	MERGE();
	fill_packet(&station->entry, skb, packet->network, probed);
	MERGE();
	fill_route(station, skb, packet->family, probed);
}

#endif
