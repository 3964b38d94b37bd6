// SPDX-License-Identifier: GPL-2.0-only
/*
 * The handlers of the probes that probes.c registers.  A run of ipt_do_table()
 * or ip6t_do_table() becomes a call.  nf_log_trace(), which the kernel calls
 * for each rule that a packet with nf_trace set hits, becomes a hit of it.
 *
 * The state of a call is in its kretprobe instance; calls.c finds it again.
 *
 * From the moment that a packet matches they run with interrupts off, so that
 * none runs inside another on a CPU.  lockdep is told (no raw_local_irq_save()),
 * since RCU and what BPF programs call check with it.  They do not sleep,
 * allocate or print.
 */

#include <linux/netfilter/x_tables.h>
#include <linux/rcupdate.h>
#include <linux/string.h>
#include <linux/timekeeping.h>
#include <net/net_namespace.h>
#include <net/netfilter/nf_conntrack.h>

#include "breaks.h"
#include "compat.h"
#include "ipttrace.h"

struct kretprobe ipttrace_table_probes[IPTTRACE_TABLES];
kprobe_pre_handler_t ipttrace_take_instance;

/* Whether the kretprobe's own pre_handler has found an instance. */
static DEFINE_PER_CPU(bool, instance_found);

/* Rules in this table may set nf_trace: IPTTRACE, or TRACE. */
static bool table_marks(const struct xt_table *table)
{
	return ipttrace_breaks_in(table) ||
	       (!strcmp(table->name, "raw") && ipttrace_flaggers_trace());
}
NOKPROBE_SYMBOL(table_marks);

