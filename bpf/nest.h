/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Runs inside runs: REJECT, dup and TEE send a packet from inside a run, through all tables
 * of its hooks.  A run is inside the newest one of its context: of its task, or of the softirq
 * on top of the task, which the run that it interrupts has not caused.
 *
 * The programs for nftables and for legacy tables share both maps, so that a run of one kind
 * can be inside one of the other.
 */
#ifndef IPTTRACE_NEST_H
#define IPTTRACE_NEST_H

#include <linux/ptrace.h>

#include <bpf/bpf_tracing.h>

#include "state.h"

#define MOST_DEPTH  4  /* runs that have not ended, and are looked at */
#define STACK_SHIFT 14 /* THREAD_SIZE: stacks are aligned to it */

/* The newest run of each context. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u64);
} newest SEC(".maps");

/* Whose numbers call_id() makes unique: each object loaded counts its own runs. */
enum call_owner {
	OF_NFT,
	OF_IP,
	OF_IP6,
};

/* Unique while the programs are loaded, and below 2^56. */
static __always_inline __u64 call_id(__u64 serial, enum call_owner owner)
{
	__u64 cpu = bpf_get_smp_processor_id() & 0xfff;

	return 1ULL << 55 | (__u64)owner << 53 | cpu << 41 |
	       (serial & ((1ULL << 41) - 1));
}

static __always_inline __u64 current_context(void)
{
	return bpf_get_current_task() | in_softirq();
}

/*
 * Whether the run of this key has ended, although the program at its end did not run: keys
 * are addresses on a stack, which grows downwards.
 */
static __always_inline bool is_stale(__u64 key, __u64 newer)
{
	return !((key ^ newer) >> STACK_SHIFT) && key <= newer;
}

/* The run around a new one of this key, NULL if there is none; its key is in *at. */
static __always_inline struct run *run_around(__u64 context, __u64 key,
					      __u64 *at)
{
	__u64 *found = bpf_map_lookup_elem(&newest, &context);
	struct run *run;
	__u64 next;
	int i;

	*at = found ? *found : 0;
	for (i = 0; i < MOST_DEPTH && *at; i++) {
		run = bpf_map_lookup_elem(&runs, at);
		if (!run || run->nest.context != context)
			break;
		if (!is_stale(*at, key))
			return run;
		next = run->nest.parent;
		if (run->frame)
			count(IPTTRACE_COUNT_MISSED, 1);
		bpf_map_delete_elem(&runs, at);
		*at = next;
	}
	*at = 0;
	return NULL;
}

/*
 * Whether the run is the first of a packet that is sent inside the run around it: see
 * ipttrace_call_copied() in kmod/calls.c.  table: an address, of a table or a base chain.
 */
static __always_inline bool copied(struct run *parent, __u64 skb, __u64 table,
				   int priority, __u8 hook)
{
	struct run_nest *nest = &parent->nest;
	bool first;

	if (parent->skb == skb)
		return false;
	first = nest->inner != skb || hook < nest->inner_hook ||
		(hook == nest->inner_hook && (table == nest->inner_table ||
					      priority < nest->inner_priority));
	nest->inner = skb;
	nest->inner_table = table;
	nest->inner_priority = priority;
	nest->inner_hook = hook;
	return first;
}

/* Begins a run whose record is filled in; from then on, its time counts. */
static __always_inline void begin_run(struct run *run, __u64 key, __u64 table,
				      int priority, enum call_owner owner)
{
	struct ipttrace_entry_head *head = &run->record.entry.head;
	__u64 context = current_context(), around;
	struct run *parent;

	/* As a number: the verifier allows no arithmetic with the pointer. */
	run->key = key;
	key = *(volatile __u64 *)&run->key;
	run->skb = head->skb;
	run->others = 0;
	run->total = 0;
	run->serial++;
	run->nest.context = context;
	run->nest.inner = 0;
	head->call = call_id(run->serial, owner);
	parent = run_around(context, key, &around);
	run->nest.parent = around;
	if (parent) {
		head->parent = parent->record.entry.head.call;
		head->depth = parent->record.entry.head.depth + 1;
		if (copied(parent, run->skb, table, priority, head->hook)) {
			head->flags &= ~IPTTRACE_F_FOLLOWED;
			head->flags |= IPTTRACE_F_FIRST;
		}
	}
	run->began = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&runs, &key, run, BPF_ANY)) {
		count(IPTTRACE_COUNT_MISSED, 1);
		return;
	}
	if (bpf_map_update_elem(&newest, &context, &key, BPF_ANY)) {
		count(IPTTRACE_COUNT_MISSED, 1);
		bpf_map_delete_elem(&runs, &key);
	}
}

/* Ends a run that returned at `now`. */
static __always_inline void end_run(struct run *run, __u64 key,
				    const struct sk_buff *skb, __u32 verdict,
				    __u64 now, const bool probed)
{
	__u64 context = run->nest.context, around = run->nest.parent;
	__u64 entered = run->record.entry.head.time;
	struct run *parent;

	write_run(run, key, skb, verdict, now, probed);
	/* In a legacy table some were: each run ends with one. */
	if (!run->total && !run->record.entry.head.tables)
		count(IPTTRACE_COUNT_MISSED, 1);
	bpf_map_delete_elem(&runs, &key);
	parent = around ? bpf_map_lookup_elem(&runs, &around) : NULL;
	if (!parent || parent->nest.context != context) {
		bpf_map_delete_elem(&newest, &context);
		return;
	}
	bpf_map_update_elem(&newest, &context, &around, BPF_ANY);
	parent->others += bpf_ktime_get_ns() - entered;
}

/*
 * Ends the run of the function that returns, which a kprobe at its end is not told.  On x86 the
 * return address is off the stack by then.
 */
static __always_inline void end_probed(struct pt_regs *ctx)
{
	__u64 now = bpf_ktime_get_ns(), stack = PT_REGS_SP(ctx), key, *found;
	__u64 context = current_context();
	struct run *run;
	int i;

	found = bpf_map_lookup_elem(&newest, &context);
	key = found ? *found : 0;
	for (i = 0; i < MOST_DEPTH && key; i++) {
		run = bpf_map_lookup_elem(&runs, &key);
		if (!run || run->nest.context != context)
			return;
		if (run->frame && stack - run->frame <= sizeof(void *)) {
			end_run(run, key, (void *)run->skb, PT_REGS_RC(ctx),
				now, true);
			return;
		}
		key = run->nest.parent;
	}
}

#endif
