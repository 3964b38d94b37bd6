// SPDX-License-Identifier: GPL-2.0-only
/*
 * Denies connect(), accept() and what is received, by the rules in a map: BPF LSM.
 *
 * An attached program lasts as long as the process that holds its link; none is pinned.  The
 * rules are one value of an inner map: a program reads which one is current once, so each call
 * is decided by one set of rules, and never by parts of two.
 */

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "ring.h"

#include "guard_policy.h"

#define EACCES	 13
#define MAPPED	 0xffff00000000ULL /* ::ffff:0:0/96 */
#define LOOPBACK 0x7f000001

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

struct socket___guarded {
	struct sock___guarded *sk;
} ACCESS;

struct msghdr {
	void *msg_name;
	int msg_namelen;
} ACCESS;

struct request_sock {
	struct sock_common __req_common;
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
				  const struct sock___guarded *sk, __u8 kind)
{
	__u16 family;

	call->policy = policy_of(kind);
	if (!call->policy || !sk)
		return false;
	family = sk->__sk_common.skc_family;
	if (family != AF_INET && family != AF_INET6)
		return false;
	call->kind = kind;
	call->protocol = sk->sk_protocol;
	call->protocol_at =
		forget(call->protocol == IPPROTO_TCP ? IPTTRACE_GUARD_TCP :
		       call->protocol == IPPROTO_UDP ? IPTTRACE_GUARD_UDP :
						       IPTTRACE_GUARD_OTHER);
	set_value(&call->remote, 0, 0);
	call->remote_port = 0;
	return true;
}

static __always_inline void local_end(struct call *call,
				      const struct sock___guarded *sk)
{
	set_value(&call->local, 0, 0);
	call->local_port = sk->__sk_common.skc_num;
	if (sk->__sk_common.skc_family == AF_INET)
		set_four(&call->local, sk->__sk_common.skc_rcv_saddr);
	else if (bpf_core_field_exists(sk->__sk_common.skc_v6_rcv_saddr))
		set_six(&call->local, &sk->__sk_common.skc_v6_rcv_saddr);
}

/* The process that calls, or else the one that made the socket. */
static __always_inline void find_process(struct call *call,
					 const struct sock___guarded *sk,
					 const bool process)
{
	const struct task_struct *task = (void *)bpf_get_current_task();
	char comm[IPTTRACE_GUARD_COMM] = {};
	__u64 halves[2];

	call->cgroup = NULL;
	if (process) {
		call->uid = bpf_get_current_uid_gid();
		bpf_get_current_comm(comm, sizeof(comm));
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
				   const bool process)
{
	const struct kernfs_node *cgroup = call->cgroup;
	struct ipttrace_guard_event *event;
	__u64 ids;

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
		ids = bpf_get_current_pid_tgid();
		event->flags |= IPTTRACE_GUARD_PROCESS;
		event->pid = ids >> 32;
		event->tid = ids;
		bpf_get_current_comm(event->comm, sizeof(event->comm));
	}
	bpf_ringbuf_submit(event, 0);
}

/* Decides a call that may meet a rule: 0 or -EACCES. */
static __always_inline int
settle(struct call *call, const struct sock___guarded *sk, const bool process)
{
	__u32 rule;

	MERGE();
	local_end(call, sk);
	find_process(call, sk, process);
	MERGE();
	find_spans(call);
	rule = first_rule(call);
	if (!rule)
		return 0;
	report(call, sk, rule, process);
	return call->policy->dry ? 0 : -EACCES;
}

static __always_inline int
decide(struct call *call, const struct sock___guarded *sk, const bool process)
{
	return may_meet(call) ? settle(call, sk, process) : 0;
}

static __always_inline void remote_end(struct call *call,
				       const struct sock_common *common)
{
	call->remote_port = bpf_ntohs(common->skc_dport);
	if (common->skc_family == AF_INET)
		set_four(&call->remote, common->skc_daddr);
	else if (bpf_core_field_exists(common->skc_v6_daddr))
		set_six(&call->remote, &common->skc_v6_daddr);
}

struct any_address {
	__u16 family;
	__be16 port;
	__be32 four; /* of IPv6: the flow label */
	__u8 six[16];
};

/*
 * `length`: of the address, as the process gave it.  An address of zeros is this host, as the kernel
 * reads it.
 */
