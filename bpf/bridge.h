/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ports of the bridge that a packet passes.  In nftables' family bridge they are the hook's
 * own devices.  Where br_netfilter hands the packet to IP's hooks, they are in an extension of
 * the packet, as -m physdev sees them.
 */
#ifndef IPTTRACE_BRIDGE_H
#define IPTTRACE_BRIDGE_H

#include "fill.h"

#define NFPROTO_BRIDGE 7
#define NETDEV_HASHENTRIES \
	256		/* lists of devices by number, linux/netdevice.h */
#define MOST_DEVICES 64 /* of one list, that are looked at */

/* The device of that number; NULL if it is gone, or far down its list. */
static __always_inline const struct net_device *device_of(const struct net *net,
							  __u32 ifindex)
{
	struct hlist_head *heads = BPF_CORE_READ(net, dev_index_head);
	const struct net_device *device;
	struct hlist_node *node = NULL;
	int i;

	bpf_probe_read_kernel(&node, sizeof(node),
			      heads + ifindex % NETDEV_HASHENTRIES);
	for (i = 0; i < MOST_DEVICES && node; i++) {
		device = (void *)node -
			 bpf_core_field_offset(struct net_device, index_hlist);
		if (BPF_CORE_READ(device, ifindex) == ifindex)
			return device;
		node = BPF_CORE_READ(node, next);
	}
	return NULL;
}

/* After the entry's head, devices and all. */
static __always_inline void fill_ports(struct ipttrace_entry *entry,
				       const struct sk_buff *skb,
				       const struct net *net, const bool probed)
{
	const struct nf_bridge_info___old *old;
	const struct nf_bridge_info *info;
	struct skb_ext *extensions;
	__u8 offset = 0;
	__u32 id;

	if (entry->head.family == NFPROTO_BRIDGE) {
		entry->physin_ifindex = entry->head.in_ifindex;
		entry->physout_ifindex = entry->head.out_ifindex;
		__builtin_memcpy(entry->physin, entry->in, IPTTRACE_IF_LEN);
		__builtin_memcpy(entry->physout, entry->out, IPTTRACE_IF_LEN);
		return;
	}
	/* Kernels without br_netfilter have no such extension. */
	if (!bpf_core_enum_value_exists(enum skb_ext_id, SKB_EXT_BRIDGE_NF) ||
	    !bpf_core_type_exists(struct nf_bridge_info))
		return;
	id = bpf_core_enum_value(enum skb_ext_id, SKB_EXT_BRIDGE_NF);
	if (!(GET(probed, skb, active_extensions) >> id & 1))
		return;
	extensions = BPF_CORE_READ(skb, extensions);
	bpf_probe_read_kernel(&offset, sizeof(offset),
			      (void *)&extensions->offset + id);
	info = (void *)extensions + 8 * (__u32)offset;
	if (bpf_core_field_exists(info->physinif)) {
		id = BPF_CORE_READ(info, physinif);
		if (id)
			fill_device(device_of(net, id), entry->physin,
				    &entry->physin_ifindex, true);
	} else {
		old = (void *)info;
		fill_device(BPF_CORE_READ(old, physindev), entry->physin,
			    &entry->physin_ifindex, true);
	}
	fill_device(BPF_CORE_READ(info, physoutdev), entry->physout,
		    &entry->physout_ifindex, true);
}

#endif
