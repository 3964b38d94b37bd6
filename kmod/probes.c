// SPDX-License-Identifier: GPL-2.0-only
/*
 * The probes: a kretprobe on ipt_do_table() and on ip6t_do_table(), which makes
 * a call of each run, and a kprobe on nf_log_trace(), which is told of each
 * rule that a traced packet hits.
 *
 * The state of a call lives in its kretprobe instance; calls.c finds it again.
 *
 * Handlers run with preemption off and never inside one another on a CPU: where
 * kprobes find one running, they skip the new one and count it.  They do not
 * sleep, allocate or print.
 */

#include <linux/netfilter/x_tables.h>
#include <linux/rcupdate.h>
#include <linux/timekeeping.h>
#include <net/net_namespace.h>
#include <net/netfilter/nf_conntrack.h>

#include "compat.h"
#include "ipttrace.h"

struct call_probe {
	struct kretprobe rp;
	const char *symbol;
	kretprobe_handler_t entry;
	bool registered;
};

static int call_enter4(struct kretprobe_instance *ri, struct pt_regs *regs);
static int call_enter6(struct kretprobe_instance *ri, struct pt_regs *regs);
static int log_hit(struct kprobe *p, struct pt_regs *regs);

static struct call_probe call_probes[] = {
	{ .symbol = "ipt_do_table", .entry = call_enter4 },
	{ .symbol = "ip6t_do_table", .entry = call_enter6 },
};

static struct kprobe log_probe;

/* What pre_handler of every kretprobe is: takes an instance, hooks the return */
static kprobe_pre_handler_t kretprobe_pre_handler;

static struct {
	struct bpf_prog *progs[IPTTRACE_KINDS];
	struct bpf_prog __rcu *filter;
	u32 netns;
	u32 maxactive;
	bool live;	/* calls are traced; else only log lines are silenced */
	bool filtered;	/* was there a filter; outlives it */
	u64 skipped;	/* of probes that are no more */
} session;

static DEFINE_PER_CPU(struct ipttrace_stats, stats);

/* Did the kretprobe's own pre_handler find an instance? */
static DEFINE_PER_CPU(bool, call_taken);

static void run_prog(enum ipttrace_kind kind, void *context)
{
	rcu_read_lock();
	bpf_prog_run(session.progs[kind], context);
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

/*
 * Stands before the kretprobe's own pre_handler: a packet that is not wanted
 * costs the filter and no kretprobe instance.
 */
static int call_hit(struct kprobe *p, struct pt_regs *regs)
{
	struct sk_buff *skb = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_SKB);
	const struct nf_hook_state *state = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_STATE);
	int ret;

	if (!READ_ONCE(session.live))
		return 0;

	if (!call_wanted(skb, state)) {
		this_cpu_inc(stats.refused);
		return 0;
	}
	this_cpu_inc(stats.due[IPTTRACE_ENTRY]);
	this_cpu_write(call_taken, false);
	ret = kretprobe_pre_handler(p, regs);
	/* CPUs that count rp->nmissed at one time lose some of it. */
	if (!this_cpu_read(call_taken))
		this_cpu_inc(stats.nmissed);
	return ret;
}
NOKPROBE_SYMBOL(call_hit);

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

