// SPDX-License-Identifier: GPL-2.0-only
/*
 * The three programs that the module runs: each completes a record and puts it
 * into the perf buffer of its kind.
 *
 * The module hands them registers that it has filled in itself: they are of
 * type kprobe, but attached to nothing.  Compiled once: the offsets of kernel
 * structs are put right when it is loaded (CO-RE), hence structs here name only
 * the fields that are read.
 */

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "record.h"

struct net_device {
	char name[IPTTRACE_IF_LEN];
} __attribute__((preserve_access_index));

struct perf_buffer {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
};

struct perf_buffer entries SEC(".maps");
struct perf_buffer rules SEC(".maps");
struct perf_buffer exits SEC(".maps");

/* Records that no buffer had room for, by kind. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, IPTTRACE_KINDS);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/* Too large for the stack.  Handlers do not nest on a CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ipttrace_entry);
} scratch SEC(".maps");

static __always_inline void put(void *ctx, void *buffer, __u32 kind,
				void *record, __u64 size)
{
	__u64 *count;

	if (!bpf_perf_event_output(ctx, buffer, BPF_F_CURRENT_CPU, record,
				   size))
		return;
	count = bpf_map_lookup_elem(&lost, &kind);
	if (count)
		*count += 1;
}

static __always_inline void put_name(char *name, const struct net_device *dev)
{
	/* The scratch holds the record before: nothing of it may stay. */
	__builtin_memset(name, 0, IPTTRACE_IF_LEN);
	if (dev)
		bpf_core_read(name, IPTTRACE_IF_LEN, &dev->name);
}

/* Registers: the head, the packet, the devices in and out. */
SEC("kprobe/ipttrace_entry")
int ipttrace_entry(struct pt_regs *ctx)
{
	struct ipttrace_entry *entry;
	__u32 zero = 0;
	__u64 len;

	entry = bpf_map_lookup_elem(&scratch, &zero);
	if (!entry)
		return 0;
	bpf_probe_read_kernel(&entry->head, sizeof(entry->head),
			      (void *)PT_REGS_PARM1(ctx));
	bpf_get_current_comm(entry->comm, sizeof(entry->comm));
	put_name(entry->in, (void *)PT_REGS_PARM3(ctx));
	put_name(entry->out, (void *)PT_REGS_PARM4(ctx));

	len = entry->head.caplen;
	barrier_var(len);	/* the verifier must see the next line as it is */
	if (len > IPTTRACE_PACKET_LEN)
		len = IPTTRACE_PACKET_LEN;
	if (bpf_probe_read_kernel(entry->packet, len,
				  (void *)PT_REGS_PARM2(ctx)))
		entry->head.caplen = 0;

	put(ctx, &entries, IPTTRACE_ENTRY, entry, sizeof(*entry));
	return 0;
}

/*
 * Here the registers are the record: a verdict or a rule is told in few words,
 * and reading them from the context takes no call.
 */
SEC("kprobe/ipttrace_rule")
int ipttrace_rule(__u64 *ctx)
{
	__u64 rule[sizeof(struct ipttrace_rule) / sizeof(__u64)];
	int i;

#pragma unroll
	for (i = 0; i < sizeof(rule) / sizeof(*rule); i++)
		rule[i] = ctx[i];
	put(ctx, &rules, IPTTRACE_RULE, rule, sizeof(rule));
	return 0;
}

SEC("kprobe/ipttrace_exit")
int ipttrace_exit(__u64 *ctx)
{
	__u64 end[sizeof(struct ipttrace_exit) / sizeof(__u64)];
	int i;

#pragma unroll
	for (i = 0; i < sizeof(end) / sizeof(*end); i++)
		end[i] = ctx[i];
	put(ctx, &exits, IPTTRACE_EXIT, end, sizeof(end));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
