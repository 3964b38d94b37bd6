/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Fills in what the programs of bpf/sockets.bpf.c report of sockets, requests, packets and
 * processes.
 */
#ifndef IPTTRACE_SOCKETS_H
#define IPTTRACE_SOCKETS_H

#include "sock.h"

/* The inode by which processes hold the socket, 0: none does as yet, or any more. */
static __always_inline __u64 inode_of(const struct sock___stage *sk)
{
	const struct socket___stage *socket = sk->sk_socket;

	return socket && socket->file ? socket->file->f_inode->i_ino : 0;
}

static __always_inline bool is_mptcp(const struct sock___stage *sk)
{
	const struct tcp_sock *tcp;

	if (!bpf_core_field_exists(struct tcp_sock, is_mptcp))
		return false;
	tcp = bpf_skc_to_tcp_sock((void *)sk);
	return tcp && tcp->is_mptcp;
}

static __always_inline __u32 requests_of(const struct sock___stage *listener)
{
	const struct tcp_sock *tcp = bpf_skc_to_tcp_sock((void *)listener);

	return tcp ? tcp->inet_conn.icsk_accept_queue.qlen.counter : 0;
}

/* A socket of IPv6 may have ends of IPv4. */
static __always_inline bool is_mapped(const __u8 *address)
{
	const __u32 *words = (const void *)address;

	return !words[0] && !words[1] && words[2] == bpf_htonl(0xffff);
}

static __always_inline void fill_ends(struct ipttrace_socket *record,
				      const struct sock_common___stage *ends,
				      __u16 family)
{
	record->remote_port_be16 = ends->skc_dport;
	record->local_port_be16 = bpf_htons(ends->skc_num);
	record->family = NFPROTO_IPV6;
	if (family == AF_INET6 && bpf_core_field_exists(ends->skc_v6_daddr)) {
		bpf_core_read(record->remote, 16, &ends->skc_v6_daddr);
		bpf_core_read(record->local, 16, &ends->skc_v6_rcv_saddr);
		if (!is_mapped(record->remote) && !is_mapped(record->local))
			return;
		__builtin_memset(record->remote, 0, 16);
		__builtin_memset(record->local, 0, 16);
	}
	record->family = NFPROTO_IPV4;
	*(__be32 *)record->remote = ends->skc_daddr;
	*(__be32 *)record->local = ends->skc_rcv_saddr;
}

/* Whom a process calls, of its struct sockaddr. */
static __always_inline void fill_called(struct ipttrace_socket *record,
					const void *address)
{
	struct {
		__u16 family, port;
		__be32 four; /* IPv6: of its flow */
		__u8 six[16];
	} called = {};

	bpf_probe_read_kernel(&called, sizeof(called), address);
	if (called.family == AF_INET) {
		record->family = NFPROTO_IPV4;
		*(__be32 *)record->remote = called.four;
	} else if (called.family == AF_INET6 && is_mapped(called.six)) {
		record->family = NFPROTO_IPV4;
		__builtin_memcpy(record->remote, called.six + 12, 4);
	} else if (called.family == AF_INET6) {
		__builtin_memcpy(record->remote, called.six, 16);
	} else {
		return;
	}
	record->remote_port_be16 = called.port;
}

static __always_inline bool is_ipv4(const struct sk_buff___stage *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP);
}

/* Those of a packet that has come in. */
static __always_inline void fill_packet_ends(struct ipttrace_socket *record,
					     const struct sk_buff___stage *skb)
{
	__u32 at = skb->network_header, transport = skb->transport_header;
	unsigned char *network = skb->head + at;
	struct {
		__be32 from, to;
		__u16 ports[2];
	} four = {};

	__builtin_memset(record->remote, 0, 16);
	__builtin_memset(record->local, 0, 16);
	if (is_ipv4(skb)) {
		record->family = NFPROTO_IPV4;
		/* The ports are behind the addresses, unless there are options. */
		bpf_probe_read_kernel(&four, sizeof(four), network + 12);
		*(__be32 *)record->remote = four.from;
		*(__be32 *)record->local = four.to;
	} else {
		record->family = NFPROTO_IPV6;
		bpf_probe_read_kernel(record->remote, 16, network + 8);
		bpf_probe_read_kernel(record->local, 16, network + 24);
	}
	if (!is_ipv4(skb) || transport != at + 20)
		bpf_probe_read_kernel(four.ports, sizeof(four.ports),
				      skb->head + transport);
	record->remote_port_be16 = four.ports[0];
	record->local_port_be16 = four.ports[1];
}

#define MIX 0x9e3779b97f4a7c15ULL /* odd, as far from a pattern as can be */

/* A number for the socket, itself a number, and the peer that has sent it this packet. */
static __always_inline __u64 peer_of(__u64 sk,
				     const struct sk_buff___stage *skb)
{
	unsigned char *network = skb->head + skb->network_header;
	__u64 number = sk * MIX;
	__u64 address[2] = {};
	__be32 words[3] = {};
	__u16 port = 0;

	if (is_ipv4(skb) && skb->transport_header == skb->network_header + 20) {
		/* From the source address to the source port. */
		bpf_probe_read_kernel(words, sizeof(words), network + 12);
		address[0] = words[0];
		port = *(__u16 *)&words[2];
	} else {
		bpf_probe_read_kernel(address, is_ipv4(skb) ? 4 : 16,
				      network + (is_ipv4(skb) ? 12 : 8));
		bpf_probe_read_kernel(&port, sizeof(port),
				      skb->head + skb->transport_header);
	}
	number = (number ^ number >> 29 ^ address[0]) * MIX;
	number = (number ^ number >> 29 ^ address[1]) * MIX;
	return (number ^ number >> 29 ^ port) * MIX;
}

