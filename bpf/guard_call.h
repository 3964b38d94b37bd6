/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A call that the guard decides: its ends and its process, of the kernel's socket; and the report
 * of what is denied.  For programs of LSM, which read the socket directly, and for those of a cgroup,
 * which have its address only: `probed`.
 */
#ifndef IPTTRACE_GUARD_CALL_H
#define IPTTRACE_GUARD_CALL_H

#include "ring.h"

#include "guard_policy.h"

#define EACCES	 13
#define MAPPED	 0xffff00000000ULL /* ::ffff:0:0/96 */
#define LOOPBACK 0x7f000001

struct task_struct___guarded {
	struct cred___stage *cred;
	int pid, tgid;
	char comm[IPTTRACE_GUARD_COMM];
} ACCESS;

struct sock_cgroup_data {
	struct cgroup *cgroup;
} ACCESS;

struct sock___guarded {
	struct sock_common __sk_common;
	__u16 sk_protocol;
	struct {
		__u32 val;
	} sk_uid;
	struct sock_cgroup_data sk_cgrp_data;
} ACCESS;

struct sk_buff___guarded {
	__u16 transport_header;
	__u16 network_header;
	__be16 protocol;
	unsigned char *head;
} ACCESS;

static __always_inline void set_value(struct ipttrace_guard_value *value,
				      __u64 high, __u64 low)
{
	value->high = high;
	value->low = low;
}

static __always_inline void set_four(struct ipttrace_guard_value *value,
				     __be32 address)
{
	set_value(value, 0, MAPPED | bpf_ntohl(address));
}

static __always_inline void set_six(struct ipttrace_guard_value *value,
				    const void *address)
{
	__u64 halves[2] = {};

	bpf_probe_read_kernel(halves, sizeof(halves), address);
	set_value(value, bpf_be64_to_cpu(halves[0]),
		  bpf_be64_to_cpu(halves[1]));
}

/* Begins a call on a socket of IP, without its addresses; false: no rule is of such calls. */
static __always_inline bool begin(struct call *call,
				  const struct sock___guarded *sk, __u8 kind,
				  const bool probed)
{
	__u16 family;

	call->policy = policy_of(kind);
	if (!call->policy || !sk)
		return false;
	family = GET(probed, sk, __sk_common.skc_family);
	if (family != AF_INET && family != AF_INET6)
		return false;
	call->kind = kind;
	call->protocol = GET(probed, sk, sk_protocol);
	call->protocol_at =
		forget(call->protocol == IPPROTO_TCP ? IPTTRACE_GUARD_TCP :
		       call->protocol == IPPROTO_UDP ? IPTTRACE_GUARD_UDP :
						       IPTTRACE_GUARD_OTHER);
	set_value(&call->remote, 0, 0);
	call->remote_port = 0;
	return true;
}

static __always_inline void
local_end(struct call *call, const struct sock___guarded *sk, const bool probed)
{
	set_value(&call->local, 0, 0);
	call->local_port = GET(probed, sk, __sk_common.skc_num);
	if (GET(probed, sk, __sk_common.skc_family) == AF_INET)
		set_four(&call->local,
			 GET(probed, sk, __sk_common.skc_rcv_saddr));
	else if (bpf_core_field_exists(sk->__sk_common.skc_v6_rcv_saddr))
		set_six(&call->local, &sk->__sk_common.skc_v6_rcv_saddr);
}

/* Not all kernels have the helpers for the process in programs of a cgroup. */
static __always_inline void read_comm(char *comm, const bool probed)
{
	const struct task_struct___guarded *who =
		(void *)bpf_get_current_task();

	if (probed)
		bpf_probe_read_kernel_str(comm, IPTTRACE_GUARD_COMM,
					  &who->comm);
	else
		bpf_get_current_comm(comm, IPTTRACE_GUARD_COMM);
}

/* The process that calls, or else the one that made the socket. */
static __always_inline void find_process(struct call *call,
					 const struct sock___guarded *sk,
					 const bool process, const bool probed)
{
	const struct task_struct *task = (void *)bpf_get_current_task();
	const struct task_struct___guarded *who = (const void *)task;
	char comm[IPTTRACE_GUARD_COMM] = {};
	__u64 halves[2];

	call->cgroup = NULL;
	if (process) {
		read_comm(comm, probed);
		call->uid = probed ? BPF_CORE_READ(who, cred, uid.val) :
				     (__u32)bpf_get_current_uid_gid();
		call->cgroup = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn);
	} else {
		call->uid = BPF_CORE_READ(sk, sk_uid.val);
		if (bpf_core_field_exists(sk->sk_cgrp_data))
			call->cgroup =
				BPF_CORE_READ(sk, sk_cgrp_data.cgroup, kn);
	}
	__builtin_memcpy(halves, comm, sizeof(halves));
	call->comm.high = bpf_be64_to_cpu(halves[0]);
	call->comm.low = bpf_be64_to_cpu(halves[1]);
}

static __always_inline void report(const struct call *call,
				   const struct sock___guarded *sk, __u32 rule,
				   const bool process, const bool probed)
{
	const struct task_struct___guarded *who =
		(void *)bpf_get_current_task();
	const struct kernfs_node *cgroup = call->cgroup;
	struct ipttrace_guard_event *event;

	count(IPTTRACE_GUARD_DENIED, 1);
	event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	if (!event) {
		count(IPTTRACE_GUARD_LOST, 1);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->time = bpf_ktime_get_ns();
	if (cgroup)
		event->cgroup = BPF_CORE_READ(cgroup, id);
	event->version = call->policy->version;
	event->rule = rule;
	event->netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	event->uid = call->uid;
	event->remote_port = call->remote_port;
	event->local_port = call->local_port;
	event->call = call->kind;
	event->protocol = call->protocol;
	event->flags = call->policy->dry ? IPTTRACE_GUARD_DRY : 0;
	event->remote = call->remote;
	event->local = call->local;
	if (process) {
		event->flags |= IPTTRACE_GUARD_PROCESS;
		event->pid = BPF_CORE_READ(who, tgid);
		event->tid = BPF_CORE_READ(who, pid);
		read_comm(event->comm, probed);
	}
	bpf_ringbuf_submit(event, 0);
}

/* Decides a call that may meet a rule: 0 or -EACCES. */
static __always_inline int settle(struct call *call,
				  const struct sock___guarded *sk,
				  const bool process, const bool probed)
{
	__u32 rule;

	MERGE();
	local_end(call, sk, probed);
	find_process(call, sk, process, probed);
	MERGE();
	find_spans(call);
	rule = first_rule(call);
	if (!rule)
		return 0;
	report(call, sk, rule, process, probed);
	return call->policy->dry ? 0 : -EACCES;
}

static __always_inline int decide(struct call *call,
				  const struct sock___guarded *sk,
				  const bool process, const bool probed)
{
	return may_meet(call) ? settle(call, sk, process, probed) : 0;
}

static __always_inline void remote_end(struct call *call,
				       const struct sock_common *common,
				       const bool probed)
{
	call->remote_port = bpf_ntohs(GET(probed, common, skc_dport));
	if (GET(probed, common, skc_family) == AF_INET)
		set_four(&call->remote, GET(probed, common, skc_daddr));
	else if (bpf_core_field_exists(common->skc_v6_daddr))
		set_six(&call->remote, &common->skc_v6_daddr);
}

#endif
