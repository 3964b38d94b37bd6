// SPDX-License-Identifier: GPL-2.0-only
/*
 * Traces legacy tables without a module: one record for each run of a packet with nf_trace
 * through a table at a hook.
 *
 * ipt_do_table() and ip6t_do_table() run a table.  Their hook's state is on the caller's stack
 * or in a copy of its own: no two runs that are under way share one, and a run's state is
 * found by it.  nf_log_trace(), called for each rule that is hit, is not handed it: there a
 * run is found as the newest of the task, or of the softirq on top of it, that has the packet.
 * nf_log_trace() is variadic, which fentry does not support: a kprobe reads its arguments.
 *
 * Loaded once for each of the two functions; the second shares the first one's maps.
 */

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "structs.h"

#define NFPROTO_IPV6	    10
#define NF_INET_PRE_ROUTING 0
#define NF_INET_LOCAL_OUT   3
#define IP_CT_UNTRACKED	    7
#define PRI_CONNTRACK	    (-200)

#define MOST_HOOKS 32 /* of one hook of a namespace, that are looked at */
#define MOST_DEPTH 4  /* runs inside one another */

struct run_place {
	__u64 serial;  /* of this CPU and program */
	__u64 context; /* the task, or the softirq on top of it */
	__u64 parent;  /* the run inside which this one is, 0: none */
	__u64 inner;   /* the packet that was met last inside this run */
	__u64 inner_table;
	__s32 inner_priority;
	__u8 inner_hook;
};

#include "state.h"

/* The newest run of each context. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} newest SEC(".maps");

/* Unique while the programs are loaded, and below 2^56.  The agent's own begin with 1. */
static __always_inline __u64 call_id(__u64 serial, __u8 family)
{
	__u64 cpu = bpf_get_smp_processor_id() & 0xfff;

	return 1ULL << 55 | (__u64)(family == NFPROTO_IPV6) << 54 | cpu << 42 |
	       (serial & ((1ULL << 42) - 1));
}

/*
 * Whether packets of this family go through conntrack in this namespace: see
 * conntrack_used() in kmod/record.c.
 */
static __always_inline bool conntrack_used(const struct net *net, __u8 family)
{
	struct nf_hook_entries *entries;
	struct nf_hook_ops **ops, *op;
	__u32 i, number;

	if (family == NFPROTO_IPV6)
		entries = BPF_CORE_READ(net, nf.hooks_ipv6[0]);
	else
		entries = BPF_CORE_READ(net, nf.hooks_ipv4[0]);
	if (!entries)
		return false;
	number = BPF_CORE_READ(entries, num_hook_entries);
	ops = (void *)entries +
	      bpf_core_field_offset(struct nf_hook_entries, hooks) +
	      number * bpf_core_type_size(struct nf_hook_entry);
	for (i = 0; i < MOST_HOOKS && i < number; i++) {
		op = NULL;
		bpf_probe_read_kernel(&op, sizeof(op), ops + i);
		if (BPF_CORE_READ(op, priority) == PRI_CONNTRACK &&
		    !BPF_CORE_READ(op, priv))
			return true;
	}
	return false;
}

static __always_inline __u8 ct_flags(const struct ipttrace_entry_head *head,
				     int priority, const struct net *net)
{
	if (head->flags & IPTTRACE_F_CONNTRACK ||
	    head->ct_info == IP_CT_UNTRACKED)
		return 0;
	if ((head->hook == NF_INET_PRE_ROUTING ||
	     head->hook == NF_INET_LOCAL_OUT) &&
	    priority < PRI_CONNTRACK)
		return 0;
	return conntrack_used(net, head->family) ? IPTTRACE_CT_INVALID : 0;
}

/*
 * Whether the run is the first of a packet that a target sends inside the run around it:
 * see ipttrace_call_copied() in kmod/calls.c.
 */
static __always_inline bool copied(struct run_place *parent, __u64 parent_skb,
				   __u64 skb, __u64 table, int priority,
				   __u8 hook)
{
	bool first;

	if (parent_skb == skb)
		return false;
	first = parent->inner != skb || hook < parent->inner_hook ||
		(hook == parent->inner_hook &&
		 (table == parent->inner_table ||
		  priority < parent->inner_priority));
	parent->inner = skb;
	parent->inner_table = table;
	parent->inner_priority = priority;
	parent->inner_hook = hook;
	return first;
}

