// SPDX-License-Identifier: GPL-2.0-only
/*
 * Records the stages of sockets: from listen() and connect() through the handshake to the process
 * that accepts and reads, and how they end.  docs/handshake.md has the order of the stages.
 *
 * Each program is attached where few kernels differ; those whose function a kernel lacks are
 * left out by who loads them.  It is a long file, because each stage has a program.  None runs
 * for a packet of an established connection, except one for each time that a process reads.
 */

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "fill.h"
#include "stage.h"

/*
 * An argument, read again: the verifier forgets that one is a pointer that was on the stack as the
 * key of a map.
 */
#define ARGUMENT(number) ((void *)((volatile __u64 *)ctx)[number])

/* An argument that is a bool: of the register, only one byte is defined. */
#define FLAG(number) ((__u8)ctx[number])

/* The SYN that a listener is looking at on this CPU: IPTTRACE_SK_* and ANSWERED. */
#define ANSWERED 0x10000

struct current_syn {
	__u64 skb; /* 0: none */
	__u32 flags;
	__u32 padding;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct current_syn);
} syns SEC(".maps");

static __always_inline struct current_syn *current_syn(const void *skb)
{
	struct current_syn *found;
	__u32 zero = 0;

	found = bpf_map_lookup_elem(&syns, &zero);
	return found && found->skb == (unsigned long)skb ? found : NULL;
}

/*
 * Sockets of TCP that were seen from their beginning and not been read from, by a part of their
 * address: where another one is, that is forgotten.  A hash would cost as much as all else.
 */
#define UNREAD 65536

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, UNREAD);
	__type(key, __u32);
	__type(value, __u64);
} unread SEC(".maps");

static __always_inline __u64 *place_of(const void *sk)
{
	__u32 number;

	/* The lower half: the verifier allows no arithmetic with a pointer. */
	asm volatile("%0 = %1" : "=w"(number) : "w"((__u32)(__u64)sk));
	number = number * 0x9e3779b1U >> 16;
	return bpf_map_lookup_elem(&unread, &number);
}

/* By the address of a packet, and of the socket that has sent it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct translation);
} translations SEC(".maps");

static volatile __u32 any_translation; /* whether there has been one */

/* Peers from which a socket of UDP was read, by peer_of(). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u32);
} peers SEC(".maps");

/* The one that was met last on this CPU, and its socket. */
struct last_peer {
	__u64 peer;
	__u64 sk;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct last_peer);
} last_peer SEC(".maps");

/* What a function has returned: it stands behind the arguments, whose number kernels differ in. */
static __always_inline __u64 returned(__u64 *ctx)
{
	__u64 value = 0;

	bpf_get_func_ret(ctx, &value);
	return value;
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

	if (listener)
		net = listener->__sk_common.skc_net.net;
	else
		net = skb->dev->nd_net.net;
	record = begin(net, stage, IPPROTO_TCP);
	if (!record)
		return;
	fill_packet_ends(record, skb);
	record->flags = flags;
	if (listener) {
		fill_listener(record, listener);
		/* Later stages of the connection have the same. */
		record->owner = inode_of(listener);
		record->requests = requests_of(listener);
		record->flags |= IPTTRACE_SK_REQUESTS;
	}
	found = any_translation ? bpf_map_lookup_elem(&translations, &key) :
				  NULL;
	if (found && is_of(found, record)) {
		__builtin_memcpy(record->orig_dst, found->orig_dst, 16);
		record->orig_dport_be16 = found->orig_dport;
		record->flags |= IPTTRACE_SK_ORIGINAL;
	}
	submit(record);
}

/* What a security module, such as ipttrace guard, has answered to a process. */
static __always_inline int denied(const struct socket___stage *socket,
				  const void *address, int answer)
{
	struct ipttrace_socket *record;

	if (!answer)
		return 0;
	record = begin_sk(socket->sk, IPTTRACE_DENIED);
	if (!record)
		return 0;
	if (address)
		fill_called(record, address);
	record->flags |= IPTTRACE_SK_DENIED;
	record->error = -answer;
	fill_process(record);
	submit(record);
	return 0;
}

SEC("fexit/security_socket_connect")
int ipttrace_denied_connect(__u64 *ctx)
{
	return denied((void *)ctx[0], (void *)ctx[1], returned(ctx));
}

SEC("fexit/security_socket_accept")
int ipttrace_denied_accept(__u64 *ctx)
{
	return denied((void *)ctx[0], NULL, returned(ctx));
}

