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

#include "structs.h"

#include "guard.h"

#define IPPROTO_TCP  6
#define IPPROTO_UDP  17
#define AF_INET	     2
#define AF_INET6     10
#define EACCES	     13
#define MAPPED	     0xffff00000000ULL /* ::ffff:0:0/96 */
#define SPAN_BITS    11
#define MOST_CGROUPS 16 /* above each other */

_Static_assert(1 << SPAN_BITS == IPTTRACE_GUARD_SPANS, "spans");

struct kernfs_node {
	__u64 id;
	struct kernfs_node *parent;
} ACCESS;

/* Since Linux 6.15. */
struct kernfs_node___new {
	struct kernfs_node *__parent;
} ACCESS;

struct cgroup {
	struct kernfs_node *kn;
} ACCESS;

struct css_set {
	struct cgroup *dfl_cgrp;
} ACCESS;

struct task_struct {
	struct css_set *cgroups;
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

/* Without types: older kernels take no other map in its place that has none. */
struct policy_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct ipttrace_guard_policy));
};

struct policy_map first_policy SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct policy_map);
} policies SEC(".maps") = {
	.values = { &first_policy },
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} ring SEC(".maps");

struct cpu_counters {
	__u64 of[8];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1); /* CPUs, set by who loads it */
	__type(key, __u32);
	__type(value, struct cpu_counters);
} counters SEC(".maps");

/*
 * A call, and in which spans its values are.  On the stack: nothing keeps these programs from
 * running again on a CPU, where the kernel is preemptible, before they have ended.
 */
struct call {
	const struct ipttrace_guard_policy *policy;
	const struct sock___guarded *sk;
	const struct kernfs_node *cgroup;
	struct ipttrace_guard_value remote, local, comm;
	__u32 uid;
	__u16 remote_port, local_port;
	__u8 kind, protocol;
	__u32 protocol_at;		    /* enum ipttrace_guard_protocol */
	__u32 remote_at, local_at, comm_at; /* spans */
	__u32 remote_port_at, local_port_at, uid_at;
};

static __always_inline void count(__u32 counter)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cpu_counters *found = bpf_map_lookup_elem(&counters, &cpu);

	if (found)
		__sync_fetch_and_add(&found->of[counter], 1);
}

static __always_inline const struct ipttrace_guard_policy *policy_of(__u32 call)
{
	const struct ipttrace_guard_policy *policy;
	__u32 zero = 0;
	void *map;

	map = bpf_map_lookup_elem(&policies, &zero);
	if (!map)
		return NULL;
	policy = bpf_map_lookup_elem(map, &zero);
	return policy && policy->calls >> call & 1 ? policy : NULL;
}

/*
 * The span of a value.  Not inlined, and not static, as other functions below: what the verifier
 * has checked once, it does not check again for each way that leads there.
 */
__noinline __u32 span_of_value(const struct ipttrace_guard_values *spans,
			       __u64 high, __u64 low)
{
	const struct ipttrace_guard_value *from;
	__u32 at = 0, next;
	int bit;

	if (!spans)
		return 0;
#pragma unroll
	for (bit = SPAN_BITS - 1; bit >= 0; bit--) {
		next = (at + (1U << bit)) & (IPTTRACE_GUARD_SPANS - 1);
		from = &spans->from[next];
		if (high > from->high ||
		    (high == from->high && low >= from->low))
			at = next;
		at = forget(at);
	}
	return at;
}

__noinline __u32 span_of_number(const struct ipttrace_guard_numbers *spans,
				__u32 value)
{
	__u32 at = 0, next;
	int bit;

	if (!spans)
		return 0;
#pragma unroll
	for (bit = SPAN_BITS - 1; bit >= 0; bit--) {
		next = (at + (1U << bit)) & (IPTTRACE_GUARD_SPANS - 1);
		if (value >= spans->from[next])
			at = next;
		at = forget(at);
	}
	return at;
}

static __always_inline const struct kernfs_node *
parent_of(const struct kernfs_node *node)
{
	const struct kernfs_node___new *newer = (const void *)node;

	if (bpf_core_field_exists(newer->__parent))
		return BPF_CORE_READ(newer, __parent);
	return BPF_CORE_READ(node, parent);
}

/* The place of a cgroup in the policy's list, if it is there. */
__noinline __u32 place_of_cgroup(const struct ipttrace_guard_policy *policy,
				 __u64 id)
{
	__u32 at = 0, next;
	int bit;

	if (!policy)
		return 0;
#pragma unroll
	for (bit = IPTTRACE_GUARD_CONTAINERS / 2; bit; bit >>= 1) {
		next = (at + bit) & (IPTTRACE_GUARD_CONTAINERS - 1);
		if (next < policy->containers && id >= policy->cgroup[next])
			at = next;
		at = forget(at);
	}
	return at;
}

