// SPDX-License-Identifier: GPL-2.0-only
/*
 * The handlers: of a run of ipt_do_table() or ip6t_do_table(), which they make a
 * call of, and of nf_log_trace(), which is told of each rule that a traced packet
 * hits.  What makes them be called is in hook.c.
 *
 * The state of a call lives in its kretprobe instance; calls.c finds it again.
 *
 * Once a packet is wanted they run with interrupts off, so that none runs inside
 * another on a CPU.  They do not sleep, allocate or print.
 */

#include <linux/netfilter/x_tables.h>
#include <linux/rcupdate.h>
#include <linux/timekeeping.h>
#include <net/net_namespace.h>
#include <net/netfilter/nf_conntrack.h>

#include "compat.h"
#include "ipttrace.h"

static struct {
	struct bpf_prog *progs[IPTTRACE_PROGS];
	struct ipttrace_whole __percpu *finished;
	struct bpf_prog __rcu *filter;
	u32 netns;
	bool live;	/* calls are traced; else only log lines are silenced */
	bool filtered;	/* was there a filter; outlives it */
} session;

static DEFINE_PER_CPU(struct ipttrace_stats, stats);

/* Did the kretprobe's own pre_handler find an instance? */
static DEFINE_PER_CPU(bool, call_taken);

static void run_prog(enum ipttrace_prog prog, void *context)
{
	rcu_read_lock();
	bpf_prog_run(session.progs[prog], context);
	rcu_read_unlock();
}
NOKPROBE_SYMBOL(run_prog);

static bool netns_wanted(const struct net *net)
{
	return !session.netns || net->ns.inum == session.netns;
}
NOKPROBE_SYMBOL(netns_wanted);

/* Whether to trace this call; when not, nothing has been changed. */
static bool call_wanted(struct sk_buff *skb, const struct nf_hook_state *state)
{
	const struct bpf_prog *filter;

	if (!netns_wanted(state->net))
		return false;

	/* Preemption is off, which is a read side too. */
	filter = rcu_dereference_sched(session.filter);
	if (!filter)
		return true;
	if (ipttrace_follow_has(skb)) {
		if (skb->nf_trace)
			return true;
		ipttrace_follow_del(skb);
	}
	return bpf_prog_run(filter, skb);
}
NOKPROBE_SYMBOL(call_wanted);

/* Makes a call of it: takes an instance, and hooks the return. */
static int call_take(struct kprobe *p, struct pt_regs *regs)
{
	unsigned long flags;
	int ret;

	raw_local_irq_save(flags);
	this_cpu_inc(stats.matched);
	this_cpu_write(call_taken, false);
	ret = ipttrace_take_instance(p, regs);
	/* CPUs that count rp->nmissed at one time lose some of it. */
	if (!this_cpu_read(call_taken)) {
		this_cpu_inc(stats.due[IPTTRACE_ENTRY]);
		this_cpu_inc(stats.nmissed);
	}
	raw_local_irq_restore(flags);
	return ret;
}
NOKPROBE_SYMBOL(call_take);

static __always_inline int table_hit(struct kprobe *p, struct pt_regs *regs)
{
	struct sk_buff *skb = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_SKB);
	const struct nf_hook_state *state = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_STATE);

	if (!READ_ONCE(session.live))
		return 0;
	if (!call_wanted(skb, state)) {
		this_cpu_inc(stats.refused);
		return 0;
	}
	return call_take(p, regs);
}

/*
 * Stands before the kretprobe's own pre_handler: a packet that is not wanted
 * costs the filter and no kretprobe instance.
 */
int ipttrace_table_hit(struct kprobe *p, struct pt_regs *regs)
{
	return table_hit(p, regs);
}
NOKPROBE_SYMBOL(ipttrace_table_hit);

/* nf_trace, and remembering the packet whose flip it is */
static u8 packet_flip(struct sk_buff *skb)
{
	bool filtered = rcu_access_pointer(session.filter);
	u8 flags = 0;

	if (!skb->nf_trace) {
		skb->nf_trace = 1;
		this_cpu_inc(stats.flipped);
		flags |= IPTTRACE_F_FIRST;
	} else if (filtered && ipttrace_follow_has(skb)) {
		this_cpu_inc(stats.followed);
		return IPTTRACE_F_FOLLOWED;
	}
	if (filtered && !ipttrace_follow_add(skb))
		this_cpu_inc(stats.unfollowed);
	return flags;
}
NOKPROBE_SYMBOL(packet_flip);