/* Whether to trace this call.  If not, nothing has been changed. */
static bool call_wanted(struct sk_buff *skb, const struct nf_hook_state *state,
			const struct xt_table *table)
{
	const struct bpf_prog *filter;

	if (!ipttrace_netns_wanted(state->net))
		return false;
	if (ipttrace_session.from_rules) {
		if (skb->nf_trace)
			return true;
		ipttrace_follow_del(skb);
		return table_marks(table);
	}

	/* Preemption is off, which is an RCU read section too. */
	filter = rcu_dereference_sched(ipttrace_session.filter);
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

/* Begins a call: takes an instance and hooks the return. */
static int call_begin(struct kprobe *p, struct pt_regs *regs, bool marked)
{
	unsigned long flags;
	int ret;

	local_irq_save(flags);
	if (marked)
		this_cpu_inc(ipttrace_stats.matched);
	this_cpu_write(instance_found, false);
	ret = ipttrace_take_instance(p, regs);
	/* rp->nmissed is not atomic: CPUs that count at once lose some. */
	if (marked && !this_cpu_read(instance_found)) {
		this_cpu_inc(ipttrace_stats.due[IPTTRACE_ENTRY]);
		this_cpu_inc(ipttrace_stats.nmissed);
	}
	local_irq_restore(flags);
	return ret;
}
NOKPROBE_SYMBOL(call_begin);

static __always_inline int table_hit(struct kprobe *p, struct pt_regs *regs)
{
	struct sk_buff *skb =
		(void *)regs_get_kernel_argument(regs, IPTTRACE_ARG_SKB);
	const struct nf_hook_state *state =
		(void *)regs_get_kernel_argument(regs, IPTTRACE_ARG_STATE);
	const struct xt_table *table =
		(void *)regs_get_kernel_argument(regs, IPTTRACE_ARG_TABLE);

	if (!READ_ONCE(ipttrace_session.live))
		return 0;
	if (!call_wanted(skb, state, table)) {
		this_cpu_inc(ipttrace_stats.refused);
		return 0;
	}
	return call_begin(p, regs,
			  !ipttrace_session.from_rules || skb->nf_trace);
}

/*
 * Runs before the kretprobe's own pre_handler: a rejected packet costs the
 * filter, and no kretprobe instance.
 */
int ipttrace_table_hit(struct kprobe *p, struct pt_regs *regs)
{
	return table_hit(p, regs);
}
NOKPROBE_SYMBOL(ipttrace_table_hit);

/* Sets nf_trace and remembers the packet.  Returns flags of its entry. */
static u8 packet_flip(struct sk_buff *skb)
{
	bool filtered = ipttrace_session_follows();
	u8 flags = 0;

	if (!skb->nf_trace && !ipttrace_session.from_rules) {
		skb->nf_trace = 1;
		this_cpu_inc(ipttrace_stats.flipped);
		flags |= IPTTRACE_F_FIRST;
	} else if (filtered && ipttrace_follow_has(skb)) {
		this_cpu_inc(ipttrace_stats.followed);
		return IPTTRACE_F_FOLLOWED;
	} else if (ipttrace_session.from_rules) {
		flags |= IPTTRACE_F_FIRST;
	}
	if (filtered && !ipttrace_follow_add(skb))
		this_cpu_inc(ipttrace_stats.unfollowed);
	return flags;
}
NOKPROBE_SYMBOL(packet_flip);

/* Unique while the module is loaded: each CPU has 2^48 of its own. */
static u64 call_next_id(void)
{
	return this_cpu_inc_return(ipttrace_stats.next_call) << 16 |
	       (raw_smp_processor_id() + 1);
}
NOKPROBE_SYMBOL(call_next_id);

/* The call around it that has a row, and how many of these there are. */
static void call_nest(struct ipttrace_call *call)
{
	struct ipttrace_entry_head *head = &call->record.entry.head;
	const struct ipttrace_call *around = call->parent;

	while (around && !around->marked)
		around = around->parent;
	head->parent = around ? around->record.entry.head.call : 0;
	head->depth = around ? around->record.entry.head.depth + 1 : 0;
}
NOKPROBE_SYMBOL(call_nest);

int ipttrace_call_enter(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	const struct xt_table *table =
		(void *)regs_get_kernel_argument(regs, IPTTRACE_ARG_TABLE);
	struct sk_buff *skb =
		(void *)regs_get_kernel_argument(regs, IPTTRACE_ARG_SKB);
	const struct nf_hook_state *state =
		(void *)regs_get_kernel_argument(regs, IPTTRACE_ARG_STATE);
	struct ipttrace_call *call = (struct ipttrace_call *)ri->data;
	struct ipttrace_entry *entry = &call->record.entry;
	struct ipttrace_entry_head *head = &entry->head;

	this_cpu_write(instance_found, true);
	head->time = ktime_get_mono_fast_ns();
	head->call = call_next_id();

	call->task = current;
	call->skb = skb;
	call->table = table;
	call->net = state->net;
	call->hook = state->hook;
	call->family = state->pf;
	call->overhead = 0;
	call->rules = 0;
	call->marked = !ipttrace_session.from_rules || skb->nf_trace;
	call->softirq = in_serving_softirq();
	ipttrace_call_link(call);
	if (call->depth > this_cpu_read(ipttrace_stats.depth))
		this_cpu_write(ipttrace_stats.depth, call->depth);

	head->ruleset = ipttrace_ruleset(state->net);
	head->skb = (unsigned long)skb;
	call_nest(call);
	head->sk = (unsigned long)skb->sk;
	head->netns = state->net->ns.inum;
	head->len = skb->len;
	head->mark = skb->mark;
	head->in_ifindex = state->in ? state->in->ifindex : 0;
	head->out_ifindex = state->out ? state->out->ifindex : 0;
	head->family = state->pf;
	head->hook = state->hook;
	head->flags = call->marked ? packet_flip(skb) : IPTTRACE_F_FIRST;
	if (ipttrace_call_copied(call))
		head->flags |= IPTTRACE_F_FIRST;
	if (call->softirq)
		head->flags |= IPTTRACE_F_SOFTIRQ;
	ipttrace_head_conntrack(head, skb);
	head->ct_flags = ipttrace_ct_flags(head, table, state);
	memcpy(head->table, table->name, sizeof(head->table));
	head->source = IPTTRACE_SOURCE_KERNEL;
	head->tables = 0;
	head->trace_id = 0;
	head->pid = task_tgid_nr(current);
	head->tid = task_pid_nr(current);
	head->cpu = raw_smp_processor_id();
	ipttrace_head_link(head, skb);
	ipttrace_entry_names(entry, state);
	ipttrace_entry_phys(entry, skb, state->net);
	ipttrace_entry_beside(entry, table, state);
	ipttrace_entry_packet(entry, skb);

	call->start = ktime_get_mono_fast_ns();
	if (call->parent)
		call->parent->overhead += call->start - head->time;
	return 0;
}
NOKPROBE_SYMBOL(ipttrace_call_enter);

/* From here on the records that cross with the call are due. */
static void call_put(const struct ipttrace_call *call)
{
	struct pt_regs context = {};

	this_cpu_inc(ipttrace_stats.due[IPTTRACE_ENTRY]);
	this_cpu_add(ipttrace_stats.due[IPTTRACE_RULE],
		     min_t(u16, call->rules, IPTTRACE_HITS));
	this_cpu_inc(ipttrace_stats.due[IPTTRACE_EXIT]);
	memcpy(this_cpu_ptr(ipttrace_session.finished), &call->record,
	       sizeof(call->record));
	ipttrace_program_run(ipttrace_session.progs[IPTTRACE_PROG_CALL],
			     &context);
}
NOKPROBE_SYMBOL(call_put);

int ipttrace_call_exit(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	u64 now = ktime_get_mono_fast_ns();
	struct ipttrace_call *call = (struct ipttrace_call *)ri->data;
	u32 verdict = regs_return_value(regs);
	struct ipttrace_exit *record = &call->record.exit;
	unsigned long flags;

	/* The probes are going away, and the index may be empty already. */
	if (!READ_ONCE(ipttrace_session.live))
		return 0;

	local_irq_save(flags);
	ipttrace_call_unlink(call);
	if (!call->marked) {
		this_cpu_inc(ipttrace_stats.refused);
		goto parent;
	}
	*record = (struct ipttrace_exit){
		.call = call->record.entry.head.call,
		.time = now,
		.skb = (unsigned long)call->skb,
		.cost = now - call->start,
		.verdict = verdict,
		.rules = call->rules,
	};
	record->cost -= min(record->cost, call->overhead);
	if (ipttrace_ruleset(call->net) != call->record.entry.head.ruleset)
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
		/* It may be freed: its address may be another packet's now. */
		if (ipttrace_session_follows())
			ipttrace_follow_del(call->skb);
		break;
	}

	call_put(call);
parent:
	if (call->parent) /* what was before its start is counted already */
		call->parent->overhead +=
			ktime_get_mono_fast_ns() - call->start;
	local_irq_restore(flags);
	return 0;
}
NOKPROBE_SYMBOL(ipttrace_call_exit);

