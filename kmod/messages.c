// SPDX-License-Identifier: GPL-2.0-only
/*
 * The contents of messages that the module sends; see uapi/ipttrace.h.  Each
 * returns -EMSGSIZE if the message has no room.
 */

#include <net/genetlink.h>

#include "breaks.h"
#include "ipttrace.h"

int ipttrace_put_change(struct sk_buff *msg,
			const struct ipttrace_change *change)
{
	if (nla_put_u32(msg, IPTTRACE_A_RULESET_FIRST, change->first) ||
	    nla_put_u32(msg, IPTTRACE_A_RULESET, change->last) ||
	    nla_put_u32(msg, IPTTRACE_A_NETNS, change->netns) ||
	    nla_put_u32(msg, IPTTRACE_A_FAMILY, change->family) ||
	    nla_put_string(msg, IPTTRACE_A_TABLE, change->table))
		return -EMSGSIZE;
	return 0;
}

static int put_u64(struct sk_buff *msg, enum ipttrace_attr attr, u64 value)
{
	return nla_put_u64_64bit(msg, attr, value, IPTTRACE_A_PAD);
}

int ipttrace_put_status(struct sk_buff *msg,
			const struct ipttrace_status *status)
{
	const struct ipttrace_stats *stats = &status->stats;

	if (nla_put_u32(msg, IPTTRACE_A_PROTOCOL, IPTTRACE_PROTOCOL) ||
	    nla_put_u32(msg, IPTTRACE_A_STATE, status->state) ||
	    nla_put_u32(msg, IPTTRACE_A_REASON, status->reason) ||
	    nla_put_u32(msg, IPTTRACE_A_VERSION, IPTTRACE_RECORD_VERSION) ||
	    nla_put_u32(msg, IPTTRACE_A_OWNER_PID, status->owner_pid) ||
	    nla_put_u32(msg, IPTTRACE_A_TARGETS, status->targets) ||
	    nla_put_u32(msg, IPTTRACE_A_RULESET, status->ruleset) ||
	    put_u64(msg, IPTTRACE_A_NETNS_ID, status->net_id) ||
	    put_u64(msg, IPTTRACE_A_CALLS, stats->calls) ||
	    put_u64(msg, IPTTRACE_A_REFUSED, stats->refused) ||
	    put_u64(msg, IPTTRACE_A_MATCHED, stats->matched) ||
	    put_u64(msg, IPTTRACE_A_FOLLOWED, stats->followed) ||
	    put_u64(msg, IPTTRACE_A_FLIPPED, stats->flipped) ||
	    put_u64(msg, IPTTRACE_A_SILENCED, stats->silenced) ||
	    put_u64(msg, IPTTRACE_A_DUE_ENTRY, stats->due[IPTTRACE_ENTRY]) ||
	    put_u64(msg, IPTTRACE_A_DUE_RULE, stats->due[IPTTRACE_RULE]) ||
	    put_u64(msg, IPTTRACE_A_DUE_EXIT, stats->due[IPTTRACE_EXIT]) ||
	    put_u64(msg, IPTTRACE_A_NMISSED, stats->nmissed) ||
	    put_u64(msg, IPTTRACE_A_SKIPPED, status->skipped) ||
	    put_u64(msg, IPTTRACE_A_UNFOLLOWED, stats->unfollowed) ||
	    nla_put_u32(msg, IPTTRACE_A_DEPTH, stats->depth))
		return -EMSGSIZE;
	return 0;
}

int ipttrace_put_break(struct sk_buff *msg,
		       const struct ipttrace_break_table *table)
{
	if (nla_put_u32(msg, IPTTRACE_A_NETNS, table->netns) ||
	    nla_put_u32(msg, IPTTRACE_A_FAMILY, table->family) ||
	    nla_put_string(msg, IPTTRACE_A_TABLE, table->name) ||
	    nla_put_u32(msg, IPTTRACE_A_RULES, table->rules) ||
	    (table->nft && nla_put_flag(msg, IPTTRACE_A_NFT)))
		return -EMSGSIZE;
	return 0;
}