SEC("fexit/inet_listen")
int ipttrace_listen(__u64 *ctx)
{
	const struct socket___stage *socket = (void *)ctx[0];
	const struct sock___stage *sk = socket->sk;
	struct ipttrace_socket *record;

	if ((int)returned(ctx) || sk->sk_protocol != IPPROTO_TCP)
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
	__u64 *place = place_of(sk), key;
	struct ipttrace_socket *record;

	if (place)
		*place = (unsigned long)sk;
	if (any_translation) {
		key = (unsigned long)sk;
		bpf_map_delete_elem(&translations, &key);
	}
	record = begin_sk(ARGUMENT(0), IPTTRACE_CONNECTING);
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

	if (sk->__sk_common.skc_state != TCP_SYN_SENT)
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

	record = begin_sk(ARGUMENT(0), IPTTRACE_CONNECTED);
	if (!record)
		return 0;
	found = any_translation ? bpf_map_lookup_elem(&translations, &key) :
				  NULL;
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
	struct current_syn *now;
	__u32 flags = 0, zero = 0;

	if (is_queue_full(listener))
		flags |= IPTTRACE_SK_ACCEPT_FULL;
	if (requests_of(listener) >= listener->sk_max_ack_backlog)
		flags |= IPTTRACE_SK_SYN_FULL;
	now = bpf_map_lookup_elem(&syns, &zero);
	if (!now)
		return 0;
	now->skb = ctx[3];
	now->flags = flags;
	syn((void *)ctx[3], listener, IPTTRACE_SYN_TAKEN, flags);
	return 0;
}

/* Attached by who loads it, once a SYN was dropped for no reason that is known. */
SEC("fexit/security_inet_conn_request")
int ipttrace_denied(__u64 *ctx)
{
	struct current_syn *now = current_syn((void *)ctx[1]);

	if (now && (int)returned(ctx))
		now->flags |= IPTTRACE_SK_DENIED;
	return 0;
}

SEC("fexit/tcp_conn_request")
int ipttrace_syn_end(__u64 *ctx)
{
	struct current_syn *now = current_syn((void *)ctx[3]);
	__u64 key = ctx[3];

	if (!now)
		return 0;
	now->skb = 0;
	if (!(now->flags & ANSWERED))
		syn(ARGUMENT(3), ARGUMENT(2), IPTTRACE_SYN_DROPPED, now->flags);
	if (any_translation)
		bpf_map_delete_elem(&translations, &key);
	return 0;
}

