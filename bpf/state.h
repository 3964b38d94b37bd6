/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs keep of runs that are under way, and what they do alike.
 */
#ifndef IPTTRACE_STATE_H
#define IPTTRACE_STATE_H

#include "entry.h"
#include "names.h"
#include "packets.h"

#define NF_ACCEPT	1
#define NF_REPEAT	4
#define NF_VERDICT_MASK 0xff
#define VERDICT_UNKNOWN 0xffffffffU

/* nft_do_chain() walks lists of rules at most so deep. */
#define STACK 16

/* Where a run is. */
struct run_place {
	__u64 base; /* the base chain or the table, as an address */
	__u64 chain; /* of nftables: that is running, and those that it returns to */
	__u32 depth;
	__u32 unknown; /* the run was not seen from its beginning */
	__u64 stack[STACK];
};

struct run_nest {
	__u64 parent; /* the key of the run inside which this one is, 0: none */
	__u64 inner;  /* the packet that was met last inside this run */
	__u64 inner_table;
	__s32 inner_priority;
	__u8 inner_hook;
};

/* Programs of all objects share them: the same for nftables and for legacy tables. */
struct run {
	__u64 skb;
	__u64 frame; /* where its return address is; 0: not of a kprobe */
	__u64 began;
	__u64 others; /* ns since, in our programs and in runs inside this one */
	__u32 total;  /* hits, also those of pieces */
	__u32 marked; /* else nf_trace is clear as yet: there is no record */
	struct run_nest nest;
	struct run_place place;
	struct ipttrace_run record;
};

#define BUCKETS	    256
#define BUCKET_RUNS 8

/*
 * Which runs are under way, by their context: the task, or the softirq on top of it.  A context
 * has all its runs in one bucket, wherever it runs, so that these need neither a hash table
 * nor a copy.  A run that finds no room is missed.
 */
struct bucket {
	__u64 key[BUCKET_RUNS];	    /* 0: free */
	__u64 context[BUCKET_RUNS]; /* 0: not yet, or not any more */
	__u64 entered[BUCKET_RUNS]; /* time, ns */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BUCKETS);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, BUCKETS *BUCKET_RUNS);
	__type(key, __u32);
	__type(value, struct run);
} runs SEC(".maps");

/* Runs that each CPU has begun: the program that counts them never nests on a CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} serials SEC(".maps");

/*
 * Set by who loads it: nothing of ours flips packets, but rules of the user's mark them, so
 * that a run may begin without nf_trace.
 */
const volatile __u8 from_rules;

/* Whether a packet, of which this is known, is one that EXPR does not match; counts its run. */
static __always_inline bool refused(const __u32 *known)
{
	if (!known || *known != REFUSED)
		return false;
	count(IPTTRACE_COUNT_REFUSED, 1);
	return true;
}

/*
 * Notes that the packet, of which this is known, is met; fills in whether this is its first run,
 * and for a copy whose.  Returns its state.
 */
static __always_inline __u32 *meet(struct ipttrace_run *record,
				   struct packet_set *set, __u64 skb,
				   __u32 *known)
{
	struct ipttrace_entry_head *head = &record->entry.head;
	__u32 state;

	if (!known) {
		head->flags = IPTTRACE_F_FIRST;
		record->flags = IPTTRACE_RUN_FOREIGN;
		return remember_packet(set, skb, FOLLOWED, head->time);
	}
	state = *known & ~CARRIED;
	head->flags = state <= COPIED ? IPTTRACE_F_FIRST : IPTTRACE_F_FOLLOWED;
	if (state == DOUBTFUL)
		record->flags = IPTTRACE_RUN_DOUBTFUL;
	else if (state == COPIED)
		record->flags = IPTTRACE_RUN_FOREIGN;
	head->parent = kept_number(known, BESIDE(origin));
	*known = FOLLOWED;
	return known;
}

/* Notes that a rule has marked the packet in this very run, with which its journey begins. */
static __always_inline __u32 *meet_marked(struct ipttrace_run *record,
					  __u64 skb, __u64 now)
{
	struct packet_set *set = packet_set_of(skb);
	__u32 *known = set ? known_packet(set, skb, now) : NULL;

	if (known) {
		*known = FOLLOWED;
		keep_number(known, BESIDE(origin), 0);
	} else if (set) {
		known = remember_packet(set, skb, FOLLOWED, now);
	}
	record->entry.head.flags &= ~IPTTRACE_F_FOLLOWED;
	record->entry.head.flags |= IPTTRACE_F_FIRST;
	record->flags |= IPTTRACE_RUN_FOREIGN;
	return known;
}

