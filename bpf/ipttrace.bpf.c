// SPDX-License-Identifier: GPL-2.0-only
/*
 * The programs that the module runs: each writes its input to a perf buffer.
 *
 * They are of type kprobe, but attached to nothing: the module calls them, with
 * registers that it has filled in itself.  Compiled once for all kernels: what
 * depends on kernel structs is resolved when the object is loaded (CO-RE), so
 * the structs here declare only the fields in question.
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
 * Whether names have the same length in this kernel as in the record: the
 * module copies as many bytes as the headers declared when it was built.  A
 * constant once the object is loaded.
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

/* Records for which no buffer had room, by kind. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, IPTTRACE_KINDS);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/*
 * Where the module puts a finished call before it runs the program.  It finds
 * the array by the size of its value.  Handlers do not nest on a CPU.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ipttrace_call_record);
} finished SEC(".maps");

static __always_inline void lost_add(__u32 kind, __u64 records)
{
	__u64 *count = bpf_map_lookup_elem(&lost, &kind);

	if (count)
		*count += records;
}

SEC("kprobe/ipttrace_call")
int ipttrace_call(void *ctx)
{
	struct ipttrace_call_record *call;
	__u32 zero = 0;
	__u64 rules;

	call = bpf_map_lookup_elem(&finished, &zero);
	if (!call)
		return 0;
	if (names_fit() &&
	    !bpf_perf_event_output(ctx, &calls, BPF_F_CURRENT_CPU, call,
				   sizeof(*call)))
		return 0;
	rules = call->exit.rules;
	lost_add(IPTTRACE_ENTRY, 1);
	lost_add(IPTTRACE_RULE, rules < IPTTRACE_HITS ? rules : IPTTRACE_HITS);
	lost_add(IPTTRACE_EXIT, 1);
	return 0;
}

/*
 * The registers are the record: it is short, and reading the context takes no
 * helper call.
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
		lost_add(IPTTRACE_RULE, 1);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