/* Unique for as long as one is armed: CPUs count apart, 2^48 each. */
static u64 call_next_id(void)
{
	return (u64)this_cpu_inc_return(stats.next_call) << 16 |
	       (raw_smp_processor_id() + 1);
}
NOKPROBE_SYMBOL(call_next_id);

int ipttrace_call_enter(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	const struct xt_table *table = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_TABLE);
	struct sk_buff *skb = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_SKB);
	const struct nf_hook_state *state = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_STATE);
	struct ipttrace_call *call = (struct ipttrace_call *)ri->data;
	struct ipttrace_entry *entry = &call->whole.entry;
	struct ipttrace_entry_head *head = &entry->head;

	this_cpu_write(call_taken, true);
	head->time = ktime_get_mono_fast_ns();
	head->call = call_next_id();

	call->task = current;
	call->skb = skb;
	call->table = table;
	call->hook = state->hook;
	call->family = state->pf;
	call->overhead = 0;
	call->rules = 0;
	call->softirq = in_serving_softirq();
	ipttrace_call_link(call);
	if (call->depth > this_cpu_read(stats.depth))
		this_cpu_write(stats.depth, call->depth);

	head->ruleset = ipttrace_ruleset();
	head->skb = (unsigned long)skb;
	head->parent = call->parent ? call->parent->whole.entry.head.call : 0;
	head->sk = (unsigned long)skb->sk;
	head->netns = state->net->ns.inum;
	head->len = skb->len;
	head->mark = skb->mark;
	head->in_ifindex = state->in ? state->in->ifindex : 0;
	head->out_ifindex = state->out ? state->out->ifindex : 0;
	head->family = state->pf;
	head->hook = state->hook;
	head->depth = call->depth - 1;
	head->flags = packet_flip(skb);
	if (call->softirq)
		head->flags |= IPTTRACE_F_SOFTIRQ;
	ipttrace_head_conntrack(head, skb);
	memcpy(head->table, table->name, sizeof(head->table));
	head->source = IPTTRACE_SOURCE_KERNEL;
	head->tables = 0;
	head->reserved1 = 0;
	head->trace_id = 0;
	head->pid = task_tgid_nr(current);
	head->tid = task_pid_nr(current);
	head->cpu = raw_smp_processor_id();
	ipttrace_head_link(head, skb);
	ipttrace_entry_names(entry, state);

	/* ipt_do_table() is given packets with data at the network header. */
	head->caplen = min_t(u32, skb_headlen(skb), IPTTRACE_PACKET_LEN);
	memcpy(entry->packet, skb->data, head->caplen);
	/* Nothing of an earlier packet's may stay. */
	memset(entry->packet + head->caplen, 0,
	       IPTTRACE_PACKET_LEN - head->caplen);

	call->start = ktime_get_mono_fast_ns();
	if (call->parent)
		call->parent->overhead += call->start - head->time;
	return 0;
}
NOKPROBE_SYMBOL(ipttrace_call_enter);

/* All of its records that are still to come are due from here on. */
static void call_put(const struct ipttrace_call *call)
{
	struct pt_regs context;

	this_cpu_inc(stats.due[IPTTRACE_ENTRY]);
	this_cpu_add(stats.due[IPTTRACE_RULE],
		     min_t(u16, call->rules, IPTTRACE_HITS));
	this_cpu_inc(stats.due[IPTTRACE_EXIT]);
	memcpy(this_cpu_ptr(session.finished), &call->whole,
	       sizeof(call->whole));
	run_prog(IPTTRACE_PROG_CALL, &context);
}
NOKPROBE_SYMBOL(call_put);