/* Adds the rules that name a container that the cgroup is in. */
__noinline int find_containers(const struct ipttrace_guard_policy *policy,
			       __u64 cgroup, struct ipttrace_guard_bits *found)
{
	const struct kernfs_node *node = (const void *)cgroup;
	__u32 at, level, word;
	__u64 id;

	if (!policy || !found)
		return 0;
#pragma nounroll
	for (level = 0; level < MOST_CGROUPS && node; level++) {
		id = BPF_CORE_READ(node, id);
		at = place_of_cgroup(policy, id) &
		     (IPTTRACE_GUARD_CONTAINERS - 1);
		if (policy->cgroup[at] == id)
#pragma nounroll
			for (word = 0; word < IPTTRACE_GUARD_WORDS; word++)
				found->of[word] |=
					policy->of_cgroup[at].of[word];
		node = parent_of(node);
	}
	return 0;
}

/* Of the rules of such calls, by the remote end and the protocol alone: one of 64 of them. */
static __always_inline __u64 candidates(const struct call *call, __u32 word)
{
	const struct ipttrace_guard_policy *policy = call->policy;
	__u32 remote = call->remote_at & (IPTTRACE_GUARD_SPANS - 1);
	__u32 kind = call->kind & (IPTTRACE_GUARD_CALLS - 1);
	__u32 protocol = call->protocol_at & 3;

	return policy->remote.rules[remote].of[word] &
	       policy->call[kind].of[word] &
	       policy->protocol[protocol].of[word];
}

/* The words of `candidates` that may have a bit. */
static __always_inline __u32 candidate_words(const struct call *call)
{
	__u32 remote = call->remote_at & (IPTTRACE_GUARD_SPANS - 1);
	__u32 kind = call->kind & (IPTTRACE_GUARD_CALLS - 1);

	return call->policy->remote_words[remote] & call->policy->words[kind];
}

/* The number of the only bit that is set. */
__noinline __u32 lowest_bit(__u64 bits)
{
	__u32 number = 0;
	int half;

#pragma unroll
	for (half = 32; half; half >>= 1) {
		if (bits >> half) {
			number += half;
			bits >>= half;
		}
		number = forget(number);
	}
	return number;
}

/* The first rule that the call meets, from 1; 0: none, or one that allows it. */
static __always_inline __u32 first_rule(const struct call *call)
{
	const struct ipttrace_guard_policy *policy = call->policy;
	__u32 local, comm, remote_port, local_port, uid, word;
	__u32 words = candidate_words(call);
	struct ipttrace_guard_bits containers;
	__u64 bits;

	containers = policy->any_container;
	if (policy->containers)
		find_containers(policy, (unsigned long)call->cgroup,
				&containers);
#pragma nounroll
	for (word = 0; word < IPTTRACE_GUARD_WORDS; word++) {
		if (!(words >> word & 1))
			continue;
		bits = candidates(call, word);
		if (!bits)
			continue;
		local = call->local_at & (IPTTRACE_GUARD_SPANS - 1);
		comm = call->comm_at & (IPTTRACE_GUARD_SPANS - 1);
		remote_port = call->remote_port_at & (IPTTRACE_GUARD_SPANS - 1);
		local_port = call->local_port_at & (IPTTRACE_GUARD_SPANS - 1);
		uid = call->uid_at & (IPTTRACE_GUARD_SPANS - 1);
		bits &= policy->remote_port.rules[remote_port].of[word];
		bits &= policy->local_port.rules[local_port].of[word];
		bits &= policy->local.rules[local].of[word];
		bits &= policy->uid.rules[uid].of[word];
		bits &= policy->comm.rules[comm].of[word];
		bits &= containers.of[word];
		if (!bits)
			continue;
		bits &= -bits;
		if (policy->allow.of[word] & bits)
			return 0;
		return forget(word * 64 + lowest_bit(bits) + 1);
	}
	return 0;
}

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
	call->sk = sk;
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

static __always_inline void local_end(struct call *call)
{
	const struct sock___guarded *sk = call->sk;

	set_value(&call->local, 0, 0);
	call->local_port = sk->__sk_common.skc_num;
	if (sk->__sk_common.skc_family == AF_INET)
		set_four(&call->local, sk->__sk_common.skc_rcv_saddr);
	else if (bpf_core_field_exists(sk->__sk_common.skc_v6_rcv_saddr))
		set_six(&call->local, &sk->__sk_common.skc_v6_rcv_saddr);
}