static void call_enter(struct kretprobe_instance *ri, struct pt_regs *regs,
		       u8 family)
{
	const struct xt_table *table = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_TABLE);
	struct sk_buff *skb = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_SKB);
	const struct nf_hook_state *state = (void *)
		regs_get_kernel_argument(regs, IPTTRACE_ARG_STATE);
	struct ipttrace_call *call = (struct ipttrace_call *)ri->data;
	struct ipttrace_entry_head head = {};
	struct pt_regs context;

	this_cpu_write(call_taken, true);
	head.time = ktime_get_mono_fast_ns();

	call->id = call_next_id();
	call->task = current;
	call->skb = skb;
	call->table = table;
	call->hook = state->hook;
	call->family = family;
	call->overhead = 0;
	call->rules = 0;
	call->softirq = in_serving_softirq();
	ipttrace_call_link(call);
	if (call->depth > this_cpu_read(stats.depth))
		this_cpu_write(stats.depth, call->depth);

	call->ruleset = ipttrace_ruleset();
	head.ruleset = call->ruleset;
	head.call = call->id;
	head.skb = (unsigned long)skb;
	head.parent = call->parent ? call->parent->id : 0;
	head.sk = (unsigned long)skb->sk;
	head.netns = state->net->ns.inum;
	head.len = skb->len;
	head.mark = skb->mark;
	head.in_ifindex = state->in ? state->in->ifindex : 0;
	head.out_ifindex = state->out ? state->out->ifindex : 0;
	head.family = family;
	head.hook = state->hook;
	head.depth = call->depth - 1;
	head.flags = packet_flip(skb);
	if (call->softirq)
		head.flags |= IPTTRACE_F_SOFTIRQ;
	ipttrace_head_conntrack(&head, skb);
	memcpy(head.table, table->name, sizeof(head.table));
	head.pid = task_tgid_nr(current);
	head.tid = task_pid_nr(current);
	head.cpu = raw_smp_processor_id();
	ipttrace_head_link(&head, skb);

	/* ipt_do_table() is given packets with data at the network header. */
	head.caplen = min_t(u32, skb_headlen(skb), IPTTRACE_PACKET_LEN);
	ipttrace_set_arg(&context, 0, (unsigned long)&head);
	ipttrace_set_arg(&context, 1, (unsigned long)skb->data);
	ipttrace_set_arg(&context, 2, (unsigned long)state->in);
	ipttrace_set_arg(&context, 3, (unsigned long)state->out);
	run_prog(IPTTRACE_ENTRY, &context);

	call->start = ktime_get_mono_fast_ns();
	if (call->parent)
		call->parent->overhead += call->start - head.time;
}
NOKPROBE_SYMBOL(call_enter);

static int call_enter4(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	call_enter(ri, regs, NFPROTO_IPV4);
	return 0;
}
NOKPROBE_SYMBOL(call_enter4);

static int call_enter6(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	call_enter(ri, regs, NFPROTO_IPV6);
	return 0;
}
NOKPROBE_SYMBOL(call_enter6);

static int call_exit(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	u64 now = ktime_get_mono_fast_ns();
	struct ipttrace_call *call = (struct ipttrace_call *)ri->data;
	u32 verdict = regs_return_value(regs);
	union {
		struct ipttrace_exit record;
		struct pt_regs size;	/* what the program may read */
	} context;
	struct ipttrace_exit *record = &context.record;

	/* The probes are going: the index may be gone already. */
	if (!READ_ONCE(session.live))
		return 0;

	ipttrace_call_unlink(call);
	*record = (struct ipttrace_exit){
		.call = call->id,
		.time = now,
		.skb = (unsigned long)call->skb,
		.cost = now - call->start,
		.verdict = verdict,
		.rules = call->rules,
	};
	record->cost -= min(record->cost, call->overhead);
	if (ipttrace_ruleset() != call->ruleset)
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

	this_cpu_inc(stats.due[IPTTRACE_EXIT]);
	run_prog(IPTTRACE_EXIT, &context);

	if (call->parent)
		call->parent->overhead += call->overhead +
			ktime_get_mono_fast_ns() - now;
	return 0;
}
NOKPROBE_SYMBOL(call_exit);

/* Whether this log line is there because of us, though no call is known. */
static bool log_ours(const struct net *net, const struct sk_buff *skb)
{
	if (!netns_wanted(net))
		return false;
	return !session.filtered || ipttrace_follow_has(skb);
}
NOKPROBE_SYMBOL(log_ours);

static void *log_arg(struct pt_regs *regs, unsigned int n)
{
	return (void *)regs_get_kernel_stack_nth(regs, IPTTRACE_LOG_STACK + n);
}
NOKPROBE_SYMBOL(log_arg);

