// SPDX-License-Identifier: GPL-2.0-only
/*
 * The packets that matched the filter, by address, so that later hooks trace
 * them even if NAT has changed their addresses meanwhile.
 *
 * An address alone proves nothing, as it is reused at once.  The proof is
 * skb->nf_trace, which is clear in a new packet until somebody sets it.  If a
 * packet found here has nf_trace clear, the entry is stale: the caller deletes
 * it.  The target TRACE sets nf_trace only later, in the table raw; but nftables'
 * rules may set it before any table.  While there are such rules, some bits of
 * the IP header that NAT does not change must agree as well.
 *
 * An entry is a word: the bits of the address that are not the same in all, and
 * those of the header.  One CPU at a time handles a packet, so no address is added twice; slots are
 * claimed with cmpxchg, and look-ups take no lock.
 */

#include <linux/hash.h>
#include <linux/ip.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <net/ipv6.h>

#include "ipttrace.h"

#define FOLLOW_BITS  12
#define FOLLOW_SLOTS 8 /* of eight bytes: a bucket is a cache line */

/* skbs are aligned to 8 bytes, and below 2^57 up to a sign. */
#define FOLLOW_PRINT_BITS 10

struct follow_bucket {
	u64 slot[FOLLOW_SLOTS]; /* 0: free */
};

static struct follow_bucket *follow_table;
bool ipttrace_follow_used;
/* nf_tables' count of rules that set nf_trace; flaggers.c finds it. */
const struct static_key_false *ipttrace_nft_tracing;

int ipttrace_follow_setup(void)
{
	follow_table =
		kvcalloc(1 << FOLLOW_BITS, sizeof(*follow_table), GFP_KERNEL);
	ipttrace_follow_used = false;
	return follow_table ? 0 : -ENOMEM;
}

void ipttrace_follow_teardown(void)
{
	ipttrace_follow_used = false;
	kvfree(follow_table);
	follow_table = NULL;
}

static struct follow_bucket *follow_bucket(const struct sk_buff *skb)
{
	return &follow_table[hash_ptr(skb, FOLLOW_BITS)];
}

/* Where skb->data is the network header, which is in the linear part. */
static u32 follow_print(const struct sk_buff *skb)
{
	const struct iphdr *four = (void *)skb->data;
	const struct ipv6hdr *six = (void *)skb->data;

	if (four->version == 4)
		return hash_32((__force u16)four->id << 8 | four->protocol,
			       FOLLOW_PRINT_BITS);
	return hash_32((__force u32)ip6_flowlabel(six) ^ six->nexthdr,
		       FOLLOW_PRINT_BITS);
}

static u64 follow_address(const struct sk_buff *skb)
{
	return (u64)(unsigned long)skb >> 3 << FOLLOW_PRINT_BITS;
}

static bool follow_same_address(u64 one, u64 other)
{
	return !((one ^ other) >> FOLLOW_PRINT_BITS);
}

bool ipttrace_follow_find(const struct sk_buff *skb)
{
	struct follow_bucket *bucket = follow_bucket(skb);
	u64 address = follow_address(skb);
	int i;

	for (i = 0; i < FOLLOW_SLOTS; i++) {
		u64 found = READ_ONCE(bucket->slot[i]);

		if (follow_same_address(found, address))
			return !ipttrace_nft_traces() ||
			       found == (address | follow_print(skb));
	}
	return false;
}

/* Returns false if another packet had to be dropped for it. */
bool ipttrace_follow_add(const struct sk_buff *skb)
{
	struct follow_bucket *bucket = follow_bucket(skb);
	u64 entry = follow_address(skb) | follow_print(skb);
	int i;

	if (!READ_ONCE(ipttrace_follow_used))
		WRITE_ONCE(ipttrace_follow_used, true);
	for (i = 0; i < FOLLOW_SLOTS; i++) {
		u64 found = READ_ONCE(bucket->slot[i]);

		if (follow_same_address(found, entry) &&
		    cmpxchg(&bucket->slot[i], found, entry) == found)
			return true;
	}
	for (i = 0; i < FOLLOW_SLOTS; i++)
		if (!READ_ONCE(bucket->slot[i]) &&
		    !cmpxchg(&bucket->slot[i], 0, entry))
			return true;
	/* Full: move all up by one and drop the first. */
	for (i = 0; i < FOLLOW_SLOTS - 1; i++)
		WRITE_ONCE(bucket->slot[i], READ_ONCE(bucket->slot[i + 1]));
	WRITE_ONCE(bucket->slot[FOLLOW_SLOTS - 1], entry);
	return false;
}

void ipttrace_follow_del(const struct sk_buff *skb)
{
	u64 address = follow_address(skb);
	struct follow_bucket *bucket;
	int i;

	if (!READ_ONCE(ipttrace_follow_used))
		return;
	bucket = follow_bucket(skb);
	for (i = 0; i < FOLLOW_SLOTS; i++) {
		u64 found = READ_ONCE(bucket->slot[i]);

		if (follow_same_address(found, address))
			cmpxchg(&bucket->slot[i], found, 0);
	}
}
