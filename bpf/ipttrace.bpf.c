// SPDX-License-Identifier: GPL-2.0-only
/*
 * The programs that the module runs: each puts what it is given into its perf
 * buffer.
 *
 * The module hands them registers that it has filled in itself: they are of
 * type kprobe, but attached to nothing.  Compiled once: what is asked of kernel
 * structs is answered when it is loaded (CO-RE), hence structs here name only the
 * fields that are asked about.
 */

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "record.h"

struct task_struct {
	char comm[IPTTRACE_COMM_LEN];
} __attribute__((preserve_access_index));

struct net_device {
	char name[IPTTRACE_IF_LEN];
} __attribute__((preserve_access_index));

/*
 * Whether names are as long here as the record has them: the module copies them
 * as it was compiled, and may be an older kernel's.  Known when the object is
 * loaded; costs nothing later.
 */
static __always_inline int names_fit(void)
{
	return bpf_core_field_size(((struct task_struct *)0)->comm) ==
			IPTTRACE_COMM_LEN &&
	       bpf_core_field_size(((struct net_device *)0)->name) ==
			IPTTRACE_IF_LEN;
}

struct perf_buffer {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
};

struct perf_buffer calls SEC(".maps");
struct perf_buffer rules SEC(".maps");

/* Records that no buffer had room for, by kind. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, IPTTRACE_KINDS);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/*
 * Where the module puts a finished call before it runs the program: found by its
 * size.  Handlers do not nest on a CPU.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ipttrace_whole);
} finished SEC(".maps");

static __always_inline void lose(__u32 kind, __u64 records)
{
	__u64 *count = bpf_map_lookup_elem(&lost, &kind);

	if (count)
		*count += records;
}

SEC("kprobe/ipttrace_call")
int ipttrace_call(void *ctx)
{
	struct ipttrace_whole *whole;
	__u32 zero = 0;
	__u64 rules;

	whole = bpf_map_lookup_elem(&finished, &zero);
	if (!whole)
		return 0;
	if (names_fit() &&
	    !bpf_perf_event_output(ctx, &calls, BPF_F_CURRENT_CPU, whole,
				   sizeof(*whole)))
		return 0;
	rules = whole->exit.rules;
	lose(IPTTRACE_ENTRY, 1);
	lose(IPTTRACE_RULE, rules < IPTTRACE_HITS ? rules : IPTTRACE_HITS);
	lose(IPTTRACE_EXIT, 1);
	return 0;
}

/*
 * Here the registers are the record: a rule is told in few words, and reading
 * them from the context takes no call.
 */
SEC("kprobe/ipttrace_rule")
int ipttrace_rule(__u64 *ctx)
{
	__u64 rule[sizeof(struct ipttrace_rule) / sizeof(__u64)];
	int i;

#pragma unroll
	for (i = 0; i < sizeof(rule) / sizeof(*rule); i++)
		rule[i] = ctx[i];
	if (bpf_perf_event_output(ctx, &rules, BPF_F_CURRENT_CPU, rule,
				  sizeof(rule)))
		lose(IPTTRACE_RULE, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
