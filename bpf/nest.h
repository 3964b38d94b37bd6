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

#define STACK_SHIFT 14 /* THREAD_SIZE: stacks are aligned to it */

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

static __always_inline struct bucket *bucket_of(__u64 context, __u32 *number)
{
	*number = context * 0x9e3779b97f4a7c15 >> 56;
	return bpf_map_lookup_elem(&buckets, number);
}

static __always_inline struct run *run_at(__u32 number, __u32 at)
{
	number = number * BUCKET_RUNS + at;
	return bpf_map_lookup_elem(&runs, &number);
}

/* Of the run of this key; BUCKET_RUNS: there is none. */
static __always_inline __u32 place_of(const struct bucket *bucket,
				      __u64 context, __u64 key)
{
	__u32 at;

#pragma unroll
	for (at = 0; at < BUCKET_RUNS; at++)
		if (bucket->key[at] == key && bucket->context[at] == context)
			break;
	return forget(at);
}

/* The run of this key, NULL if there is none. */
static __always_inline struct run *find_run(__u64 context, __u64 key)
{
	struct bucket *bucket;
	__u32 number, at;

	bucket = bucket_of(context, &number);
	if (!bucket)
		return NULL;
	at = place_of(bucket, context, key);
	return at < BUCKET_RUNS ? run_at(number, at) : NULL;
}

/* Takes a place in the bucket, whose context is set later; BUCKET_RUNS: there is none. */
static __always_inline __u32 claim(struct bucket *bucket, __u64 key)
{
	__u32 at;

#pragma unroll
	for (at = 0; at < BUCKET_RUNS; at++)
		if (!bucket->key[at] &&
		    !__sync_val_compare_and_swap(&bucket->key[at], 0, key))
			break;
	return forget(at);
}

static __always_inline void release(struct bucket *bucket, __u32 at)
{
	if (at >= BUCKET_RUNS)
		return;
	bucket->context[at] = 0;
	*(volatile __u64 *)&bucket->key[at] = 0;
}

static __always_inline int priority_of(__u64 table, enum call_owner owner)
{
	const struct nft_base_chain *base;

	if (owner != OF_NFT)
		return BPF_CORE_READ((const struct xt_table *)table, priority);
	base = (void *)(table -
			bpf_core_field_offset(struct nft_base_chain, chain));
	return BPF_CORE_READ(base, ops.priority);
}

/*
 * Whether the run is the first of a packet that is sent inside the run around it: see
 * ipttrace_call_copied() in kmod/calls.c.  table: an address, of a table or a base chain.
 */
static __always_inline bool copied(struct run *parent, __u64 skb, __u64 table,
				   enum call_owner owner, __u8 hook)
{
	struct run_nest *nest = &parent->nest;
	int priority;
	bool first;

	if (parent->skb == skb)
		return false;
	priority = priority_of(table, owner);
	first = nest->inner != skb || hook < nest->inner_hook ||
		(hook == nest->inner_hook && (table == nest->inner_table ||
					      priority < nest->inner_priority));
	nest->inner = skb;
	nest->inner_table = table;
	nest->inner_priority = priority;
	nest->inner_hook = hook;
	return first;
}

/*
 * Ends a run whose end was not seen: of a kprobe, that was missed; of nftables, a rule has
 * cleared nf_trace.
 */
static __always_inline void give_up(struct run *run, struct bucket *bucket,
				    __u32 at, __u64 key)
{
	if (run->record.entry.head.tables && run->total)
		write_run(run, key, NULL, VERDICT_UNKNOWN,
			  run->record.entry.head.time, true);
	else if (run->frame)
		count(IPTTRACE_COUNT_MISSED, 1);
	release(bucket, at);
}

/*
 * The run around a new one of this key, NULL if there is none.  Runs of the context whose end
 * was not seen are given up, one at a time.
 */
static __always_inline struct run *run_around(struct bucket *bucket,
					      __u32 number, __u64 context,
					      __u64 key, __u64 *around)
{
	__u32 at, newest = BUCKET_RUNS, stale = BUCKET_RUNS;
	struct run *run;
	__u64 last = 0;

	*around = 0;
#pragma unroll
	for (at = 0; at < BUCKET_RUNS; at++) {
		if (bucket->context[at] != context)
			continue;
		if (is_stale(bucket->key[at], key)) {
			stale = at;
		} else if (bucket->entered[at] >= last) {
			last = bucket->entered[at];
			newest = at;
		}
	}
	stale = forget(stale);
	newest = forget(newest);
	if (stale < BUCKET_RUNS) {
		run = run_at(number, stale);
		if (run)
			give_up(run, bucket, stale, run->record.piece.run);
	}
	if (newest >= BUCKET_RUNS)
		return NULL;
	*around = bucket->key[newest];
	return run_at(number, newest);
}

