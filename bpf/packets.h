/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The packets that are traced, by address: shared by the programs that see their runs, and by
 * those that see what becomes of them in between.
 */
#ifndef IPTTRACE_PACKETS_H
#define IPTTRACE_PACKETS_H

#include "structs.h"

enum packet_state {
	FLIPPED = 1, /* by our table, and not met since */
	DOUBTFUL, /* as FLIPPED, but whether EXPR matches is left to the agent */
	COPIED,	  /* from a packet that is traced, and not met since */
	REFUSED,  /* by our table, though EXPR does not match */
	FOLLOWED,
	CROSSING, /* as FOLLOWED, and in our table again */
};

/*
 * With a state: the kernel has cleared nf_trace, and until our table sets it again the packet is
 * known by its address alone, which it keeps until it is freed: see bpf/follow.bpf.c.
 */
#define CARRIED 8

#define PACKET_SETS 16384
#define PACKET_WAYS 4

/*
 * Packets by address, so that the first run of each is known: of each set the one that was
 * seen longest ago makes room.  An LRU hash would cost as much as the rest of a run.
 */
struct packet_set {
	__u64 skb[PACKET_WAYS];
	__u32 state[PACKET_WAYS];
	__u32 seen[PACKET_WAYS]; /* about ms */
	/* Rarely needed, thus in another cache line; numbers of calls, in halves. */
	__u32 call[2][PACKET_WAYS]; /* its last run */
	__u32 origin[2]
		    [PACKET_WAYS]; /* of a copy: the last run of its original, 0: none */
};

/* From a packet's state to what is kept beside it, in __u32. */
#define BESIDE(field)                                     \
	((__builtin_offsetof(struct packet_set, field) -  \
	  __builtin_offsetof(struct packet_set, state)) / \
	 sizeof(__u32))

/* A number that is kept beside the state of a packet, at BESIDE(call) or BESIDE(origin). */
static __always_inline __u64 kept_number(const __u32 *state, __u32 at)
{
	return state[at] | (__u64)state[at + PACKET_WAYS] << 32;
}

static __always_inline void keep_number(__u32 *state, __u32 at, __u64 number)
{
	state[at] = number;
	state[at + PACKET_WAYS] = number >> 32;
}

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PACKET_SETS);
	__type(key, __u32);
	__type(value, struct packet_set);
} packets SEC(".maps");

static __always_inline struct packet_set *packet_set_of(__u64 skb)
{
	__u32 number;

	/* The lower half: the verifier allows no arithmetic with a pointer. */
	asm volatile("%0 = %1" : "=w"(number) : "w"((__u32)skb));
	number = number * 0x9e3779b1U >> 18;
	return bpf_map_lookup_elem(&packets, &number);
}

/* What is known of a packet, enum packet_state and CARRIED; NULL if it has not been seen. */
static __always_inline __u32 *known_packet(struct packet_set *set, __u64 skb,
					   __u64 now)
{
	__u32 way;

#pragma unroll
	for (way = 0; way < PACKET_WAYS; way++)
		if (set->skb[way] == skb)
			break;
	way = forget(way);
	if (way >= PACKET_WAYS)
		return NULL;
	set->seen[way] = now >> 20;
	return &set->state[way];
}

/* Returns its state; NULL if it cannot be remembered. */
static __always_inline __u32 *remember_packet(struct packet_set *set, __u64 skb,
					      __u32 state, __u64 now)
{
	__u32 way, oldest = 0, age, most = 0, at = now >> 20;
	__u64 before;

#pragma unroll
	for (way = 0; way < PACKET_WAYS; way++) {
		age = set->skb[way] ? at - set->seen[way] : ~0U;
		if (age >= most) {
			most = age;
			oldest = way;
		}
	}
	oldest = forget(oldest) & (PACKET_WAYS - 1);
	before = set->skb[oldest];
	/* Another CPU may want the same place for another packet. */
	if (__sync_val_compare_and_swap(&set->skb[oldest], before, skb) !=
	    before)
		return NULL;
	set->state[oldest] = state;
	set->seen[oldest] = at;
	keep_number(&set->state[oldest], BESIDE(call), 0);
	keep_number(&set->state[oldest], BESIDE(origin), 0);
	return &set->state[oldest];
}

#endif
