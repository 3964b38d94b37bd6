/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The ring to which programs write, and their counters.
 */
#ifndef IPTTRACE_RING_H
#define IPTTRACE_RING_H

#include "run.h"
#include "structs.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 24); /* changed by who loads it */
} ring SEC(".maps");

static __always_inline void report_flip(__u64 skb, __u64 original, __u32 what,
					__u64 now)
{
	struct ipttrace_run_flip flip = {
		.time = now,
		.skb = skb,
		.original = original,
		.what = what,
	};

	bpf_ringbuf_output(&ring, &flip, sizeof(flip), BPF_RB_NO_WAKEUP);
}

/*
 * See enum ipttrace_counter.  Mapped by who reads it: while it is read by system calls, no
 * program of a kprobe runs on that CPU.
 */
struct cpu_counters {
	__u64 of[IPTTRACE_COUNTERS_EACH];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* CPUs, set by who loads it */
	__type(key, __u32);
	__type(value, struct cpu_counters);
} counters SEC(".maps");

/* Atomic, since a softirq may count between the load and the store. */
static __always_inline void count(__u32 counter, __u64 more)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cpu_counters *found = bpf_map_lookup_elem(&counters, &cpu);

	if (found)
		__sync_fetch_and_add(&found->of[counter], more);
}

#endif
