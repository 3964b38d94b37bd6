// SPDX-License-Identifier: GPL-2.0-only
/*
 * The target IPTTRACE: a packet that hits such a rule is traced from there on,
 * if somebody wants that; see breaks.c.  Else it does nothing.
 *
 * The kernel looks at nf_trace before it calls a rule's target.  So in a legacy
 * table the hit of this rule is logged here, as the kernel logs the next ones;
 * nftables looks afterwards, and reports it by itself.
 */

#include <linux/ctype.h>
#include <linux/netfilter/x_tables.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <linux/rcupdate.h>
#include <linux/string.h>
#include <net/netfilter/nf_log.h>

#include "breaks.h"
#include "compat.h"
#include "ipttrace.h"
#include "uapi/xt_IPTTRACE.h"

static const char *const hook_names[NF_INET_NUMHOOKS] = {
	[NF_INET_PRE_ROUTING] = "PREROUTING",	[NF_INET_LOCAL_IN] = "INPUT",
	[NF_INET_FORWARD] = "FORWARD",		[NF_INET_LOCAL_OUT] = "OUTPUT",
	[NF_INET_POST_ROUTING] = "POSTROUTING",
};

static const struct nf_loginfo target_loginfo = {
	.type = NF_LOG_TYPE_LOG,
	.u = {
		.log = {
			.level = 4,
			.logflags = NF_LOG_DEFAULT_MASK,
		},
	},
};

/*
 * The rule's chain and number, as get_chainname_rulenum() of the kernel counts;
 * NULL if the table was replaced while the packet was in it.
 */
static const char *rule_find(const struct xt_table *table, u8 family,
			     unsigned int hook, const void *targinfo,
			     u32 *rulenum)
{
	const struct xt_table_info *private =
		(__force void *)READ_ONCE(table->private);
	unsigned long rule =
		(unsigned long)targinfo - (unsigned long)private->entries;
	unsigned int at = private->hook_entry[hook], next, target;
	const char *chain = hook_names[hook];

	*rulenum = 0;
	for (; rule < private->size && at < private->size; at += next) {
		const void *entry = private->entries + at;
		const struct xt_error_target *t;

		if (family == NFPROTO_IPV6) {
			next = ((const struct ip6t_entry *)entry)->next_offset;
			target = ((const struct ip6t_entry *)entry)
					 ->target_offset;
		} else {
			next = ((const struct ipt_entry *)entry)->next_offset;
			target =
				((const struct ipt_entry *)entry)->target_offset;
		}
		if (!next)
			break;
		t = entry + target;
		if (!strcmp(t->target.u.kernel.target->name, XT_ERROR_TARGET)) {
			chain = t->errorname;
			*rulenum = 0;
			continue;
		}
		++*rulenum;
		if (rule >= at && rule - at < next)
			return chain;
	}
	return NULL;
}

/* As the kernel's trace_packet() does for a packet with nf_trace. */
static void hit_log(const struct sk_buff *skb,
		    const struct xt_action_param *par,
		    const struct xt_table *table)
{
	const char *chain;
	u32 rulenum;

	chain = rule_find(table, xt_family(par), xt_hooknum(par), par->targinfo,
			  &rulenum);
	if (chain)
		nf_log_trace(xt_net(par), xt_family(par), xt_hooknum(par), skb,
			     xt_in(par), xt_out(par), &target_loginfo,
			     "TRACE: %s:%s:%s:%u ", table->name, chain, "rule",
			     rulenum);
}

static unsigned int target_hit(struct sk_buff *skb,
			       const struct xt_action_param *par)
{
	const struct xt_ipttrace_info *info = par->targinfo;
	bool wanted;

	if (skb->nf_trace)
		return XT_CONTINUE;
	rcu_read_lock();
	wanted = ipttrace_breaks_socket_wants(xt_net(par)) ||
		 ipttrace_break_armed(skb, xt_net(par), !info->table->nft);
	if (wanted) {
		skb->nf_trace = 1;
		if (info->table->table)
			hit_log(skb, par, info->table->table);
	}
	rcu_read_unlock();
	return XT_CONTINUE;
}

static bool note_valid(const char *note)
{
	size_t i, len = strnlen(note, IPTTRACE_NOTE_LEN);

	for (i = 0; i < len; i++)
		if (iscntrl(note[i]))
			return false;
	return len < IPTTRACE_NOTE_LEN &&
	       !memchr_inv(note + len, 0, IPTTRACE_NOTE_LEN - len);
}

static int target_check(const struct xt_tgchk_param *par)
{
	struct xt_ipttrace_info *info = par->targinfo;

	if (!note_valid(info->note) ||
	    memchr_inv(info->reserved, 0, sizeof(info->reserved)))
		return -EINVAL;
	info->table = ipttrace_break_table_get(par->net, par->family,
					       par->table, par->nft_compat);
	return PTR_ERR_OR_ZERO(info->table);
}

static void target_destroy(const struct xt_tgdtor_param *par)
{
	const struct xt_ipttrace_info *info = par->targinfo;

	ipttrace_break_table_put(info->table);
}

#define TARGET(pf)                                                    \
	{                                                             \
		.name = "IPTTRACE",                                   \
		.family = (pf),                                       \
		.target = target_hit,                                 \
		.checkentry = target_check,                           \
		.destroy = target_destroy,                            \
		.targetsize = sizeof(struct xt_ipttrace_info),        \
		.usersize = offsetof(struct xt_ipttrace_info, table), \
		.me = THIS_MODULE,                                    \
	}

static struct xt_target targets[] = {
	TARGET(NFPROTO_IPV4),
	TARGET(NFPROTO_IPV6),
};

int ipttrace_target_setup(void)
{
	return xt_register_targets(targets, ARRAY_SIZE(targets));
}

void ipttrace_target_teardown(void)
{
	xt_unregister_targets(targets, ARRAY_SIZE(targets));
}
