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

#include "nest.h"

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

static __always_inline int enter(const struct xt_table *table,
				 const struct sk_buff *skb,
				 const struct nf_hook_state *state, __u64 frame,
				 const bool probed)
{
	__u64 key = (unsigned long)state, address = (unsigned long)skb;
	struct ipttrace_entry_head *head;
	struct ipttrace_run *record;
	struct run *run;
	int priority;

	run = new_run(skb);
	if (!run || refused(address))
		return 0;
	record = &run->record;
	head = &record->entry.head;
	head->time = bpf_ktime_get_ns();
	meet(record, address);
	fill_run(record, skb, state, probed);
	bpf_core_read(head->table, sizeof(head->table), &table->name);
	priority = BPF_CORE_READ(table, priority);
	head->ct_flags = ct_flags(head, priority, GET(probed, state, net));
	run->frame = frame;
	begin_run(run, key, (unsigned long)table, priority,
		  head->family == NFPROTO_IPV6 ? OF_IP6 : OF_IP);
	return 0;
}

static __always_inline int leave(const struct sk_buff *skb,
				 const struct nf_hook_state *state,
				 __u32 verdict)
{
	__u64 now = bpf_ktime_get_ns(), key = (unsigned long)state;
	struct run *run = bpf_map_lookup_elem(&runs, &key);

	if (!run)
		return 0;
	end_run(run, key, skb, verdict, now, false);
	return 0;
}

SEC("fentry/ipt_do_table")
int BPF_PROG(ipttrace_ip_entry, struct xt_table *table, struct sk_buff *skb,
	     const struct nf_hook_state *state)
{
	return enter(table, skb, state, 0, false);
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
	return enter(table, skb, state, 0, false);
}

SEC("fexit/ip6t_do_table")
int BPF_PROG(ipttrace_ip6_exit, void *table, struct sk_buff *skb,
	     const struct nf_hook_state *state, unsigned int verdict)
{
	return leave(skb, state, verdict);
}

/* Of both functions, which have the same arguments. */
static __always_inline int enter_probed(struct pt_regs *ctx)
{
	return enter((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx),
		     (void *)PT_REGS_PARM3(ctx), PT_REGS_SP(ctx), true);
}

SEC("kprobe/ipt_do_table")
int ipttrace_ip_entry_probe(struct pt_regs *ctx)
{
	return enter_probed(ctx);
}

SEC("kretprobe/ipt_do_table")
int ipttrace_ip_exit_probe(struct pt_regs *ctx)
{
	end_probed(ctx);
	return 0;
}

SEC("kprobe/ip6t_do_table")
int ipttrace_ip6_entry_probe(struct pt_regs *ctx)
{
	return enter_probed(ctx);
}

SEC("kretprobe/ip6t_do_table")
int ipttrace_ip6_exit_probe(struct pt_regs *ctx)
{
	end_probed(ctx);
	return 0;
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
	__u64 context = current_context(), key, *found;
	struct ipttrace_run_hit *hit;
	struct log_stack stack;
	char comment[2] = {};
	struct run *run;
	int i;

	found = bpf_map_lookup_elem(&newest, &context);
	if (!found)
		return 0;
	key = *found;
	run = bpf_map_lookup_elem(&runs, &key);
	/* The exit of a run inside may have been missed. */
	for (i = 1; i < MOST_DEPTH && run && run->skb != skb; i++) {
		key = run->nest.parent;
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
	run->others += bpf_ktime_get_ns() - began;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