static __always_inline int enter(const struct xt_table *table,
				 const struct sk_buff *skb,
				 const struct nf_hook_state *state)
{
	__u64 key = (unsigned long)state, address = (unsigned long)skb;
	struct ipttrace_entry_head *head;
	struct ipttrace_run *record;
	struct run *run, *parent;
	__u64 context, *around;
	int priority;

	run = new_run(skb);
	if (!run)
		return 0;
	record = &run->record;
	head = &record->entry.head;
	head->time = bpf_ktime_get_ns();
	meet(record, address);
	fill_run(record, skb, state);
	bpf_core_read(head->table, sizeof(head->table), &table->name);
	priority = BPF_CORE_READ(table, priority);
	head->ct_flags = ct_flags(head, priority, state->net);
	context = bpf_get_current_task();
	context |= !!(head->flags & IPTTRACE_F_SOFTIRQ);
	run->skb = address;
	run->ours = 0;
	run->total = 0;
	run->place.serial++;
	run->place.context = context;
	run->place.parent = 0;
	run->place.inner = 0;
	head->call = call_id(run->place.serial, head->family);
	around = bpf_map_lookup_elem(&newest, &context);
	parent = around ? bpf_map_lookup_elem(&runs, around) : NULL;
	if (parent && parent->place.context == context) {
		run->place.parent = *around;
		head->parent = parent->record.entry.head.call;
		head->depth = parent->record.entry.head.depth + 1;
		if (copied(&parent->place, parent->skb, address,
			   (unsigned long)table, priority, head->hook)) {
			head->flags &= ~IPTTRACE_F_FOLLOWED;
			head->flags |= IPTTRACE_F_FIRST;
		}
	}
	run->began = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&newest, &context, &key, BPF_ANY)) {
		count(IPTTRACE_COUNT_MISSED, 1);
		return 0;
	}
	if (bpf_map_update_elem(&runs, &key, run, BPF_ANY)) {
		count(IPTTRACE_COUNT_MISSED, 1);
		if (run->place.parent)
			bpf_map_update_elem(&newest, &context,
					    &run->place.parent, BPF_ANY);
		else
			bpf_map_delete_elem(&newest, &context);
	}
	return 0;
}

static __always_inline int leave(const struct sk_buff *skb,
				 const struct nf_hook_state *state,
				 __u32 verdict)
{
	__u64 now = bpf_ktime_get_ns(), key = (unsigned long)state;
	__u64 context, before, ours;
	struct run *run, *parent;

	run = bpf_map_lookup_elem(&runs, &key);
	if (!run)
		return 0;
	write_run(run, key, skb, verdict, now);
	if (!run->total) /* some were: each run ends with one */
		count(IPTTRACE_COUNT_MISSED, 1);
	context = run->place.context;
	before = run->place.parent;
	ours = run->ours + run->began - run->record.entry.head.time;
	bpf_map_delete_elem(&runs, &key);
	parent = before ? bpf_map_lookup_elem(&runs, &before) : NULL;
	if (!parent) {
		bpf_map_delete_elem(&newest, &context);
		return 0;
	}
	bpf_map_update_elem(&newest, &context, &before, BPF_ANY);
	parent->ours += ours + bpf_ktime_get_ns() - now;
	return 0;
}

SEC("fentry/ipt_do_table")
int BPF_PROG(ipttrace_ip_entry, struct xt_table *table, struct sk_buff *skb,
	     const struct nf_hook_state *state)
{
	return enter(table, skb, state);
}

SEC("fexit/ipt_do_table")
int BPF_PROG(ipttrace_ip_exit, void *table, struct sk_buff *skb,
	     const struct nf_hook_state *state, unsigned int verdict)
{
	return leave(skb, state, verdict);
}

SEC("fentry/ip6t_do_table")
int BPF_PROG(ipttrace_ip6_entry, struct xt_table *table, struct sk_buff *skb,
	     const struct nf_hook_state *state)
{
	return enter(table, skb, state);
}

SEC("fexit/ip6t_do_table")
int BPF_PROG(ipttrace_ip6_exit, void *table, struct sk_buff *skb,
	     const struct nf_hook_state *state, unsigned int verdict)
{
	return leave(skb, state, verdict);
}

/* What nf_log_trace() is called with beyond its registers, from the return address on. */
struct log_stack {
	__u64 back;
	__u64 loginfo;
	__u64 format;
	__u64 table;
	__u64 chain;
	__u64 comment;
	__u64 rulenum;
};

SEC("kprobe/nf_log_trace")
int ipttrace_log(struct pt_regs *ctx)
{
	__u64 began = bpf_ktime_get_ns(), skb = PT_REGS_PARM4(ctx);
	__u64 context = bpf_get_current_task(), key, *found;
	struct ipttrace_run_hit *hit;
	struct log_stack stack;
	char comment[2] = {};
	struct run *run;
	int i;

	context |= in_softirq();
	found = bpf_map_lookup_elem(&newest, &context);
	if (!found)
		return 0;
	key = *found;
	run = bpf_map_lookup_elem(&runs, &key);
	/* The exit of a run inside may have been missed. */
	for (i = 1; i < MOST_DEPTH && run && run->skb != skb; i++) {
		key = run->place.parent;
		run = bpf_map_lookup_elem(&runs, &key);
	}
	if (!run || run->skb != skb)
		return 0;
	if (bpf_probe_read_kernel(&stack, sizeof(stack),
				  (void *)PT_REGS_SP(ctx)))
		return 0;
	hit = next_hit(run, key, began);
	if (!hit)
		return 0;
	/* "rule", "return" or "policy" */
	bpf_probe_read_kernel(comment, sizeof(comment), (void *)stack.comment);
	hit->type = comment[0] == 'p' ? IPTTRACE_MATCH_POLICY :
		    comment[1] == 'e' ? IPTTRACE_MATCH_RETURN :
					IPTTRACE_MATCH_RULE;
	hit->handle = (__u32)stack.rulenum;
	hit->verdict = 0;
	bpf_probe_read_kernel_str(hit->chain, sizeof(hit->chain),
				  (void *)stack.chain);
	run->ours += bpf_ktime_get_ns() - began;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
