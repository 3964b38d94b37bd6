// SPDX-License-Identifier: GPL-2.0-only
/*
 * The packets that matched the filter, by address, so that later hooks trace
 * them even if NAT has changed their addresses meanwhile.
 *
 * An address alone proves nothing, as it is reused at once.  The proof is
 * skb->nf_trace, which is clear in a new packet.  If a packet found here has
 * nf_trace clear, the entry is stale: the caller deletes it.
 *
 * One CPU at a time handles a packet, so no address is added twice; slots are
 * claimed with cmpxchg, and look-ups take no lock.
 */

#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "ipttrace.h"

#define FOLLOW_BITS  12
#define FOLLOW_SLOTS 8 /* of eight bytes: a bucket is a cache line */

struct follow_bucket {
	const struct sk_buff *slot[FOLLOW_SLOTS];
};

static struct follow_bucket *follow_table;
bool ipttrace_follow_used;

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

bool ipttrace_follow_find(const struct sk_buff *skb)
{
	struct follow_bucket *bucket = follow_bucket(skb);
	int i;

	for (i = 0; i < FOLLOW_SLOTS; i++)
		if (READ_ONCE(bucket->slot[i]) == skb)
			return true;
	return false;
}

/* Returns false if another packet had to be dropped for it. */
bool ipttrace_follow_add(const struct sk_buff *skb)
{
	struct follow_bucket *bucket = follow_bucket(skb);
	int i;

	if (!READ_ONCE(ipttrace_follow_used))
		WRITE_ONCE(ipttrace_follow_used, true);
	for (i = 0; i < FOLLOW_SLOTS; i++)
		if (READ_ONCE(bucket->slot[i]) == skb)
			return true;
	for (i = 0; i < FOLLOW_SLOTS; i++)
		if (!READ_ONCE(bucket->slot[i]) &&
		    !cmpxchg(&bucket->slot[i], NULL, skb))
			return true;
	/* Full: move all up by one and drop the first. */
	for (i = 0; i < FOLLOW_SLOTS - 1; i++)
		WRITE_ONCE(bucket->slot[i], READ_ONCE(bucket->slot[i + 1]));
	WRITE_ONCE(bucket->slot[FOLLOW_SLOTS - 1], skb);
	return false;
}

void ipttrace_follow_del(const struct sk_buff *skb)
{
	struct follow_bucket *bucket;
	int i;

	if (!READ_ONCE(ipttrace_follow_used))
		return;
	bucket = follow_bucket(skb);
	for (i = 0; i < FOLLOW_SLOTS; i++)
		if (READ_ONCE(bucket->slot[i]) == skb)
			cmpxchg(&bucket->slot[i], skb, NULL);
}