static __always_inline __u8 tcp_flags(const struct sk_buff___stage *skb)
{
	__u8 flags = 0;

	bpf_probe_read_kernel(&flags, 1,
			      skb->head + skb->transport_header + 13);
	return flags & TCP_FLAGS;
}

/* Does it acknowledge this sequence number of a SYN, and want no other connection, or none? */
static __always_inline bool acknowledges(const struct sk_buff___stage *skb,
					 __u32 number)
{
	__be32 acknowledged = 0;

	bpf_probe_read_kernel(&acknowledged, sizeof(acknowledged),
			      skb->head + skb->transport_header + 8);
	return bpf_ntohl(acknowledged) == number + 1 &&
	       (tcp_flags(skb) &
		(TCP_FLAG_ACK | TCP_FLAG_SYN | TCP_FLAG_RST)) == TCP_FLAG_ACK;
}

/* Of a new connection: whom its client has called, and between whom the answer goes. */
struct translation {
	__u8 orig_dst[16];
	__u8 reply_src[16];
	__u8 reply_dst[16];
	__u16 orig_dport, reply_sport, reply_dport;
	__u16 padding;
};

/* Returns whether conntrack has an entry of the packet. */
static __always_inline bool fill_translation(struct translation *translation,
					     const struct sk_buff___stage *skb)
{
	const struct nf_conn *ct;
	struct tuple tuple;

	if (!bpf_core_type_exists(struct nf_conn))
		return false;
	ct = (void *)(skb->_nfct & ~NFCT_INFOMASK);
	if (!ct)
		return false;
	bpf_core_read(&tuple, sizeof(tuple), &ct->tuplehash[0].tuple);
	__builtin_memcpy(translation->orig_dst, tuple.dst, 16);
	translation->orig_dport = tuple.dport;
	bpf_core_read(&tuple, sizeof(tuple), &ct->tuplehash[1].tuple);
	__builtin_memcpy(translation->reply_src, tuple.src, 16);
	translation->reply_sport = tuple.sport;
	__builtin_memcpy(translation->reply_dst, tuple.dst, 16);
	translation->reply_dport = tuple.dport;
	return true;
}

static __always_inline bool is_same(const __u8 *one, const __u8 *other)
{
	const __u64 *a = (const void *)one, *b = (const void *)other;

	return a[0] == b[0] && a[1] == b[1];
}

/*
 * Is it of the packet with these ends, and not of one that was at the same address before?  In a
 * namespace without conntrack nothing replaces what is kept by a packet's address.
 */
static __always_inline bool is_of(const struct translation *translation,
				  const struct ipttrace_socket *record)
{
	return translation->reply_sport == record->local_port_be16 &&
	       translation->reply_dport == record->remote_port_be16 &&
	       is_same(translation->reply_src, record->local) &&
	       is_same(translation->reply_dst, record->remote);
}

static __always_inline __u32 number_of(const struct pid *pid, __u32 level)
{
	__u32 number = 0;

	bpf_probe_read_kernel(
		&number, sizeof(number),
		(const char *)pid + bpf_core_field_offset(struct pid, numbers) +
			level * bpf_core_type_size(struct upid));
	return number;
}

/* The process that calls; in a softirq it would be the one that was interrupted. */
static __always_inline void fill_process(struct ipttrace_socket *record)
{
	const struct task_struct *task = (void *)bpf_get_current_task_btf();
	__u64 ids = bpf_get_current_pid_tgid();
	const struct pid *process, *thread;
	__u32 level, deepest;

	if (in_softirq())
		return;
	record->flags |= IPTTRACE_SK_PROCESS;
	record->pid = ids >> 32;
	record->tid = ids;
	record->uid = task->cred->uid.val;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	record->cgroup = task->cgroups->dfl_cgrp->kn->id;
	deepest = task->thread_pid->level;
	record->levels = deepest < 0xff ? deepest + 1 : 0xff;
	record->pids[0] = record->pid;
	record->tids[0] = record->tid;
	if (!deepest)
		return;
	/* Not as pointers that the verifier knows, which must not be added to. */
	process = BPF_CORE_READ(task, group_leader, thread_pid);
	thread = BPF_CORE_READ(task, thread_pid);
	for (level = 1; level < IPTTRACE_PID_LEVELS; level++) {
		if (level > deepest)
			break;
		record->pids[level] = number_of(process, level);
		record->tids[level] = number_of(thread, level);
	}
	/* Of more namespaces than there is room for, the innermost one is the last. */
	if (deepest >= IPTTRACE_PID_LEVELS) {
		record->pids[IPTTRACE_PID_LEVELS - 1] =
			number_of(process, deepest);
		record->tids[IPTTRACE_PID_LEVELS - 1] =
			number_of(thread, deepest);
	}
}

#endif