static __always_inline int to_address(const struct sock___guarded *sk,
				      const void *address, int length,
				      const bool sends)
{
	struct any_address to = {};
	struct call call;

	if (!begin(&call, sk, IPTTRACE_GUARD_CONNECT) || !address || length < 8)
		return 0;
	bpf_probe_read_kernel(&to, 8, address);
	if (to.family == AF_INET6 && length >= 24)
		bpf_probe_read_kernel(&to, sizeof(to), address);
	/* A socket of IPv4 sends to it as if it were one of IPv4; connect() disconnects. */
	if (sends && to.family == AF_UNSPEC &&
	    sk->__sk_common.skc_family == AF_INET)
		to.family = AF_INET;
	if (to.family == AF_INET)
		set_four(&call.remote, to.four ?: bpf_htonl(LOOPBACK));
	else if (to.family == AF_INET6 && length >= 24)
		set_six(&call.remote, to.six);
	else
		return 0;
	if (!call.remote.high && !call.remote.low)
		call.remote.low = 1; /* ::1 */
	if (call.remote.low == MAPPED && !call.remote.high)
		call.remote.low |= LOOPBACK;
	call.remote_port = bpf_ntohs(to.port);
	return decide(&call, sk, true);
}

SEC("lsm/socket_connect")
int BPF_PROG(ipttrace_guard_connect, struct socket___guarded *socket,
	     void *address, int length)
{
	return to_address(socket->sk, address, length, false);
}

SEC("lsm/socket_sendmsg")
int BPF_PROG(ipttrace_guard_send, struct socket___guarded *socket,
	     struct msghdr *message, int size)
{
	const void *address = message->msg_name;

	/* Most have none: the socket is connected. */
	if (!address)
		return 0;
	return to_address(socket->sk, address, message->msg_namelen, true);
}

SEC("lsm/socket_accept")
int BPF_PROG(ipttrace_guard_accept, struct socket___guarded *socket,
	     void *newer)
{
	const struct sock___guarded *sk = socket->sk;
	struct call call;

	if (!begin(&call, sk, IPTTRACE_GUARD_ACCEPT))
		return 0;
	return decide(&call, sk, true);
}

SEC("lsm/inet_conn_request")
int BPF_PROG(ipttrace_guard_arrival, struct sock___guarded *sk, void *skb,
	     struct request_sock *request)
{
	struct call call;

	if (!begin(&call, sk, IPTTRACE_GUARD_ARRIVAL))
		return 0;
	remote_end(&call, &request->__req_common);
	return decide(&call, sk, false);
}

/* Of a socket with one peer; datagrams of others are looked at as they arrive. */
SEC("lsm/socket_recvmsg")
int BPF_PROG(ipttrace_guard_receive, struct socket___guarded *socket,
	     void *message, int size, int flags)
{
	const struct sock___guarded *sk = socket->sk;
	struct call call;

	if (!sk || !sk->__sk_common.skc_dport)
		return 0;
	if (!begin(&call, sk, IPTTRACE_GUARD_RECEIVE))
		return 0;
	remote_end(&call, &sk->__sk_common);
	return decide(&call, sk, true);
}

SEC("lsm/socket_sock_rcv_skb")
int BPF_PROG(ipttrace_guard_packet, struct sock___guarded *sk,
	     struct sk_buff___guarded *skb)
{
	unsigned char *head;
	struct call call;
	__be16 ports[2];
	__be32 four;

	/* A stream whose segments were dropped would not end. */
	if (sk->sk_protocol == IPPROTO_TCP)
		return 0;
	if (!begin(&call, sk, IPTTRACE_GUARD_RECEIVE))
		return 0;
	head = skb->head;
	if (skb->protocol == bpf_htons(0x0800)) {
		if (bpf_probe_read_kernel(&four, sizeof(four),
					  head + skb->network_header + 12))
			return 0;
		set_four(&call.remote, four);
	} else {
		set_six(&call.remote, head + skb->network_header + 8);
	}
	if (!may_meet(&call))
		return 0;
	if (call.protocol == IPPROTO_UDP &&
	    !bpf_probe_read_kernel(ports, sizeof(ports),
				   head + skb->transport_header))
		call.remote_port = bpf_ntohs(ports[0]);
	return settle(&call, sk, false);
}

char LICENSE[] SEC("license") = "GPL";
