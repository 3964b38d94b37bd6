// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the handlers use while armed: the BPF programs, the filter and the
 * namespace; and what they count.
 *
 * Owns none of the programs: control.c keeps them from ARM to DISARM.
 */

#include <linux/err.h>
#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/minmax.h>
#include <linux/module.h>
#include <linux/rcupdate.h>
#include <linux/string.h>

#include "ipttrace.h"

unsigned int ipttrace_drain_ms = IPTTRACE_DRAIN_MS;
module_param_named(drain_ms, ipttrace_drain_ms, uint, 0444);
MODULE_PARM_DESC(
	drain_ms,
	"how long the log lines of packets on their way are silenced after disarming, in ms");

struct ipttrace_session ipttrace_session;
DEFINE_PER_CPU(struct ipttrace_stats, ipttrace_stats);

static void stats_clear(void)
{
	int cpu;

	for_each_possible_cpu(cpu) {
		struct ipttrace_stats *one = per_cpu_ptr(&ipttrace_stats, cpu);
		u64 next_call = one->next_call;

		memset(one, 0, sizeof(*one));
		one->next_call = next_call;
	}
}

/* Before the first handler runs. */
void ipttrace_session_setup(const struct ipttrace_setup *setup)
{
	stats_clear();
	memcpy(ipttrace_session.progs, setup->progs,
	       sizeof(ipttrace_session.progs));
	ipttrace_session.finished = setup->finished;
	ipttrace_session.from_rules = setup->from_rules;
	rcu_assign_pointer(ipttrace_session.filter, setup->filter);
	ipttrace_session.flips_all = !setup->filter;
	ipttrace_session.flipped_all_until = jiffies;
	WRITE_ONCE(ipttrace_session.net, setup->net);
}

/*
 * After it was stopped and no return is hooked any more.  Log lines are still
 * silenced, for which net, flips_all and flipped_all_until stay.
 */
void ipttrace_session_teardown(void)
{
	RCU_INIT_POINTER(ipttrace_session.filter, NULL);
	memset(ipttrace_session.progs, 0, sizeof(ipttrace_session.progs));
}

void ipttrace_session_start(void)
{
	WRITE_ONCE(ipttrace_session.live, true);
}

/* Every handler that saw it live, with preemption off, has returned. */
void ipttrace_session_stop(void)
{
	WRITE_ONCE(ipttrace_session.live, false);
	synchronize_rcu();
}

/* A new namespace may get its address: that is not to be traced. */
void ipttrace_session_net_gone(void)
{
	WRITE_ONCE(ipttrace_session.net, ERR_PTR(-ENOENT));
}

/*
 * When it returns, no handler uses the old filter any more.  Packets that were
 * flipped without a filter are on their way for a while longer.
 */
void ipttrace_session_set_filter(struct bpf_prog *filter)
{
	if (!filter)
		WRITE_ONCE(ipttrace_session.flips_all, true);
	rcu_assign_pointer(ipttrace_session.filter, filter);
	synchronize_rcu();
	if (!filter || !ipttrace_session.flips_all)
		return;
	WRITE_ONCE(ipttrace_session.flipped_all_until,
		   jiffies + msecs_to_jiffies(ipttrace_drain_ms));
	/* Who sees the one sees the other: see below. */
	smp_store_release(&ipttrace_session.flips_all, false);
}

/* Whether any packet with nf_trace set may have been flipped without a filter. */
bool ipttrace_session_flipped_all(void)
{
	return smp_load_acquire(&ipttrace_session.flips_all) ||
	       time_before(jiffies,
			   READ_ONCE(ipttrace_session.flipped_all_until));
}
NOKPROBE_SYMBOL(ipttrace_session_flipped_all);

void ipttrace_session_stats(struct ipttrace_stats *sum)
{
	int cpu, i;

	memset(sum, 0, sizeof(*sum));
	for_each_possible_cpu(cpu) {
		const struct ipttrace_stats *one =
			per_cpu_ptr(&ipttrace_stats, cpu);

		sum->refused += READ_ONCE(one->refused);
		sum->matched += READ_ONCE(one->matched);
		sum->followed += READ_ONCE(one->followed);
		sum->flipped += READ_ONCE(one->flipped);
		sum->silenced += READ_ONCE(one->silenced);
		sum->unfollowed += READ_ONCE(one->unfollowed);
		sum->nmissed += READ_ONCE(one->nmissed);
		sum->depth = max(sum->depth, READ_ONCE(one->depth));
		for (i = 0; i < IPTTRACE_KINDS; i++)
			sum->due[i] += READ_ONCE(one->due[i]);
	}
	sum->calls = sum->refused + sum->matched;
}