#ifdef IPTTRACE_FTRACE
/* Either address may be some bytes into the function. */
static __always_inline bool hit_at(unsigned long ip, const struct kprobe *p)
{
	return ip - (unsigned long)p->addr <= 16;
}

void notrace ipttrace_ftrace_hit(unsigned long ip, unsigned long parent_ip,
				 struct ftrace_ops *ops,
				 struct ftrace_regs *fregs)
{
	struct kprobe *p = &ipttrace_table_probes[IPTTRACE_IP].kp;

	preempt_disable_notrace();
	if (hit_at(ip, &ipttrace_log_probe)) {
		ipttrace_log_hit(NULL, ipttrace_ftrace_args(fregs));
		goto enable;
	}
	if (!READ_ONCE(ipttrace_session.live))
		goto enable;
	if (!hit_at(ip, p)) {
		p = &ipttrace_table_probes[IPTTRACE_IP6].kp;
		if (!hit_at(ip, p))
			goto enable;
	}
	/*
	 * If it is gone with its module, another function may be at its address
	 * until the rescan: its arguments must not be read as ours.
	 */
	if (!kprobe_gone(p))
		table_hit(p, ipttrace_ftrace_args(fregs));
enable:
	preempt_enable_notrace();
}
NOKPROBE_SYMBOL(ipttrace_ftrace_hit);
#endif
