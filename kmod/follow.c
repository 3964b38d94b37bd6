// SPDX-License-Identifier: GPL-2.0-only
/*
 * The packets that matched the filter, by address, so that they are followed
 * through later hooks even when NAT has made them look otherwise.
 *
 * An address alone proves nothing: it is reused at once.  The life token is
 * skb->nf_trace, which a new packet never has.  A packet found here with
 * nf_trace clear is another one at an old address: the caller deletes it.
 *
 * A packet is in the hands of one CPU at a time, so that no address is added
 * twice; slots are claimed with cmpxchg, and lookups take no lock.
 */

#include <linux/hash.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "ipttrace.h"

#define FOLLOW_BITS	12
#define FOLLOW_WAYS	8	/* of eight bytes: a bucket is a cache line */

struct follow_bucket {
	const struct sk_buff *slot[FOLLOW_WAYS];
};

static struct follow_bucket *follow_table;
bool ipttrace_follow_used;

int ipttrace_follow_setup(void)
{
	follow_table = kvcalloc(1 << FOLLOW_BITS, sizeof(*follow_table),
				GFP_KERNEL);
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

	for (i = 0; i < FOLLOW_WAYS; i++)
		if (READ_ONCE(bucket->slot[i]) == skb)
			return true;
	return false;
}

/* false: another packet had to be forgotten for it */
bool ipttrace_follow_add(const struct sk_buff *skb)
{
	struct follow_bucket *bucket = follow_bucket(skb);
	int i;

	if (!READ_ONCE(ipttrace_follow_used))
		WRITE_ONCE(ipttrace_follow_used, true);
	for (i = 0; i < FOLLOW_WAYS; i++)
		if (READ_ONCE(bucket->slot[i]) == skb)
			return true;
	for (i = 0; i < FOLLOW_WAYS; i++)
		if (!READ_ONCE(bucket->slot[i]) &&
		    !cmpxchg(&bucket->slot[i], NULL, skb))
			return true;
	/* Oldest last: move up, and let the first fall out. */
	for (i = 0; i < FOLLOW_WAYS - 1; i++)
		WRITE_ONCE(bucket->slot[i], READ_ONCE(bucket->slot[i + 1]));
	WRITE_ONCE(bucket->slot[FOLLOW_WAYS - 1], skb);
	return false;
}

void ipttrace_follow_del(const struct sk_buff *skb)
{
	struct follow_bucket *bucket;
	int i;

	if (!READ_ONCE(ipttrace_follow_used))
		return;
	bucket = follow_bucket(skb);
	for (i = 0; i < FOLLOW_WAYS; i++)
		if (READ_ONCE(bucket->slot[i]) == skb)
			cmpxchg(&bucket->slot[i], skb, NULL);
}
