// SPDX-License-Identifier: GPL-2.0-only
/*
 * Records the stages of sockets: from listen() and connect() through the handshake to the process
 * that accepts and reads, and how they end.  docs/handshake.md has the order of the stages.
 *
 * Each program is attached where few kernels differ; those whose function a kernel lacks are
 * left out by who loads them.  It is a long file, because each stage has a program.  None runs for a packet of an established connection, except one
 * for each time that a process reads.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "fill.h"
#include "ring.h"
#include "sockets.h"

/* The counters in `counters`, as the programs of this file use them. */
enum socket_counter {
	SOCKET_DUE,  /* records to be written */
	SOCKET_LOST, /* for which the ring had no room */
};

/* Set by who loads it: the one network namespace whose sockets are of interest; 0: all. */
const volatile __u32 only_netns;

/* SYNs that a listener is looking at, by the packet's address: IPTTRACE_SK_* and ANSWERED. */
#define ANSWERED 0x10000

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u32);
} syns SEC(".maps");

/* Sockets of TCP that were seen from their beginning, by address: whether they were read from. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u32);
} live SEC(".maps");

/* By the address of a packet, and of the socket that has sent it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct translation);
} translations SEC(".maps");

struct peer {
	__u64 sk;
	__u8 address[16];
	__u32 port;
	__u32 padding;
};

/* Peers from which a socket of UDP was read. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct peer);
	__type(value, __u32);
} peers SEC(".maps");

/* What a function has returned: it stands behind the arguments, whose number kernels differ in. */
static __always_inline __u64 returned(__u64 *ctx)
{
	__u64 value = 0;

	bpf_get_func_ret(ctx, &value);
	return value;
}

static __always_inline struct ipttrace_socket *begin(const struct net *net,
						     __u8 stage, __u8 protocol)
{
	__u32 netns = BPF_CORE_READ(net, ns.inum);
	struct ipttrace_socket *record;

	if (only_netns && netns != only_netns)
		return NULL;
	count(SOCKET_DUE, 1);
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
	__u16 family = BPF_CORE_READ(ends, skc_family);
	struct ipttrace_socket *record;

	if (family != AF_INET && family != AF_INET6)
		return NULL;
	record = begin(BPF_CORE_READ(ends, skc_net.net), stage, protocol);
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

	record = begin_at(&sk->__sk_common, stage,
			  BPF_CORE_READ(sk, sk_protocol));
	if (!record)
		return NULL;
	record->sk = (unsigned long)sk;
	/* One that is being closed has given up its port. */
	if (!record->local_port_be16)
		record->local_port_be16 = BPF_CORE_READ(inet, inet_sport);
	if (record->protocol == IPPROTO_TCP && is_mptcp(sk))
		record->flags |= IPTTRACE_SK_MPTCP;
	return record;
}

/* A stage of a handshake that a listener has to do with. */
static __always_inline void fill_listener(struct ipttrace_socket *record,
					  const struct sock___stage *listener)
{
	const struct inet_connection_sock *icsk = (const void *)listener;

	record->listener = (unsigned long)listener;
	record->owner = inode_of(listener);
	record->queue = BPF_CORE_READ(listener, sk_ack_backlog);
	record->queue_most = BPF_CORE_READ(listener, sk_max_ack_backlog);
	record->requests = BPF_CORE_READ(icsk, icsk_accept_queue.qlen.counter);
	record->flags |= IPTTRACE_SK_QUEUE;
}

static __always_inline bool is_queue_full(const struct sock___stage *listener)
{
	return BPF_CORE_READ(listener, sk_ack_backlog) >
	       BPF_CORE_READ(listener, sk_max_ack_backlog);
}

/* Of a packet that has come in and belongs to no socket yet. */
static __always_inline void syn(const struct sk_buff___stage *skb,
				const struct sock___stage *listener, __u8 stage,
				__u32 flags)
{
	__u64 key = (unsigned long)skb;
	struct ipttrace_socket *record;
	struct translation *found;
	const struct net *net;

	net = listener ? BPF_CORE_READ(listener, __sk_common.skc_net.net) :
			 BPF_CORE_READ(skb, dev, nd_net.net);
	record = begin(net, stage, IPPROTO_TCP);
	if (!record)
		return;
	fill_packet_ends(record, skb);
	record->flags = flags;
	if (listener)
		fill_listener(record, listener);
	found = bpf_map_lookup_elem(&translations, &key);
	if (found) {
		__builtin_memcpy(record->orig_dst, found->orig_dst, 16);
		record->orig_dport_be16 = found->orig_dport;
		record->flags |= IPTTRACE_SK_ORIGINAL;
	}
	submit(record);
}

