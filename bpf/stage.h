/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The record of a stage of a socket: begun with the ends that it has, and submitted.
 */
#ifndef IPTTRACE_STAGE_H
#define IPTTRACE_STAGE_H

#include "ring.h"
#include "sockets.h"

/*
 * The counters in `counters`, as the programs of sockets use them.  What has been written the
 * ring counts itself.
 */
enum socket_counter {
	SOCKET_LOST, /* records for which the ring had no room */
};

/* Set by who loads it: the one network namespace whose sockets are of interest; 0: all. */
const volatile __u32 only_netns;

static __always_inline struct ipttrace_socket *begin(const struct net *net,
						     __u8 stage, __u8 protocol)
{
	__u32 netns = net->ns.inum;
	struct ipttrace_socket *record;

	if (only_netns && netns != only_netns)
		return NULL;
	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record) {
		count(SOCKET_LOST, 1);
		return NULL;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->time = bpf_ktime_get_ns();
	record->netns = netns;
	record->stage = stage;
	record->protocol = protocol;
	record->cpu = bpf_get_smp_processor_id();
	return record;
}

static __always_inline void submit(struct ipttrace_socket *record)
{
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

/* A stage of a socket or a request, which both begin with this; NULL if it is not recorded. */
static __always_inline struct ipttrace_socket *
begin_at(const struct sock_common___stage *ends, __u8 stage, __u8 protocol)
{
	__u16 family = ends->skc_family;
	struct ipttrace_socket *record;

	if (family != AF_INET && family != AF_INET6)
		return NULL;
	record = begin(ends->skc_net.net, stage, protocol);
	if (!record)
		return NULL;
	fill_ends(record, ends, family);
	return record;
}

static __always_inline struct ipttrace_socket *
begin_sk(const struct sock___stage *sk, __u8 stage)
{
	const struct inet_sock *inet = (const void *)sk;
	struct ipttrace_socket *record;

	record = begin_at(&sk->__sk_common, stage, sk->sk_protocol);
	if (!record)
		return NULL;
	record->sk = (unsigned long)sk;
	/* One that is being closed has given up its port. */
	if (!record->local_port_be16)
		record->local_port_be16 = BPF_CORE_READ(inet, inet_sport);
	if ((stage == IPTTRACE_CONNECTED || stage == IPTTRACE_ESTABLISHED) &&
	    record->protocol == IPPROTO_TCP && is_mptcp(sk))
		record->flags |= IPTTRACE_SK_MPTCP;
	return record;
}

/* A stage of a handshake that a listener has to do with. */
static __always_inline void fill_listener(struct ipttrace_socket *record,
					  const struct sock___stage *listener)
{
	record->listener = (unsigned long)listener;
	record->queue = listener->sk_ack_backlog;
	record->queue_most = listener->sk_max_ack_backlog;
	record->flags |= IPTTRACE_SK_QUEUE;
}

static __always_inline bool is_queue_full(const struct sock___stage *listener)
{
	return listener->sk_ack_backlog > listener->sk_max_ack_backlog;
}

#endif