/* Where a new run is filled in. */
struct new_run {
	struct bucket *bucket;
	__u32 number; /* of the bucket */
	__u32 at;
	__u64 context;
	__u32 *packet; /* the state of its packet, set by the caller; NULL: none */
};

/* A cleared run to fill in; NULL if there is no room, which is counted. */
static __always_inline struct run *new_run(struct new_run *place, __u64 key)
{
	struct run *run;

	place->packet = NULL;
	place->context = current_context();
	place->bucket = bucket_of(place->context, &place->number);
	if (!place->bucket)
		return NULL;
	place->at = claim(place->bucket, key);
	if (place->at >= BUCKET_RUNS) {
		count(IPTTRACE_COUNT_MISSED, 1);
		return NULL;
	}
	run = run_at(place->number, place->at);
	if (!run)
		return NULL;
	__builtin_memset(&run->record, 0,
			 __builtin_offsetof(struct ipttrace_run, hits));
	return run;
}

/* Begins a run whose record is filled in; from then on, its time counts. */
static __always_inline void begin_run(struct run *run,
				      const struct new_run *place, __u64 key,
				      enum call_owner owner)
{
	struct ipttrace_entry_head *head = &run->record.entry.head;
	__u64 around, *serial;
	struct run *parent;
	__u32 zero = 0;

	run->record.piece.run = key;
	run->record.piece.began = head->time;
	/* As a number: the verifier allows no arithmetic with the pointer. */
	key = *(volatile __u64 *)&run->record.piece.run;
	run->skb = head->skb;
	run->others = 0;
	run->total = 0;
	run->nest.inner = 0;
	serial = bpf_map_lookup_elem(&serials, &zero);
	if (serial)
		head->call = call_id(++*serial, owner);
	if (place->packet)
		keep_number(place->packet, BESIDE(call), head->call);
	parent = run_around(place->bucket, place->number, place->context, key,
			    &around);
	run->nest.parent = around;
	if (parent) {
		if (parent->marked) {
			head->parent = parent->record.entry.head.call;
			head->depth = parent->record.entry.head.depth + 1;
		} else {
			head->parent = parent->record.entry.head.parent;
			head->depth = parent->record.entry.head.depth;
		}
		if (copied(parent, run->skb,
			   *(volatile __u64 *)&run->place.base, owner,
			   head->hook)) {
			head->flags &= ~IPTTRACE_F_FOLLOWED;
			head->flags |= IPTTRACE_F_FIRST;
		}
	}
	if (place->at < BUCKET_RUNS) {
		place->bucket->entered[place->at] = head->time;
		place->bucket->context[place->at] = place->context;
	}
	run->began = bpf_ktime_get_ns();
}

/* Ends a run that returned at `now`. */
static __always_inline void end_run(struct run *run, struct bucket *bucket,
				    __u32 at, __u64 context, __u64 key,
				    const struct sk_buff *skb, __u32 verdict,
				    __u64 now, const bool probed)
{
	__u64 around = run->nest.parent;
	__u64 entered = run->record.entry.head.time;
	struct run *parent;

	if (run->marked) {
		write_run(run, key, skb, verdict, now, probed);
		/* In a legacy table some were: each run ends with one. */
		if (!run->total && !run->record.entry.head.tables)
			count(IPTTRACE_COUNT_MISSED, 1);
	}
	release(bucket, at);
	parent = around ? find_run(context, around) : NULL;
	if (parent)
		parent->others += bpf_ktime_get_ns() - entered;
}

/*
 * Ends the run of the function that returns, which a kprobe at its end is not told.  On x86 the
 * return address is off the stack by then.
 */
static __always_inline void end_probed(struct pt_regs *ctx)
{
	__u64 now = bpf_ktime_get_ns(), stack = PT_REGS_SP(ctx);
	__u64 context = current_context();
	struct bucket *bucket;
	__u32 number, at;
	struct run *run;

	bucket = bucket_of(context, &number);
	if (!bucket)
		return;
	for (at = 0; at < BUCKET_RUNS; at++) {
		if (bucket->context[at] != context)
			continue;
		run = run_at(number, at);
		if (run && run->frame && stack - run->frame <= sizeof(void *)) {
			end_run(run, bucket, at, context, bucket->key[at],
				(void *)run->skb, PT_REGS_RC(ctx), now, true);
			return;
		}
	}
}

#endif