int ipttrace_call_exit(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	u64 now = ktime_get_mono_fast_ns();
	struct ipttrace_call *call = (struct ipttrace_call *)ri->data;
	u32 verdict = regs_return_value(regs);
	struct ipttrace_exit *record = &call->whole.exit;
	unsigned long flags;

	/* The probes are going: the index may be gone already. */
	if (!READ_ONCE(session.live))
		return 0;

	raw_local_irq_save(flags);
	ipttrace_call_unlink(call);
	*record = (struct ipttrace_exit){
		.call = call->whole.entry.head.call,
		.time = now,
		.skb = (unsigned long)call->skb,
		.cost = now - call->start,
		.verdict = verdict,
		.rules = call->rules,
	};
	record->cost -= min(record->cost, call->overhead);
	if (ipttrace_ruleset() != call->whole.entry.head.ruleset)
		record->flags |= IPTTRACE_F_CHANGED;

	switch (verdict & NF_VERDICT_MASK) {
	case NF_ACCEPT:
	case NF_REPEAT: {
		enum ip_conntrack_info info;
		const struct nf_conn *ct = nf_ct_get(call->skb, &info);

		record->flags |= IPTTRACE_F_ALIVE;
		record->mark = call->skb->mark;
		record->ct_info = info;
		if (ct)
			record->ct_status = READ_ONCE(ct->status);
		break;
	}
	case NF_DROP:
	case NF_STOLEN:
		/* It may be freed: from here on its address means nothing. */
		if (rcu_access_pointer(session.filter))
			ipttrace_follow_del(call->skb);
		break;
	}

	call_put(call);

	if (call->parent)
		call->parent->overhead += call->overhead +
			ktime_get_mono_fast_ns() - now;
	raw_local_irq_restore(flags);
	return 0;
}
NOKPROBE_SYMBOL(ipttrace_call_exit);

/* Whether this log line is there because of us, though no call is known. */
static bool log_ours(const struct net *net, const struct sk_buff *skb)
{
	if (!netns_wanted(net))
		return false;
	return !session.filtered || ipttrace_follow_has(skb);
}
NOKPROBE_SYMBOL(log_ours);

/* A rule beyond those that a call takes along. */
static void rule_put(const struct ipttrace_call *call,
		     const struct ipttrace_hit *hit)
{
	union {
		struct ipttrace_rule record;
		struct pt_regs size;	/* what the program may read */
	} context;
	struct ipttrace_rule *record = &context.record;

	BUILD_BUG_ON(sizeof(*record) > sizeof(struct pt_regs));
	*record = (struct ipttrace_rule){
		.call = call->whole.entry.head.call,
		.time = hit->time,
		.rulenum = hit->rulenum,
		.seq = hit->seq,
		.match = hit->match,
	};
	memcpy(record->table, call->whole.entry.head.table,
	       sizeof(record->table));
	memcpy(record->chain, hit->chain, sizeof(record->chain));
	this_cpu_inc(stats.due[IPTTRACE_RULE]);
	run_prog(IPTTRACE_PROG_RULE, &context);
}
NOKPROBE_SYMBOL(rule_put);

static void call_rule(struct ipttrace_call *call, struct pt_regs *regs)
{
	const char *chain = (void *)ipttrace_log_arg(regs, 1);
	const char *comment = (void *)ipttrace_log_arg(regs, 2);
	u32 rulenum = ipttrace_log_arg(regs, 3);
	struct ipttrace_hit later, *hit = &later;

	if (call->rules < IPTTRACE_HITS)
		hit = &call->whole.hits[call->rules];
	hit->time = ktime_get_mono_fast_ns();
	hit->rulenum = rulenum;
	hit->seq = call->rules++;
	hit->match = ipttrace_match_of(call, comment, rulenum);
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

	raw_local_irq_save(flags);
	if (READ_ONCE(session.live))
		call = ipttrace_call_find(skb);
	if (call)
		call_rule(call, regs);
	if (call || log_ours(net, skb)) {
		/* No logger is bound to it: nf_log_trace() returns at once. */
		ipttrace_set_arg(regs, 1, NFPROTO_UNSPEC);
		this_cpu_inc(stats.silenced);
	}
	raw_local_irq_restore(flags);
	return 0;
}
NOKPROBE_SYMBOL(ipttrace_log_hit);

