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
static __always_inline bool conntrack_used(const struct net *net,
					   struct ipttrace_entry_head *head,
					   const bool probed)
{
	struct nf_hook_entries *entries;
	struct nf_hook_ops *op;
	int priority;
	__u32 i, number;
	__u64 ops;

	if (head->family == NFPROTO_IPV6)
		entries = GET(probed, net, nf.hooks_ipv6[0]);
	else
		entries = GET(probed, net, nf.hooks_ipv4[0]);
	if (!entries)
		return false;
	number = GET(probed, entries, num_hook_entries);
	/* As a number: the verifier allows no arithmetic with the pointer. */
	head->ct = (unsigned long)entries;
	ops = *(volatile __u64 *)&head->ct;
	head->ct = 0;
	ops += bpf_core_field_offset(struct nf_hook_entries, hooks) +
	       number * bpf_core_type_size(struct nf_hook_entry);
	for (i = 0; i < MOST_HOOKS && i < number; i++) {
		op = NULL;
		bpf_probe_read_kernel(&op, sizeof(op),
				      (void *)(ops + i * sizeof(op)));
		priority = BPF_CORE_READ(op, priority);
		/* They are in the order of their priorities. */
		if (priority > PRI_CONNTRACK)
			return false;
		if (priority == PRI_CONNTRACK && !BPF_CORE_READ(op, priv))
			return true;
	}
	return false;
}

static __always_inline __u8 ct_flags(struct ipttrace_entry_head *head,
				     const struct xt_table *table,
				     const struct net *net, const bool probed)
{
	if (head->flags & IPTTRACE_F_CONNTRACK ||
	    head->ct_info == IP_CT_UNTRACKED)
		return 0;
	if ((head->hook == NF_INET_PRE_ROUTING ||
	     head->hook == NF_INET_LOCAL_OUT) &&
	    BPF_CORE_READ(table, priority) < PRI_CONNTRACK)
		return 0;
	if (!conntrack_used(net, head, probed))
		return 0;
	return IPTTRACE_CT_INVALID;
}

/* Runs of this object that are under way; too many if the end of one was not seen. */
__u64 open_runs;

static __always_inline int enter(const struct xt_table *table,
				 const struct sk_buff *skb,
				 const struct nf_hook_state *state, __u64 frame,
				 const bool probed)
{
	__u64 key = (unsigned long)state, address = (unsigned long)skb;
	struct ipttrace_entry_head *head;
	struct ipttrace_run *record;
	struct packet_set *packet;
	struct new_run place;
	struct run *run;
	__u32 *known;
	__u64 time;
	bool marked;

	marked = is_traced(skb, probed);
	if (!marked && !from_rules)
		return 0;
	time = bpf_ktime_get_ns();
	packet = packet_set_of(address);
	if (!packet)
		return 0;
	known = known_packet(packet, address, time);
	if (refused(known))
		return 0;
	run = new_run(&place, key);
	if (!run)
		return 0;
	record = &run->record;
	head = &record->entry.head;
	head->time = time;
	run->marked = marked;
	if (marked)
		place.packet = meet(record, packet, address, known);
	fill_run(record, skb, state, probed);
	bpf_core_read(head->table, sizeof(head->table), &table->name);
	head->ct_flags = ct_flags(head, table, GET(probed, state, net), probed);
	run->frame = frame;
	run->place.base = (unsigned long)table;
	begin_run(run, &place, key,
		  head->family == NFPROTO_IPV6 ? OF_IP6 : OF_IP);
	__sync_fetch_and_add(&open_runs, 1);
	return 0;
}

static __always_inline int leave(const struct sk_buff *skb,
				 const struct nf_hook_state *state,
				 __u32 verdict)
{
	__u64 key = (unsigned long)state, context, now;
	struct bucket *bucket;
	__u32 number, at;
	struct run *run;

	/* The packet may be gone: it cannot be asked for nf_trace. */
	if (!open_runs)
		return 0;
	now = bpf_ktime_get_ns();
	context = current_context();
	bucket = bucket_of(context, &number);
	if (!bucket)
		return 0;
	at = place_of(bucket, context, key);
	run = at < BUCKET_RUNS ? run_at(number, at) : NULL;
	if (!run)
		return 0;
	__sync_fetch_and_add(&open_runs, -1);
	end_run(run, bucket, at, context, key, skb, verdict, now, false);
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

/*
 * What nf_log_trace() is called with beyond its registers, on the stack behind the return
 * address, loginfo and format.
 */
#define LOG_STACK (3 * sizeof(__u64))
struct log_stack {
	__u64 table;
	__u64 chain;
	__u64 comment;
	__u64 rulenum;
};

/* The newest run of a packet in a legacy table. */
static __always_inline struct run *
newest_of(struct bucket *bucket, __u32 number, __u64 context, __u64 skb)
{
	struct run *run, *found = NULL;
	__u64 last = 0;
	__u32 at;

#pragma unroll
	for (at = 0; at < BUCKET_RUNS; at++) {
		if (bucket->context[at] != context ||
		    bucket->entered[at] < last)
			continue;
		run = run_at(number, at);
		if (!run || run->skb != skb || run->record.entry.head.tables)
			continue;
		last = bucket->entered[at];
		found = run;
	}
	return found;
}

SEC("kprobe/nf_log_trace")
int ipttrace_log(struct pt_regs *ctx)
{
	__u64 began = bpf_ktime_get_ns(), skb = PT_REGS_PARM4(ctx);
	__u64 context = current_context();
	struct ipttrace_run_hit *hit;
	struct log_stack stack;
	char comment[2] = {};
	struct bucket *bucket;
	struct run *run;
	__u32 number;

	bucket = bucket_of(context, &number);
	run = bucket ? newest_of(bucket, number, context, skb) : NULL;
	if (!run)
		return 0;
	if (bpf_probe_read_kernel(&stack, sizeof(stack),
				  (void *)PT_REGS_SP(ctx) + LOG_STACK))
		return 0;
	if (!run->marked) {
		run->marked = 1;
		meet_marked(&run->record, skb, began);
	}
	hit = next_hit(run, run->record.piece.run, began,
		       legacy_chain_number((void *)stack.chain));
	if (!hit)
		return 0;
	/* "rule", "return" or "policy" */
	bpf_probe_read_kernel(comment, sizeof(comment), (void *)stack.comment);
	hit->type = comment[0] == 'p' ? IPTTRACE_MATCH_POLICY :
		    comment[1] == 'e' ? IPTTRACE_MATCH_RETURN :
					IPTTRACE_MATCH_RULE;
	hit->handle = (__u32)stack.rulenum;
	hit->verdict = 0;
	run->others += bpf_ktime_get_ns() - began;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