/* The process that calls, or else the one that made the socket. */
static __always_inline void find_process(struct call *call, const bool process)
{
	const struct task_struct *task = (void *)bpf_get_current_task();
	const struct sock___guarded *sk = call->sk;
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

static __always_inline void find_spans(struct call *call)
{
	const struct ipttrace_guard_policy *policy = call->policy;

	call->remote_port_at =
		span_of_number(&policy->remote_port, call->remote_port);
	MERGE();
	call->local_at = span_of_value(&policy->local, call->local.high,
				       call->local.low);
	MERGE();
	call->local_port_at =
		span_of_number(&policy->local_port, call->local_port);
	MERGE();
	call->uid_at = span_of_number(&policy->uid, call->uid);
	MERGE();
	call->comm_at =
		span_of_value(&policy->comm, call->comm.high, call->comm.low);
	MERGE();
}

static __always_inline void report(const struct call *call, __u32 rule,
				   const bool process)
{
	const struct kernfs_node *cgroup = call->cgroup;
	const struct sock___guarded *sk = call->sk;
	struct ipttrace_guard_event *event;
	__u64 ids;

	count(IPTTRACE_GUARD_DENIED);
	event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);
	if (!event) {
		count(IPTTRACE_GUARD_LOST);
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

/* The span of the remote address. */
static __always_inline __u32 remote_span(const struct call *call)
{
	const struct ipttrace_guard_policy *policy = call->policy;
	__u64 high = call->remote.high, low = call->remote.low;
	__u32 found = IPTTRACE_GUARD_SEVERAL;

	if (!high && low >> 32 == 0xffff)
		found = policy->four[low >> 16 & 0xffff];
	if (found != IPTTRACE_GUARD_SEVERAL)
		return found;
	return span_of_value(&policy->remote, high, low);
}

/* Whether some rule may be met, by the remote address alone: most calls end here. */
static __always_inline bool may_meet(struct call *call)
{
	__u64 found = 0;
	__u32 word;

	call->remote_at = remote_span(call);
	if (!candidate_words(call))
		return false;
#pragma nounroll
	for (word = 0; word < IPTTRACE_GUARD_WORDS; word++)
		found |= candidates(call, word);
	return found;
}

/* Decides a call that may meet a rule: 0 or -EACCES. */
static __always_inline int settle(struct call *call, const bool process)
{
	__u32 rule;

	MERGE();
	local_end(call);
	find_process(call, process);
	MERGE();
	find_spans(call);
	rule = first_rule(call);
	if (!rule)
		return 0;
	report(call, rule, process);
	return call->policy->dry ? 0 : -EACCES;
}

static __always_inline int decide(struct call *call, const bool process)
{
	return may_meet(call) ? settle(call, process) : 0;
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

/* `length`: of the address, as the process gave it. */
static __always_inline int to_address(const struct sock___guarded *sk,
				      const void *address, int length)
{
	struct any_address to = {};
	struct call call;

	if (!begin(&call, sk, IPTTRACE_GUARD_CONNECT) || !address || length < 8)
		return 0;
	bpf_probe_read_kernel(&to, 8, address);
	if (to.family == AF_INET6 && length >= 24)
		bpf_probe_read_kernel(&to, sizeof(to), address);
	if (to.family == AF_INET)
		set_four(&call.remote, to.four);
	else if (to.family == AF_INET6 && length >= 24)
		set_six(&call.remote, to.six);
	else
		return 0;
	call.remote_port = bpf_ntohs(to.port);
	return decide(&call, true);
}

SEC("lsm/socket_connect")
int BPF_PROG(ipttrace_guard_connect, struct socket___guarded *socket,
	     void *address, int length)
{
	return to_address(socket->sk, address, length);
}

SEC("lsm/socket_sendmsg")
int BPF_PROG(ipttrace_guard_send, struct socket___guarded *socket,
	     struct msghdr *message, int size)
{
	const void *address = message->msg_name;

	/* Most have none: the socket is connected. */
	if (!address)
		return 0;
	return to_address(socket->sk, address, message->msg_namelen);
}

SEC("lsm/socket_accept")
int BPF_PROG(ipttrace_guard_accept, struct socket___guarded *socket,
	     void *newer)
{
	struct call call;

	if (!begin(&call, socket->sk, IPTTRACE_GUARD_ACCEPT))
		return 0;
	return decide(&call, true);
}

SEC("lsm/inet_conn_request")
int BPF_PROG(ipttrace_guard_arrival, struct sock___guarded *sk, void *skb,
	     struct request_sock *request)
{
	struct call call;

	if (!begin(&call, sk, IPTTRACE_GUARD_ARRIVAL))
		return 0;
	remote_end(&call, &request->__req_common);
	return decide(&call, false);
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
	return decide(&call, true);
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
	return settle(&call, false);
}

char LICENSE[] SEC("license") = "GPL";