/* At its beginning, as at the end it would cost twice as much: if memory is short, none is sent. */
SEC("fentry/tcp_make_synack")
int ipttrace_synack(__u64 *ctx)
{
	const struct request_sock___stage *request = (void *)ctx[2];
	__u64 skb = ctx[5];
	__u32 type = ctx[4];
	struct ipttrace_socket *record;
	struct current_syn *now;

	now = skb ? current_syn((void *)skb) : NULL;
	if (now)
		now->flags |= ANSWERED;
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

/* The client's last ACK is right, and a child would be made of it. */
static __always_inline int last_ack(const struct sock___stage *listener,
				    const struct sk_buff___stage *skb)
{
	syn(skb, listener, IPTTRACE_ACK_DROPPED, IPTTRACE_SK_ACCEPT_FULL);
	return 0;
}

/* At its beginning: its end would cost each connection four times as much. */
SEC("fentry/tcp_check_req")
int ipttrace_last_ack(__u64 *ctx)
{
	const struct sock___stage *listener = (void *)ctx[0];
	const struct tcp_request_sock *request = (void *)ctx[2];
	const struct sk_buff___stage *skb = (void *)ctx[1];
	/* Then the child has been in the queue since the SYN. */
	bool fastopen = FLAG(3);

	if (!is_queue_full(listener) || fastopen ||
	    !acknowledges(skb, BPF_CORE_READ(request, snt_isn)))
		return 0;
	return last_ack(listener, skb);
}

SEC("fentry/tcp_get_cookie_sock")
int ipttrace_last_ack_cookie(__u64 *ctx)
{
	const struct sock___stage *listener = (void *)ctx[0];

	return is_queue_full(listener) ? last_ack(listener, (void *)ctx[1]) : 0;
}

static __always_inline int established(const struct sock___stage *listener,
				       const struct sock___stage *child,
				       __u64 request)
{
	__u64 *place = place_of(child);
	struct ipttrace_socket *record;

	/* A listener that has gone away puts the child away as well. */
	if (!place || listener->__sk_common.skc_state != TCP_LISTEN)
		return 0;
	/* One of these functions calls the other, unless the compiler has put it inside. */
	if (*place == (unsigned long)child)
		return 0;
	*place = (unsigned long)child;
	record = begin_sk(child, IPTTRACE_ESTABLISHED);
	if (!record)
		return 0;
	record->request = request;
	fill_listener(record, listener);
	record->queue++; /* in which the child will be */
	submit(record);
	return 0;
}

SEC("fentry/inet_csk_complete_hashdance")
int ipttrace_child(__u64 *ctx)
{
	if (!FLAG(3)) /* another CPU has made the child */
		return 0;
	return established((void *)ctx[0], (void *)ctx[1], ctx[2]);
}

/* Of a SYN-ACK with a cookie. */
SEC("fentry/inet_csk_reqsk_queue_add")
int ipttrace_cookie_child(__u64 *ctx)
{
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
	any_translation = 1;
	bpf_map_update_elem(&translations, &key, &translation, BPF_ANY);
	sk = (unsigned long)skb->sk;
	if (sk)
		bpf_map_update_elem(&translations, &sk, &translation, BPF_ANY);
	return 0;
}

/*
 * What inet_csk_accept() has returned, of a type that the verifier knows, so that it is read
 * directly.  The kernel has one of these layouts, and the verifier does not look at the other.
 */
static __always_inline const struct sock___stage *accepted(__u64 *ctx)
{
	__u64 child;

	/* In assembly: the compiler would choose the address, which the verifier does not allow. */
	if (bpf_core_type_exists(struct proto_accept_arg)) /* from 6.10 on */
		asm volatile("%0 = *(u64 *)(%1 + 16)" : "=r"(child) : "r"(ctx));
	else
		asm volatile("%0 = *(u64 *)(%1 + 32)" : "=r"(child) : "r"(ctx));
	return (void *)child;
}

SEC("fexit/inet_csk_accept")
int ipttrace_accept(__u64 *ctx)
{
	const struct sock___stage *child = accepted(ctx);
	struct ipttrace_socket *record;

	if (!child)
		return 0;
	record = begin_sk(child, IPTTRACE_ACCEPTED);
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
	const struct sock___stage *sk = (void *)ctx[0];
	__u64 *place = place_of(sk);
	struct ipttrace_socket *record;

	if (!place || *place != (unsigned long)sk)
		return 0;
	*place = 0;
	record = begin_sk(sk, IPTTRACE_FIRST_READ);
	if (!record)
		return 0;
	fill_process(record);
	submit(record);
	return 0;
}

static __always_inline int closed(const struct sock___stage *sk)
{
	__u8 before = sk->__sk_common.skc_state;
	struct ipttrace_socket *record;
	__u8 stage = IPTTRACE_CLOSED;
	int error = sk->sk_err;
	__u64 *place;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	place = place_of(sk);
	if (place && *place == (unsigned long)sk)
		*place = 0;
	if (before == TCP_SYN_SENT && error)
		stage = IPTTRACE_REFUSED;
	record = begin_sk(sk, stage);
	if (!record)
		return 0;
	record->error = error;
	submit(record);
	return 0;
}

/*
 * The ends of connections.  tcp_set_state() and its tracepoint would see them all, and eight other
 * changes of each connection, which cost more than all records of its end.
 */
SEC("fentry/tcp_done")
int ipttrace_done(__u64 *ctx)
{
	const struct sock___stage *sk = (void *)ctx[0];

	return sk->__sk_common.skc_state == TCP_CLOSE ? 0 : closed(sk);
}

/* close() while connect() is under way. */
SEC("fentry/__tcp_close")
int ipttrace_close(__u64 *ctx)
{
	const struct sock___stage *sk = (void *)ctx[0];

	return sk->__sk_common.skc_state == TCP_SYN_SENT ? closed(sk) : 0;
}

/* connect() to no address while another connect() is under way, or from close(). */
SEC("fentry/tcp_disconnect")
int ipttrace_disconnect(__u64 *ctx)
{
	const struct sock___stage *sk = (void *)ctx[0];
	__u64 *place = place_of(sk);

	if (sk->__sk_common.skc_state != TCP_SYN_SENT || !place ||
	    *place != (unsigned long)sk)
		return 0;
	return closed(ARGUMENT(0));
}

SEC("fentry/inet_csk_listen_stop")
int ipttrace_listen_stop(__u64 *ctx)
{
	const struct sock___stage *sk = (void *)ctx[0];
	struct ipttrace_socket *record;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	record = begin_sk(sk, IPTTRACE_CLOSED);
	if (!record)
		return 0;
	record->flags |= IPTTRACE_SK_LISTENER;
	submit(record);
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int ipttrace_reset(__u64 *ctx)
{
	const struct sock___stage *sk = (void *)ctx[0];
	struct ipttrace_socket *record;

	if (sk->__sk_common.skc_state == TCP_SYN_SENT)
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
	__u8 state = sk->__sk_common.skc_state;

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
	/* One that was closed although data was unread, or at once, does not reach tcp_done(). */
	return state == TCP_CLOSE ? closed(sk) : 0;
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

	if (sk->sk_protocol != IPPROTO_UDP)
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
	struct ipttrace_socket *record;
	__u32 one = 1, zero = 0;
	struct last_peer *last;
	__u64 key;

	last = bpf_map_lookup_elem(&last_peer, &zero);
	if (!last)
		return 0;
	/* What comes from a map is a number, with which the verifier allows arithmetic. */
	last->sk = (unsigned long)sk;
	MERGE();
	key = peer_of(last->sk, skb);
	if (last->peer == key)
		return 0;
	last->peer = key;
	if (bpf_map_update_elem(&peers, &key, &one, BPF_NOEXIST))
		return 0;
	record = begin_sk(sk, IPTTRACE_FIRST_READ);
	if (!record)
		return 0;
	fill_packet_ends(record, skb);
	fill_process(record);
	submit(record);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