/* All that comes from the packet, its hook and the process; after meet(). */
static __always_inline void fill_run(struct ipttrace_run *record,
				     const struct sk_buff *skb,
				     const struct nf_hook_state *state,
				     const bool probed)
{
	struct ipttrace_entry_head *head = &record->entry.head;
	const struct net *net;

	head->family = GET(probed, state, pf);
	head->hook = GET(probed, state, hook);
	fill_device(GET(probed, state, in), record->entry.in, &head->in_ifindex,
		    probed);
	fill_device(GET(probed, state, out), record->entry.out,
		    &head->out_ifindex, probed);
	MERGE();
	net = GET(probed, state, net);
	if (fill_entry(&record->entry, skb, net, GET(probed, net, ns.inum),
		       probed))
		record->flags |= IPTTRACE_RUN_NO_CONNTRACK;
	MERGE();
	fill_packet(&record->entry, skb, GET(probed, skb, network_header),
		    probed);
}

/* Hits that fill a run's record go ahead of it, so that there is room for more. */
static __always_inline void write_piece(struct run *run, __u64 key)
{
	struct ipttrace_run *record = &run->record;

	record->piece.run = key;
	record->piece.began = record->entry.head.time;
	count(IPTTRACE_COUNT_RULES, IPTTRACE_RUN_HITS);
	if (bpf_ringbuf_output(&ring, &record->piece,
			       sizeof(record->piece) + sizeof(record->hits),
			       BPF_RB_NO_WAKEUP))
		count(IPTTRACE_COUNT_LOST_RULES, IPTTRACE_RUN_HITS);
	record->hit_count = 0;
}

/*
 * The next hit of a run, with its time and its chain; the caller fills in the rest.  NULL: it is
 * lost, as there was no room for the chain's name, whose number is 0 then.
 */
static __always_inline struct ipttrace_run_hit *
next_hit(struct run *run, __u64 key, __u64 now, __u64 chain)
{
	struct ipttrace_run_hit *hit;
	__u32 at;

	if (!chain) {
		run->total++;
		count(IPTTRACE_COUNT_RULES, 1);
		count(IPTTRACE_COUNT_LOST_RULES, 1);
		return NULL;
	}
	if (run->record.hit_count >= IPTTRACE_RUN_HITS)
		write_piece(run, key);
	at = run->record.hit_count;
	if (at >= IPTTRACE_RUN_HITS)
		return NULL;
	run->record.hit_count = at + 1;
	run->total++;
	hit = &run->record.hits[at];
	hit->time = now;
	hit->chain = chain;
	return hit;
}

/* Fills in the exit, and writes the run. */
static __always_inline void write_run(struct run *run, __u64 key,
				      const struct sk_buff *skb, __u32 verdict,
				      __u64 now, const bool probed)
{
	struct ipttrace_exit *exit = &run->record.exit;
	__u64 hits = run->record.hit_count;
	unsigned long status = 0, nfct;
	struct nf_conn *ct;
	__u64 size;

	exit->call = run->record.entry.head.call;
	exit->time = now;
	exit->skb = run->skb;
	exit->cost = now - run->began;
	exit->cost -= run->others < exit->cost ? run->others : exit->cost;
	exit->rules = run->total;
	if (verdict == VERDICT_UNKNOWN) {
		exit->flags = IPTTRACE_F_NO_VERDICT;
		verdict = NF_ACCEPT;
	}
	exit->verdict = verdict;
	verdict &= NF_VERDICT_MASK;
	if (exit->flags & IPTTRACE_F_NO_VERDICT) {
		/* The packet may be gone. */
	} else if (verdict == NF_ACCEPT || verdict == NF_REPEAT) {
		exit->flags = IPTTRACE_F_ALIVE;
		nfct = GET(probed, skb, _nfct);
		exit->mark = GET(probed, skb, mark);
		exit->ct_info = nfct & NFCT_INFOMASK;
		ct = (void *)(nfct & ~NFCT_INFOMASK);
		if (ct && bpf_core_type_exists(struct nf_conn))
			bpf_core_read(&status, sizeof(status), &ct->status);
		exit->ct_status = status;
	}
	run->record.piece.run = key;
	run->record.piece.began = run->record.entry.head.time;
	count(IPTTRACE_COUNT_RUNS, 1);
	if (hits)
		count(IPTTRACE_COUNT_RULES, hits);
	/* Never more; Linux 6.1 wants to see that just before it is used. */
	asm volatile("" : "+r"(hits));
	if (hits > IPTTRACE_RUN_HITS)
		hits = IPTTRACE_RUN_HITS;
	size = __builtin_offsetof(struct ipttrace_run, hits) +
	       hits * sizeof(struct ipttrace_run_hit);
	if (bpf_ringbuf_output(&ring, &run->record, size, BPF_RB_NO_WAKEUP)) {
		count(IPTTRACE_COUNT_LOST_RUNS, 1);
		count(IPTTRACE_COUNT_LOST_RULES, hits);
	}
}

#endif