#ifdef IPTTRACE_FTRACE
/* Both may be some bytes into the function. */
static __always_inline bool traced_at(unsigned long ip, const struct kprobe *p)
{
	return ip - (unsigned long)p->addr <= 16;
}

void notrace ipttrace_traced(unsigned long ip, unsigned long parent_ip,
			     struct ftrace_ops *ops, struct ftrace_regs *fregs)
{
	struct kprobe *p = &ipttrace_table_probes[IPTTRACE_IP].kp;

	preempt_disable_notrace();
	if (traced_at(ip, &ipttrace_log_probe)) {
		ipttrace_log_hit(NULL, ipttrace_ftrace_args(fregs));
		goto enable;
	}
	if (!READ_ONCE(session.live))
		goto enable;
	if (!traced_at(ip, p)) {
		p = &ipttrace_table_probes[IPTTRACE_IP6].kp;
		if (!traced_at(ip, p))
			goto enable;
	}
	/*
	 * Gone with its module: until the rescan what is at its address now may
	 * be another function, whose arguments are not ours to look at.
	 */
	if (!kprobe_gone(p))
		table_hit(p, ipttrace_ftrace_args(fregs));
enable:
	preempt_enable_notrace();
}
NOKPROBE_SYMBOL(ipttrace_traced);
#endif

static void stats_clear(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		memset(per_cpu_ptr(&stats, cpu), 0, sizeof(stats));
}

/* Takes the programs and the filter over only when it returns 0. */
int ipttrace_probes_setup(const struct ipttrace_setup *setup,
			  struct netlink_ext_ack *extack)
{
	int err;

	err = ipttrace_follow_setup();
	if (err) {
		NL_SET_ERR_MSG(extack, "no memory for the followed packets");
		return err;
	}
	ipttrace_calls_clear();
	stats_clear();
	memcpy(session.progs, setup->progs, sizeof(session.progs));
	session.finished = setup->finished;
	rcu_assign_pointer(session.filter, setup->filter);
	session.filtered = setup->filter;
	session.netns = setup->netns;

	err = ipttrace_hooks_setup(setup->maxactive, extack);
	if (err)
		goto forget;
	/* Not sooner: before a log line is caused, it can be silenced. */
	WRITE_ONCE(session.live, true);
	return 0;

forget:
	RCU_INIT_POINTER(session.filter, NULL);
	memset(session.progs, 0, sizeof(session.progs));
	ipttrace_follow_teardown();
	return err;
}

/*
 * No call is traced any more, and the programs are put.  The log probe stays,
 * to be taken away by ipttrace_probes_drained().
 */
void ipttrace_probes_teardown(void)
{
	struct bpf_prog *filter;
	int i;

	WRITE_ONCE(session.live, false);
	/* Every handler that saw it live, with preemption off, has returned. */
	synchronize_rcu();
	ipttrace_hooks_teardown();
	ipttrace_calls_clear();
	filter = rcu_dereference_protected(session.filter, true);
	RCU_INIT_POINTER(session.filter, NULL);
	if (filter)
		bpf_prog_destroy(filter);
	for (i = 0; i < IPTTRACE_PROGS; i++) {
		bpf_prog_put(session.progs[i]);
		session.progs[i] = NULL;
	}
}

void ipttrace_probes_drained(void)
{
	ipttrace_hooks_drained();
	ipttrace_follow_teardown();
}

/* Gives the old filter back, which no handler uses any more. */
struct bpf_prog *ipttrace_probes_swap_filter(struct bpf_prog *filter)
{
	struct bpf_prog *old = rcu_dereference_protected(session.filter, true);

	rcu_assign_pointer(session.filter, filter);
	session.filtered = filter;
	synchronize_rcu();
	return old;
}

void ipttrace_probes_stats(struct ipttrace_stats *sum, u64 *skipped)
{
	int cpu, i;

	memset(sum, 0, sizeof(*sum));
	for_each_possible_cpu(cpu) {
		const struct ipttrace_stats *one = per_cpu_ptr(&stats, cpu);

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

	*skipped = ipttrace_hooks_skipped();
}
