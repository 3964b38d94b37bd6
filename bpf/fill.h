/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fills in the parts of an entry record that come from the packet, its devices and conntrack.
 * The record is zero before.
 */
#ifndef IPTTRACE_FILL_H
#define IPTTRACE_FILL_H

#include "structs.h"

#define NFCT_INFOMASK  7UL
#define SOFTIRQ_OFFSET 0x100 /* in preempt_count: serving a softirq */
#define MAC_UNSET      0xffff

/* struct nf_conntrack_tuple: numbers and addresses as in the packet. */
struct tuple {
	__u8 src[16];
	__u16 sport;
	__u16 l3num;
	__u8 dst[16];
	__u16 dport;
	__u8 proto;
	__u8 dir;
};

static __always_inline bool in_softirq(void)
{
	const struct pcpu_hot *hot;
	const int *plain;

	if (&pcpu_hot) {
		hot = bpf_this_cpu_ptr(&pcpu_hot);
		return hot->preempt_count & SOFTIRQ_OFFSET;
	}
	if (&__preempt_count) {
		plain = bpf_this_cpu_ptr(&__preempt_count);
		return *plain & SOFTIRQ_OFFSET;
	}
	return false;
}

static __always_inline void fill_device(const struct net_device *device,
					char *name, __u32 *ifindex,
					const bool probed)
{
	if (!device)
		return;
	*ifindex = GET(probed, device, ifindex);
	bpf_probe_read_kernel_str(name, IPTTRACE_IF_LEN, &device->name);
}

/* Returns whether there is an entry that cannot be read, for lack of conntrack's BTF. */
static __always_inline bool fill_conntrack(struct ipttrace_entry_head *head,
					   const struct sk_buff *skb,
					   const bool probed)
{
	unsigned long nfct = GET(probed, skb, _nfct);
	struct nf_conn *ct = (void *)(nfct & ~NFCT_INFOMASK);
	unsigned long status = 0;
	struct tuple tuple;

	head->ct_info = nfct & NFCT_INFOMASK;
	if (!ct)
		return false;
	if (!bpf_core_type_exists(struct nf_conn))
		return true;
	head->flags |= IPTTRACE_F_CONNTRACK;
	head->ct = (unsigned long)ct;
	bpf_core_read(&status, sizeof(status), &ct->status);
	head->ct_status = status;
	if (bpf_core_field_exists(ct->mark))
		bpf_core_read(&head->ct_mark, sizeof(head->ct_mark), &ct->mark);
	if (bpf_core_field_exists(ct->zone))
		bpf_core_read(&head->ct_zone, sizeof(head->ct_zone),
			      &ct->zone.id);
	bpf_core_read(&tuple, sizeof(tuple), &ct->tuplehash[0].tuple);
	head->ct_proto = tuple.proto;
	head->ct_orig_sport_be16 = tuple.sport;
	head->ct_orig_dport_be16 = tuple.dport;
	__builtin_memcpy(head->ct_orig_src, tuple.src, 16);
	__builtin_memcpy(head->ct_orig_dst, tuple.dst, 16);
	bpf_core_read(&tuple, sizeof(tuple), &ct->tuplehash[1].tuple);
	head->ct_reply_sport_be16 = tuple.sport;
	head->ct_reply_dport_be16 = tuple.dport;
	__builtin_memcpy(head->ct_reply_src, tuple.src, 16);
	__builtin_memcpy(head->ct_reply_dst, tuple.dst, 16);
	return false;
}

/*
 * The packet from its network header on, as far as it is in the linear part: there at least
 * are all headers that netfilter has looked at.  `network`: where that header is, from
 * skb->head on.
 */
static __always_inline void fill_packet(struct ipttrace_entry *entry,
					const struct sk_buff *skb,
					__u32 network, const bool probed)
{
	__u16 mac = GET(probed, skb, mac_header);
	unsigned char *head = GET(probed, skb, head);
	/* Of data: < 0 before it. */
	long before = GET(probed, skb, data) - head - network;
	long length = (long)GET(probed, skb, len) + before;
	long linear = length - GET(probed, skb, data_len);
	__u32 size;

	entry->head.len = length > 0 ? length : 0;
	if (linear > 0) {
		size = linear < IPTTRACE_PACKET_LEN ? linear :
						      IPTTRACE_PACKET_LEN;
		if (!bpf_probe_read_kernel(entry->packet, size & 0xff,
					   head + network))
			entry->head.caplen = size;
	}
	if (mac == MAC_UNSET || mac > network)
		return;
	size = network - mac;
	if (size > IPTTRACE_MAC_LEN)
		return;
	/* Never more; the verifier wants to see that where it is used. */
	asm volatile("" : "+r"(size));
	if (!bpf_probe_read_kernel(entry->head.mac, size & 0x1f, head + mac))
		entry->head.mac_len = size;
}

static __always_inline __u16 vlan_tci(const struct sk_buff *skb,
				      const bool probed)
{
	bool present;

	if (bpf_core_field_exists(skb->vlan_present))
		present = BPF_CORE_READ_BITFIELD_PROBED(skb, vlan_present);
	else if (bpf_core_field_exists(skb->vlan_all))
		present = GET(probed, skb, vlan_all) != 0;
	else
		present = false;
	return present ? GET(probed, skb, vlan_tci) : 0;
}

#endif