SEC("fexit/inet_listen")
int ipttrace_listen(__u64 *ctx)
{
	const struct socket___stage *socket = (void *)ctx[0];
	const struct sock___stage *sk = BPF_CORE_READ(socket, sk);
	struct ipttrace_socket *record;

	if ((int)returned(ctx) || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	record = begin_sk(sk, IPTTRACE_LISTENING);
	if (!record)
		return 0;
	fill_listener(record, sk);
	fill_process(record);
	submit(record);
	return 0;
}

SEC("fentry/tcp_connect")
int ipttrace_connect(__u64 *ctx)
{
	const struct sock___stage *sk = (void *)ctx[0];
	__u64 key = (unsigned long)sk;
	struct ipttrace_socket *record;
	__u32 unread = 0;

	bpf_map_update_elem(&live, &key, &unread, BPF_ANY);
	bpf_map_delete_elem(&translations, &key);
	record = begin_sk(sk, IPTTRACE_CONNECTING);
	if (!record)
		return 0;
	fill_process(record);
	submit(record);
	return 0;
}

SEC("tp_btf/tcp_retransmit_skb")
int ipttrace_retransmit(__u64 *ctx)
{
	const struct sock___stage *sk = (void *)ctx[0];
	struct ipttrace_socket *record;

	if (BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_SYN_SENT)
		return 0;
	record = begin_sk(sk, IPTTRACE_CONNECTING);
	if (!record)
		return 0;
	record->flags |= IPTTRACE_SK_AGAIN;
	submit(record);
	return 0;
}

SEC("fentry/tcp_finish_connect")
int ipttrace_finish(__u64 *ctx)
{
	struct ipttrace_socket *record;
	struct translation *found;
	__u64 key = ctx[0];

	record = begin_sk((void *)key, IPTTRACE_CONNECTED);
	if (!record)
		return 0;
	found = bpf_map_lookup_elem(&translations, &key);
	if (found) {
		__builtin_memcpy(record->reply_src, found->reply_src, 16);
		record->reply_sport_be16 = found->reply_sport;
		record->flags |= IPTTRACE_SK_TRANSLATED;
	}
	submit(record);
	return 0;
}

SEC("fentry/tcp_conn_request")
int ipttrace_syn(__u64 *ctx)
{
	const struct sock___stage *listener = (void *)ctx[2];
	__u64 skb = ctx[3];
	__u32 flags = 0;

	if (is_queue_full(listener))
		flags |= IPTTRACE_SK_ACCEPT_FULL;
	if (is_syn_queue_full(listener))
		flags |= IPTTRACE_SK_SYN_FULL;
	bpf_map_update_elem(&syns, &skb, &flags, BPF_ANY);
	syn((void *)skb, listener, IPTTRACE_SYN_TAKEN, flags);
	return 0;
}

SEC("fexit/security_inet_conn_request")
int ipttrace_denied(__u64 *ctx)
{
	__u64 skb = ctx[1];
	__u32 *flags;

	if (!(int)returned(ctx))
		return 0;
	flags = bpf_map_lookup_elem(&syns, &skb);
	if (flags)
		*flags |= IPTTRACE_SK_DENIED;
	return 0;
}

SEC("fexit/tcp_conn_request")
int ipttrace_syn_end(__u64 *ctx)
{
	__u64 skb = ctx[3];
	__u32 *found = bpf_map_lookup_elem(&syns, &skb), flags;

	if (!found)
		return 0;
	flags = *found;
	bpf_map_delete_elem(&syns, &skb);
	if (!(flags & ANSWERED))
		syn((void *)skb, (void *)ctx[2], IPTTRACE_SYN_DROPPED, flags);
	bpf_map_delete_elem(&translations, &skb);
	return 0;
}

SEC("fexit/tcp_make_synack")
int ipttrace_synack(__u64 *ctx)
{
	const struct request_sock___stage *request = (void *)ctx[2];
	__u64 skb = ctx[5];
	__u32 *flags, type = ctx[4];
	struct ipttrace_socket *record;

	if (!returned(ctx))
		return 0;
	if (skb) {
		flags = bpf_map_lookup_elem(&syns, &skb);
		if (flags)
			*flags |= ANSWERED;
	}
	record = begin_at(&request->__req_common, IPTTRACE_SYN_ACK_SENT,
			  IPPROTO_TCP);
	if (!record)
		return 0;
	record->request = (unsigned long)request;
	if (!skb)
		record->flags |= IPTTRACE_SK_AGAIN;
	if (type == TCP_SYNACK_COOKIE)
		record->flags |= IPTTRACE_SK_COOKIE;
	if (type == TCP_SYNACK_FASTOPEN)
		record->flags |= IPTTRACE_SK_FASTOPEN;
	else
		fill_listener(record, (void *)ctx[0]);
	submit(record);
	return 0;
}

static __always_inline int last_ack(__u64 *ctx)
{
	const struct sock___stage *listener = (void *)ctx[0];
	const struct sk_buff___stage *skb = (void *)ctx[1];

	if (returned(ctx) || !is_queue_full(listener) ||
	    tcp_flags(skb) & TCP_FLAG_SYN)
		return 0;
	syn(skb, listener, IPTTRACE_ACK_DROPPED, IPTTRACE_SK_ACCEPT_FULL);
	return 0;
}

SEC("fexit/tcp_check_req")
int ipttrace_last_ack(__u64 *ctx)
{
	return last_ack(ctx);
}

SEC("fexit/tcp_get_cookie_sock")
int ipttrace_last_ack_cookie(__u64 *ctx)
{
	return last_ack(ctx);
}

static __always_inline int established(const struct sock___stage *listener,
				       const struct sock___stage *child,
				       __u64 request)
{
	__u64 key = (unsigned long)child;
	struct ipttrace_socket *record;
	__u32 unread = 0;

	/* One of these functions calls the other, unless the compiler has put it inside. */
	if (bpf_map_update_elem(&live, &key, &unread, BPF_NOEXIST))
		return 0;
	record = begin_sk(child, IPTTRACE_ESTABLISHED);
	if (!record)
		return 0;
	record->request = request;
	fill_listener(record, listener);
	submit(record);
	return 0;
}

SEC("fexit/inet_csk_complete_hashdance")
int ipttrace_child(__u64 *ctx)
{
	if (!returned(ctx))
		return 0;
	return established((void *)ctx[0], (void *)ctx[1], ctx[2]);
}

/* Of a SYN-ACK with a cookie. */
SEC("fexit/inet_csk_reqsk_queue_add")
int ipttrace_cookie_child(__u64 *ctx)
{
	if (!returned(ctx))
		return 0;
	return established((void *)ctx[0], (void *)ctx[2], ctx[1]);
}

/*
 * Both address translations of a new connection's first packet are done here; later, conntrack's
 * entry is taken from it.  The packet's address leads to the listener, that of its socket to the
 * client.
 */
SEC("fexit/__nf_conntrack_confirm")
int ipttrace_confirm(__u64 *ctx)
{
	const struct sk_buff___stage *skb = (void *)ctx[0];
	__u64 key = (unsigned long)skb, sk;
	struct translation translation = {};

	if (!fill_translation(&translation, skb))
		return 0;
	bpf_map_update_elem(&translations, &key, &translation, BPF_ANY);
	sk = (unsigned long)BPF_CORE_READ(skb, sk);
	if (sk)
		bpf_map_update_elem(&translations, &sk, &translation, BPF_ANY);
	return 0;
}

SEC("fexit/inet_csk_accept")
int ipttrace_accept(__u64 *ctx)
{
	struct ipttrace_socket *record;
	__u64 child = returned(ctx);

	if (!child)
		return 0;
	record = begin_sk((void *)child, IPTTRACE_ACCEPTED);
	if (!record)
		return 0;
	fill_listener(record, (void *)ctx[0]);
	fill_process(record);
	submit(record);
	return 0;
}

SEC("tp_btf/tcp_rcv_space_adjust")
int ipttrace_read(__u64 *ctx)
{
	__u64 sk = ctx[0];
	__u32 *read = bpf_map_lookup_elem(&live, &sk);
	struct ipttrace_socket *record;

	if (!read || *read)
		return 0;
	*read = 1;
	record = begin_sk((void *)sk, IPTTRACE_FIRST_READ);
	if (!record)
		return 0;
	fill_process(record);
	submit(record);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int ipttrace_state(__u64 *ctx)
{
	const struct sock___stage *sk = (void *)ctx[0];
	int before = ctx[1], now = ctx[2], error;
	__u64 key = (unsigned long)sk;
	struct ipttrace_socket *record;
	__u8 stage = IPTTRACE_CLOSED;

	if (now != TCP_CLOSE || before == TCP_CLOSE ||
	    BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	bpf_map_delete_elem(&live, &key);
	error = BPF_CORE_READ(sk, sk_err);
	if (before == TCP_SYN_SENT && error)
		stage = IPTTRACE_REFUSED;
	record = begin_sk(sk, stage);
	if (!record)
		return 0;
	record->error = error;
	if (before == TCP_LISTEN)
		record->flags |= IPTTRACE_SK_LISTENER;
	submit(record);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int ipttrace_reset(__u64 *ctx)
{
	const struct sock___stage *sk = (void *)ctx[0];
	struct ipttrace_socket *record;

	if (BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_SYN_SENT)
		return 0; /* refused */
	record = begin_sk(sk, IPTTRACE_RESET);
	if (!record)
		return 0;
	record->owner = inode_of(sk);
	submit(record);
	return 0;
}

static __always_inline int sent_reset(const struct sock___stage *sk)
{
	struct ipttrace_socket *record;
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	/* Others are no whole sockets, or not the one that is reset. */
	if (state == TCP_TIME_WAIT || state == TCP_NEW_SYN_RECV ||
	    state == TCP_LISTEN)
		return 0;
	record = begin_sk(sk, IPTTRACE_RESET);
	if (!record)
		return 0;
	record->flags |= IPTTRACE_SK_SENT;
	record->owner = inode_of(sk);
	submit(record);
	return 0;
}

static __always_inline int answered_by_reset(const struct sock___stage *sk,
					     const struct sk_buff___stage *skb)
{
	if (sk)
		return sent_reset(sk);
	if (tcp_flags(skb) == TCP_FLAG_SYN)
		syn(skb, NULL, IPTTRACE_REFUSED, IPTTRACE_SK_SENT);
	return 0;
}

SEC("fentry/tcp_v4_send_reset")
int ipttrace_send_reset(__u64 *ctx)
{
	return answered_by_reset((void *)ctx[0], (void *)ctx[1]);
}

SEC("fentry/tcp_v6_send_reset")
int ipttrace_send_reset6(__u64 *ctx)
{
	return answered_by_reset((void *)ctx[0], (void *)ctx[1]);
}

SEC("fentry/tcp_send_active_reset")
int ipttrace_active_reset(__u64 *ctx)
{
	return sent_reset((void *)ctx[0]);
}

SEC("fentry/inet_csk_reqsk_queue_drop_and_put")
int ipttrace_abandoned(__u64 *ctx)
{
	const struct request_sock___stage *request = (void *)ctx[1];
	struct ipttrace_socket *record;

	record = begin_at(&request->__req_common, IPTTRACE_ABANDONED,
			  IPPROTO_TCP);
	if (!record)
		return 0;
	record->request = (unsigned long)request;
	fill_listener(record, (void *)ctx[0]);
	submit(record);
	return 0;
}

static __always_inline int udp_stage(const struct sock___stage *sk, __u8 stage)
{
	struct ipttrace_socket *record;

	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_UDP)
		return 0;
	record = begin_sk(sk, stage);
	if (!record)
		return 0;
	fill_process(record);
	submit(record);
	return 0;
}

SEC("fexit/udp_lib_get_port")
int ipttrace_udp_bound(__u64 *ctx)
{
	return (int)returned(ctx) ? 0 :
				    udp_stage((void *)ctx[0], IPTTRACE_BOUND);
}

SEC("fexit/__ip4_datagram_connect")
int ipttrace_udp_connect(__u64 *ctx)
{
	return (int)returned(ctx) ?
		       0 :
		       udp_stage((void *)ctx[0], IPTTRACE_CONNECTED);
}

SEC("fexit/__ip6_datagram_connect")
int ipttrace_udp_connect6(__u64 *ctx)
{
	return (int)returned(ctx) ?
		       0 :
		       udp_stage((void *)ctx[0], IPTTRACE_CONNECTED);
}

SEC("fentry/skb_consume_udp")
int ipttrace_udp_read(__u64 *ctx)
{
	const struct sk_buff___stage *skb = (void *)ctx[1];
	const struct sock___stage *sk = (void *)ctx[0];
	struct peer peer = { .sk = (unsigned long)sk };
	struct ipttrace_socket *record;
	__u32 *known, one = 1;

	peer.port = fill_source(peer.address, skb);
	known = bpf_map_lookup_elem(&peers, &peer);
	if (known)
		return 0;
	bpf_map_update_elem(&peers, &peer, &one, BPF_ANY);
	record = begin_sk(sk, IPTTRACE_FIRST_READ);
	if (!record)
		return 0;
	fill_packet_ends(record, skb);
	fill_process(record);
	submit(record);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