static void call_rule(struct ipttrace_call *call, struct pt_regs *regs)
{
	u32 rulenum = (unsigned long)log_arg(regs, 3);
	union {
		struct ipttrace_rule record;
		struct pt_regs size;	/* what the program may read */
	} context;
	struct ipttrace_rule *record = &context.record;

	BUILD_BUG_ON(sizeof(*record) > sizeof(struct pt_regs));
	BUILD_BUG_ON(sizeof(record->table) != sizeof(call->table->name));
	*record = (struct ipttrace_rule){
		.call = call->id,
		.time = ktime_get_mono_fast_ns(),
		.rulenum = rulenum,
		.seq = call->rules++,
		.match = ipttrace_match_of(call, log_arg(regs, 2), rulenum),
	};
	memcpy(record->table, call->table->name, sizeof(record->table));
	strscpy(record->chain, log_arg(regs, 1), sizeof(record->chain));
	this_cpu_inc(stats.due[IPTTRACE_RULE]);
	run_prog(IPTTRACE_RULE, &context);
	call->overhead += ktime_get_mono_fast_ns() - record->time;
}
NOKPROBE_SYMBOL(call_rule);

static int log_hit(struct kprobe *p, struct pt_regs *regs)
{
	const struct net *net = (void *)regs_get_kernel_argument(regs, 0);
	struct sk_buff *skb = (void *)regs_get_kernel_argument(regs, 3);
	struct ipttrace_call *call = NULL;

	if (READ_ONCE(session.live))
		call = ipttrace_call_find(skb);
	if (call)
		call_rule(call, regs);
	else if (!log_ours(net, skb))
		return 0;
	/* No logger is bound to it, so that nf_log_trace() returns at once. */
	ipttrace_set_arg(regs, 1, NFPROTO_UNSPEC);
	this_cpu_inc(stats.silenced);
	return 0;
}
NOKPROBE_SYMBOL(log_hit);

static void misses_keep(struct call_probe *probe)
{
	session.skipped += probe->rp.kp.nmissed;
}

static int call_probe_register(struct call_probe *probe)
{
	struct kretprobe *rp = &probe->rp;
	int err;

	memset(rp, 0, sizeof(*rp));
	rp->kp.symbol_name = probe->symbol;
	rp->kp.flags = KPROBE_FLAG_DISABLED;
	rp->entry_handler = probe->entry;
	rp->handler = call_exit;
	rp->data_size = sizeof(struct ipttrace_call);
	rp->maxactive = session.maxactive ?:
			max_t(int, 128, 16 * num_possible_cpus());
	err = register_kretprobe(rp);
	if (err)
		return err;
	kretprobe_pre_handler = rp->kp.pre_handler;
	rp->kp.pre_handler = call_hit;
	err = enable_kretprobe(rp);
	if (err) {
		unregister_kretprobe(rp);
		return err;
	}
	probe->registered = true;
	return 0;
}

static void call_probe_unregister(struct call_probe *probe)
{
	unregister_kretprobe(&probe->rp);
	misses_keep(probe);
	probe->registered = false;
}

/* The table code may come, or go, with its module while we are armed. */
void ipttrace_probes_rescan(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(call_probes); i++) {
		struct call_probe *probe = &call_probes[i];

		if (probe->registered && kprobe_gone(&probe->rp.kp))
			call_probe_unregister(probe);
		if (!probe->registered)
			call_probe_register(probe);
	}
}

static void calls_unregister(void)
{
	int i;

	WRITE_ONCE(session.live, false);
	for (i = 0; i < ARRAY_SIZE(call_probes); i++)
		if (call_probes[i].registered)
			call_probe_unregister(&call_probes[i]);
}

