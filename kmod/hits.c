// SPDX-License-Identifier: GPL-2.0-only
/*
 * Rules that calls hit: nf_log_trace(), which the kernel calls for each that a
 * packet with nf_trace set hits, and the target IPTTRACE for its own.
 *
 * With interrupts off, as in handlers.c.
 */

#include <linux/ktime.h>
#include <linux/string.h>
#include <net/net_namespace.h>

#include "compat.h"
#include "ipttrace.h"

struct kprobe ipttrace_log_probe;

/*
 * A struct net without any logger.  nf_log_trace() looks for one by the family
 * that it is given, and returns if there is none.  No family would do in its
 * place: a logger can be bound to each, NFPROTO_UNSPEC too.
 */
static struct net silent_net;

/*
 * Whether we caused this log line, although it belongs to no known call.  A copy
 * or a fragment of a packet has its nf_trace, but not its address.
 */
static bool log_ours(const struct net *net, const struct sk_buff *skb)
{
	if (!ipttrace_netns_wanted(net))
		return false;
	return ipttrace_session_flipped_all() || ipttrace_follow_has(skb) ||
	       (ipttrace_kprobes_hit() && !ipttrace_flaggers_any(net));
}
NOKPROBE_SYMBOL(log_ours);

/* A rule for which the call's own record has no room. */
static void rule_put(const struct ipttrace_call *call,
		     const struct ipttrace_hit *hit)
{
	union {
		struct ipttrace_rule record;
		struct pt_regs size; /* what the verifier lets it read */
	} context;
	struct ipttrace_rule *record = &context.record;

	BUILD_BUG_ON(sizeof(*record) > sizeof(struct pt_regs));
	memset(&context, 0, sizeof(context));
	*record = (struct ipttrace_rule){
		.call = call->record.entry.head.call,
		.time = hit->time,
		.rulenum = hit->rulenum,
		.seq = hit->seq,
		.match = hit->match,
	};
	memcpy(record->table, call->record.entry.head.table,
	       sizeof(record->table));
	memcpy(record->chain, hit->chain, sizeof(record->chain));
	this_cpu_inc(ipttrace_stats.due[IPTTRACE_RULE]);
	ipttrace_program_run(ipttrace_session.progs[IPTTRACE_PROG_RULE],
			     &context);
}
NOKPROBE_SYMBOL(rule_put);

/* A rule of the user's has set nf_trace in the middle of the call. */
static void call_mark(struct ipttrace_call *call)
{
	call->marked = true;
	this_cpu_inc(ipttrace_stats.matched);
	if (!ipttrace_follow_add(call->skb))
		this_cpu_inc(ipttrace_stats.unfollowed);
}
NOKPROBE_SYMBOL(call_mark);

/*
 * A breakpoint is hit: whether to trace the packet from there on.  Where it was
 * not known before whether the call would be due, it is now.
 */
bool ipttrace_break_armed(const struct sk_buff *skb, const struct net *net,
			  bool legacy)
{
	unsigned long flags;

	if (!READ_ONCE(ipttrace_session.live) || !ipttrace_session.from_rules ||
	    !ipttrace_netns_wanted(net))
		return false;
	local_irq_save(flags);
	if (legacy && !ipttrace_call_find(skb)) {
		this_cpu_inc(ipttrace_stats.matched);
		this_cpu_inc(ipttrace_stats.due[IPTTRACE_ENTRY]);
		this_cpu_inc(ipttrace_stats.nmissed);
	}
	local_irq_restore(flags);
	return true;
}
NOKPROBE_SYMBOL(ipttrace_break_armed);

static void call_rule(struct ipttrace_call *call, struct pt_regs *regs)
{
	const char *chain = (void *)ipttrace_log_arg(regs, 1);
	const char *comment = (void *)ipttrace_log_arg(regs, 2);
	u32 rulenum = ipttrace_log_arg(regs, 3);
	struct ipttrace_hit later, *hit = &later;

	if (!call->marked)
		call_mark(call);
	if (call->rules < IPTTRACE_HITS)
		hit = &call->record.hits[call->rules];
	hit->time = ktime_get_mono_fast_ns();
	hit->rulenum = rulenum;
	hit->seq = call->rules++;
	hit->match = ipttrace_match_of(call, chain, comment, rulenum);
	hit->reserved = 0;
	strscpy_pad(hit->chain, chain, sizeof(hit->chain));
	if (hit == &later)
		rule_put(call, hit);
	call->overhead += ktime_get_mono_fast_ns() - hit->time;
}
NOKPROBE_SYMBOL(call_rule);

int ipttrace_log_hit(struct kprobe *p, struct pt_regs *regs)
{
	const struct net *net = (void *)regs_get_kernel_argument(regs, 0);
	struct sk_buff *skb = (void *)regs_get_kernel_argument(regs, 3);
	struct ipttrace_call *call = NULL;
	unsigned long flags;

	local_irq_save(flags);
	if (READ_ONCE(ipttrace_session.live))
		call = ipttrace_call_find(skb);
	if (call)
		call_rule(call, regs);
	if (call || log_ours(net, skb)) {
		ipttrace_set_arg(regs, 0, (unsigned long)&silent_net);
		this_cpu_inc(ipttrace_stats.silenced);
	}
	local_irq_restore(flags);
	return 0;
}
NOKPROBE_SYMBOL(ipttrace_log_hit);
