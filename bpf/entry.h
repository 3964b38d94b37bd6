/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fills in what all records of a packet have, whichever program writes them.
 */
#ifndef IPTTRACE_FILL_ENTRY_H
#define IPTTRACE_FILL_ENTRY_H

#include "bridge.h"
#include "fill.h"

/*
 * All that comes from the packet and the process, except its bytes; after family and devices.
 * netns: the inode of `net`.
 * Returns whether there is a conntrack entry that cannot be read.
 */
static __always_inline bool fill_entry(struct ipttrace_entry *entry,
				       const struct sk_buff *skb,
				       const struct net *net, __u32 netns,
				       const bool probed)
{
	struct ipttrace_entry_head *head = &entry->head;
	__u64 ids = bpf_get_current_pid_tgid();

	head->skb = (unsigned long)skb;
	head->sk = (unsigned long)GET(probed, skb, sk);
	head->netns = netns;
	head->mark = GET(probed, skb, mark);
	head->protocol_be16 = GET(probed, skb, protocol);
	head->vlan_tci = vlan_tci(skb, probed);
	head->source = IPTTRACE_SOURCE_BPF;
	head->cpu = bpf_get_smp_processor_id();
	head->pid = ids >> 32;
	head->tid = ids;
	bpf_get_current_comm(entry->comm, sizeof(entry->comm));
	if (in_softirq())
		head->flags |= IPTTRACE_F_SOFTIRQ;
	MERGE();
	fill_ports(entry, skb, net, probed);
	MERGE();
	return fill_conntrack(head, skb, probed);
}

#endif