static int calls_register(struct netlink_ext_ack *extack)
{
	int i, err, worst = -ENOENT;
	bool any = false;

	for (i = 0; i < ARRAY_SIZE(call_probes); i++) {
		err = call_probe_register(&call_probes[i]);
		if (!err) {
			any = true;
		} else if (err != -ENOENT) {
			worst = err;
			goto unregister;
		}
	}
	if (any)
		return 0;
	NL_SET_ERR_MSG(extack,
		       "ipt_do_table and ip6t_do_table are absent: no legacy iptables is loaded here (modprobe ip_tables)");
	return worst;

unregister:
	NL_SET_ERR_MSG(extack,
		       "the kernel refused a kretprobe on ipt_do_table or ip6t_do_table");
	calls_unregister();
	return worst;
}

static void stats_clear(void)
{
	int cpu;

	for_each_possible_cpu(cpu)
		memset(per_cpu_ptr(&stats, cpu), 0, sizeof(stats));
	session.skipped = 0;
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
	rcu_assign_pointer(session.filter, setup->filter);
	session.filtered = setup->filter;
	session.netns = setup->netns;
	session.maxactive = setup->maxactive;

	memset(&log_probe, 0, sizeof(log_probe));
	log_probe.symbol_name = "nf_log_trace";
	log_probe.pre_handler = log_hit;
	/* Before a log line can be caused, it can be silenced. */
	err = register_kprobe(&log_probe);
	if (err) {
		NL_SET_ERR_MSG(extack,
			       "nf_log_trace cannot be probed: this kernel has no netfilter tracing, or no kprobes");
		goto forget;
	}
	WRITE_ONCE(session.live, true);
	err = calls_register(extack);
	if (err)
		goto unregister_log;
	return 0;

unregister_log:
	WRITE_ONCE(session.live, false);
	unregister_kprobe(&log_probe);
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
	int kind;

	calls_unregister();
	/*
	 * Every handler that saw live has returned: unregistering waits for
	 * them.  Where no call probe was registered any more, wait here.
	 */
	synchronize_rcu();
	ipttrace_calls_clear();
	filter = rcu_dereference_protected(session.filter, true);
	RCU_INIT_POINTER(session.filter, NULL);
	if (filter)
		bpf_prog_destroy(filter);
	for (kind = 0; kind < IPTTRACE_KINDS; kind++) {
		bpf_prog_put(session.progs[kind]);
		session.progs[kind] = NULL;
	}
}

void ipttrace_probes_drained(void)
{
	unregister_kprobe(&log_probe);
	session.skipped += log_probe.nmissed;
	log_probe.nmissed = 0;
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

u32 ipttrace_probes_targets(void)
{
	u32 targets = 0;
	int i;

	for (i = 0; i < ARRAY_SIZE(call_probes); i++)
		if (call_probes[i].registered)
			targets |= BIT(i);
	return targets;
}

void ipttrace_probes_stats(struct ipttrace_stats *sum, u64 *skipped)
{
	int cpu, i;

	memset(sum, 0, sizeof(*sum));
	for_each_possible_cpu(cpu) {
		const struct ipttrace_stats *one = per_cpu_ptr(&stats, cpu);

		sum->refused += READ_ONCE(one->refused);
		sum->followed += READ_ONCE(one->followed);
		sum->flipped += READ_ONCE(one->flipped);
		sum->silenced += READ_ONCE(one->silenced);
		sum->unfollowed += READ_ONCE(one->unfollowed);
		sum->nmissed += READ_ONCE(one->nmissed);
		sum->depth = max(sum->depth, READ_ONCE(one->depth));
		for (i = 0; i < IPTTRACE_KINDS; i++)
			sum->due[i] += READ_ONCE(one->due[i]);
	}
	sum->calls = sum->refused + sum->due[IPTTRACE_ENTRY];

	*skipped = session.skipped + log_probe.nmissed;
	for (i = 0; i < ARRAY_SIZE(call_probes); i++)
		if (call_probes[i].registered)
			*skipped += call_probes[i].rp.kp.nmissed;
}
