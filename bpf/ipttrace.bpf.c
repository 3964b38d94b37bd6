// SPDX-License-Identifier: GPL-2.0-only
/*
 * The three programs that the module runs: each completes a record and puts it
 * into the perf buffer of its kind.
 *
 * The module hands them registers whose first argument points to what it has
 * filled in itself, so that they are of type kprobe but attached to nothing.
 * Compiled once: the offsets of kernel structs are put right when it is loaded
 * (CO-RE), hence the structs below name only the fields that are read.
 */

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "record.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), \
			     apply_to = record)

struct net_device {
	char name[IPTTRACE_IF_LEN];
};

struct sk_buff {
	unsigned char *head;
	unsigned char *data;
	unsigned int len;
	unsigned int data_len;
	__u16 mac_header;
	__u16 network_header;
	__be16 protocol;
	__u16 vlan_tci;
};

struct nf_hook_state {
	struct net_device *in;
	struct net_device *out;
};

#pragma clang attribute pop

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

static __always_inline void entry_packet(struct ipttrace_entry *entry)
{
	const struct sk_buff *skb = (void *)entry->head.skb;
	unsigned char *head = BPF_CORE_READ(skb, head);
	unsigned char *data = BPF_CORE_READ(skb, data);
	__u64 len = entry->head.len - BPF_CORE_READ(skb, data_len);
	__u16 mac = BPF_CORE_READ(skb, mac_header);
	__u16 net = BPF_CORE_READ(skb, network_header);
	__u16 mac_len = net - mac;

	entry->protocol_be16 = BPF_CORE_READ(skb, protocol);
	entry->vlan_tci = BPF_CORE_READ(skb, vlan_tci);

	/* ipt_do_table() is given packets with data at the network header */
	entry->caplen = 0;
	barrier_var(len);	/* the verifier must see the next line as it is */
	if (len > IPTTRACE_PACKET_LEN)
		len = IPTTRACE_PACKET_LEN;
	if (len && !bpf_probe_read_kernel(entry->packet, len, data))
		entry->caplen = len;

	/* Not there yet on the way out: 0xffff, or the network header itself */
	entry->mac_len = 0;
	if (mac != 0xffff && mac < net && mac_len <= IPTTRACE_MAC_LEN &&
	    !bpf_probe_read_kernel(entry->mac, IPTTRACE_MAC_LEN, head + mac))
		entry->mac_len = mac_len;
}

SEC("kprobe/ipttrace_entry")
int ipttrace_entry(struct pt_regs *ctx)
{
	const void *head = (void *)PT_REGS_PARM1(ctx);
	const struct nf_hook_state *state = (void *)PT_REGS_PARM2(ctx);
	struct ipttrace_entry *entry;
	struct net_device *dev;
	__u64 pid_tgid;
	__u32 zero = 0;

	entry = bpf_map_lookup_elem(&scratch, &zero);
	if (!entry)
		return 0;
	bpf_probe_read_kernel(&entry->head, sizeof(entry->head), head);

	pid_tgid = bpf_get_current_pid_tgid();
	entry->pid = pid_tgid >> 32;
	entry->tid = pid_tgid;
	entry->cpu = bpf_get_smp_processor_id();
	bpf_get_current_comm(entry->comm, sizeof(entry->comm));

	/* The scratch holds the record before: nothing of it may stay. */
	__builtin_memset(entry->in, 0, sizeof(entry->in));
	__builtin_memset(entry->out, 0, sizeof(entry->out));
	if (entry->head.in_ifindex) {
		dev = BPF_CORE_READ(state, in);
		bpf_probe_read_kernel(entry->in, sizeof(entry->in), &dev->name);
	}
	if (entry->head.out_ifindex) {
		dev = BPF_CORE_READ(state, out);
		bpf_probe_read_kernel(entry->out, sizeof(entry->out),
				      &dev->name);
	}
	entry_packet(entry);

	put(ctx, &entries, IPTTRACE_ENTRY, entry, sizeof(*entry));
	return 0;
}

SEC("kprobe/ipttrace_rule")
int ipttrace_rule(struct pt_regs *ctx)
{
	const void *filled = (void *)PT_REGS_PARM1(ctx);
	const void *chain = (void *)PT_REGS_PARM2(ctx);
	struct ipttrace_rule rule = {};

	bpf_probe_read_kernel(&rule, sizeof(rule), filled);
	bpf_probe_read_kernel_str(rule.chain, sizeof(rule.chain), chain);
	put(ctx, &rules, IPTTRACE_RULE, &rule, sizeof(rule));
	return 0;
}

SEC("kprobe/ipttrace_exit")
int ipttrace_exit(struct pt_regs *ctx)
{
	const void *filled = (void *)PT_REGS_PARM1(ctx);
	struct ipttrace_exit out = {};

	bpf_probe_read_kernel(&out, sizeof(out), filled);
	put(ctx, &exits, IPTTRACE_EXIT, &out, sizeof(out));
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
