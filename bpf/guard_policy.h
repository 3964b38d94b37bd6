/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which rule of the guard a call meets: bpf/guard.h as the programs look it up.  Where the values
 * of a call come from is not known here.
 */
#ifndef IPTTRACE_GUARD_POLICY_H
#define IPTTRACE_GUARD_POLICY_H

#include "guard.h"
#include "sock.h"

#define SPAN_BITS    11
#define MOST_CGROUPS 16 /* above each other */

_Static_assert(1 << SPAN_BITS == IPTTRACE_GUARD_SPANS, "spans");

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

/*
 * A call, and in which spans its values are.  On the stack: nothing keeps these programs from
 * running again on a CPU, where the kernel is preemptible, before they have ended.
 */
struct call {
	const struct ipttrace_guard_policy *policy;
	const struct kernfs_node *cgroup;
	struct ipttrace_guard_value remote, local, comm;
	__u32 uid;
	__u16 remote_port, local_port;
	__u8 kind, protocol;
	__u32 protocol_at;		    /* enum ipttrace_guard_protocol */
	__u32 remote_at, local_at, comm_at; /* spans */
	__u32 remote_port_at, local_port_at, uid_at;
};

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

#endif
