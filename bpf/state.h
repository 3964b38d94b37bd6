/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the programs keep while they trace: runs that are under way, packets by address, the
 * ring and the counters; and what they do alike.
 */
#ifndef IPTTRACE_STATE_H
#define IPTTRACE_STATE_H

#include "bridge.h"
#include "fill.h"
#include "run.h"

#define NF_ACCEPT	1
#define NF_REPEAT	4
#define NF_VERDICT_MASK 0xff

/* nft_do_chain() walks lists of rules at most so deep. */
#define STACK 16

/* Of nftables: where in its chains a run is. */
struct run_place {
	__u64 base;  /* the base chain, as an address */
	__u64 chain; /* that is running */
	__u32 depth;
	__u64 stack[STACK];
};

struct run_nest {
	__u64 context; /* the task, or the softirq on top of it */
	__u64 parent;  /* the run inside which this one is, 0: none */
	__u64 inner;   /* the packet that was met last inside this run */
	__u64 inner_table;
	__s32 inner_priority;
	__u8 inner_hook;
};

/* Programs of all objects share them: the same for nftables and for legacy tables. */
struct run {
	__u64 key;
	__u64 skb;
	__u64 frame; /* where its return address is; 0: not of a kprobe */
	__u64 began;
	__u64 others; /* ns since, in our programs and in runs inside this one */
	__u64 serial; /* of this CPU and object */
	__u32 total;  /* hits, also those of pieces */
	struct run_nest nest;
	struct run_place place;
	struct ipttrace_run record;
};

/* Runs at a time; one that finds no room is missed. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct run);
} runs SEC(".maps");

/* Where a run is filled in: the program that does so never nests on a CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct run);
} scratch SEC(".maps");

enum packet_state {
	FLIPPED = 1, /* by our table, and not met since */
	DOUBTFUL, /* as FLIPPED, but whether EXPR matches is left to the agent */
	REFUSED,  /* by our table, though EXPR does not match */
	FOLLOWED,
	CROSSING, /* as FOLLOWED, and in our table again */
};

/* Packets by address, so that the first run of each is known. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u32);
} packets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24); /* changed by who loads it */
} ring SEC(".maps");

/*
 * See enum ipttrace_counter.  Mapped by who reads it: while it is read by system calls, no
 * program of a kprobe runs on that CPU.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries,
	       IPTTRACE_COUNTERS_EACH); /* changed by who loads it */
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

/* Atomic, since a softirq may count between the load and the store. */
static __always_inline void count(__u32 counter, __u64 more)
{
	__u32 key =
		bpf_get_smp_processor_id() * IPTTRACE_COUNTERS_EACH + counter;
	__u64 *found = bpf_map_lookup_elem(&counters, &key);

	if (found)
		__sync_fetch_and_add(found, more);
}

/* A cleared run to fill in; NULL if nf_trace of the packet is clear, which comes first. */
static __always_inline struct run *new_run(const struct sk_buff *skb)
{
	struct run *run;
	__u32 zero = 0;

	if (!BPF_CORE_READ_BITFIELD_PROBED(skb, nf_trace))
		return NULL;
	run = bpf_map_lookup_elem(&scratch, &zero);
	if (run)
		__builtin_memset(&run->record, 0,
				 __builtin_offsetof(struct ipttrace_run, hits));
	return run;
}

/* Counts a run of a packet that EXPR does not match; returns whether it is one. */
static __always_inline bool refused(__u64 skb)
{
	__u32 *known = bpf_map_lookup_elem(&packets, &skb);

	if (!known || *known != REFUSED)
		return false;
	count(IPTTRACE_COUNT_REFUSED, 1);
	return true;
}

/* Notes that the packet is met; fills in whether this is its first run. */
static __always_inline void meet(struct ipttrace_run *record, __u64 skb)
{
	__u32 fresh = FOLLOWED, *known = bpf_map_lookup_elem(&packets, &skb);

	if (!known) {
		bpf_map_update_elem(&packets, &skb, &fresh, BPF_ANY);
		record->entry.head.flags = IPTTRACE_F_FIRST;
		record->flags = IPTTRACE_RUN_FOREIGN;
		return;
	}
	record->entry.head.flags = *known <= DOUBTFUL ? IPTTRACE_F_FIRST :
							IPTTRACE_F_FOLLOWED;
	if (*known == DOUBTFUL)
		record->flags = IPTTRACE_RUN_DOUBTFUL;
	*known = FOLLOWED;
}

/* All that comes from the packet, its hook and the process; after meet(). */
static __always_inline void fill_run(struct ipttrace_run *record,
				     const struct sk_buff *skb,
				     const struct nf_hook_state *state,
				     const bool probed)
{
	struct ipttrace_entry_head *head = &record->entry.head;
	const struct net *net = GET(probed, state, net);
	__u64 ids = bpf_get_current_pid_tgid();

	head->skb = (unsigned long)skb;
	head->sk = (unsigned long)GET(probed, skb, sk);
	head->netns = GET(probed, net, ns.inum);
	head->mark = GET(probed, skb, mark);
	head->family = GET(probed, state, pf);
	head->hook = GET(probed, state, hook);
	head->protocol_be16 = GET(probed, skb, protocol);
	head->vlan_tci = vlan_tci(skb, probed);
	head->source = IPTTRACE_SOURCE_BPF;
	head->cpu = bpf_get_smp_processor_id();
	head->pid = ids >> 32;
	head->tid = ids;
	bpf_get_current_comm(record->entry.comm, sizeof(record->entry.comm));
	if (in_softirq())
		head->flags |= IPTTRACE_F_SOFTIRQ;
	fill_device(GET(probed, state, in), record->entry.in, &head->in_ifindex,
		    probed);
	fill_device(GET(probed, state, out), record->entry.out,
		    &head->out_ifindex, probed);
	fill_ports(&record->entry, skb, net);
	if (fill_conntrack(head, skb, probed))
		record->flags |= IPTTRACE_RUN_NO_CONNTRACK;
	fill_packet(&record->entry, skb, probed);
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

/* The next hit of a run, with its time; the caller fills in the rest. */
static __always_inline struct ipttrace_run_hit *next_hit(struct run *run,
							 __u64 key, __u64 now)
{
	struct ipttrace_run_hit *hit;
	__u32 at;

	if (run->record.hit_count >= IPTTRACE_RUN_HITS)
		write_piece(run, key);
	at = run->record.hit_count;
	if (at >= IPTTRACE_RUN_HITS)
		return NULL;
	run->record.hit_count = at + 1;
	run->total++;
	hit = &run->record.hits[at];
	hit->time = now;
	__builtin_memset(hit->chain, 0, sizeof(hit->chain));
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
	exit->verdict = verdict;
	exit->rules = run->total;
	verdict &= NF_VERDICT_MASK;
	if (verdict == NF_ACCEPT || verdict == NF_REPEAT) {
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
