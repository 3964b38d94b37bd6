// SPDX-License-Identifier: GPL-2.0-only
/*
 * Records where packets are between the tables: taken from a device, routed, forwarded, waiting
 * for a neighbour, handed to a device, put into a socket's queue.
 *
 * Each program is attached where few kernels differ, and where the packet still belongs to its
 * caller: what happens to it afterwards is the next station's, or a drop.  Those whose function
 * a kernel lacks are left out by who loads them.
 */

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "station.h"

#define NUD_INCOMPLETE 0x01 /* linux/neighbour.h */
#define IFF_LOOPBACK   0x8  /* linux/if.h */

/* Numbers of the programs, for expr_result(); 0 is the one of drops. */
enum slot {
	SLOT_RECEIVED = 1,
	SLOT_INPUT,
	SLOT_INPUT6,
	SLOT_FORWARD,
	SLOT_FORWARD6,
	SLOT_OUTPUT,
	SLOT_OUTPUT6,
	SLOT_NEIGHBOUR,
	SLOT_SENT,
	SLOT_UDP,
	SLOT_TCP,
	SLOT_TCP6,
	SLOT_CHILD,
	SLOT_QUEUE,
};

/*
 * Whether what is sent to the device may come back from it as the same packet: such devices
 * are the kernel's own.
 */
static __always_inline bool is_passage(const struct net_device *device)
{
	return BPF_CORE_READ(device, rtnl_link_ops) ||
	       BPF_CORE_READ(device, flags) & IFF_LOOPBACK;
}

/* The inode by which processes hold the socket, 0: none does as yet, or any more. */
static __always_inline __u64 inode_of(const struct sock *sk)
{
	const struct socket_alloc *socket =
		(const void *)BPF_CORE_READ(sk, sk_socket);

	return socket ? BPF_CORE_READ(socket, vfs_inode.i_ino) : 0;
}

/* `owner`: the socket whose process gets the packet. */
static __always_inline int station(const struct sk_buff *skb,
				   const struct sock *sk,
				   const struct sock *owner,
				   const struct net_device *leaving,
				   const struct neighbour *neighbour, __u8 what,
				   __u32 slot, const bool probed)
{
	bool arriving = what == IPTTRACE_RECEIVED;
	__u64 address = (unsigned long)skb;
	struct candidate *packet = wanted(skb, sk, arriving, slot, probed);
	struct ipttrace_station *record;
	__u32 last = what;

	if (!packet)
		return 0;
	count(STATION_DUE, 1);
	if (sk)
		packet->sk = sk;
	if (what == IPTTRACE_DELIVERED ||
	    (what == IPTTRACE_SENT && leaving && !is_passage(leaving)))
		bpf_map_delete_elem(&seen, &address);
	else
		bpf_map_update_elem(&seen, &address, &last, BPF_ANY);
	record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
	if (!record) {
		count(STATION_LOST, 1);
		return 0;
	}
	fill_station(record, skb, packet, arriving, leaving, what, probed);
	if (owner)
		record->owner = inode_of(owner);
	if (neighbour) {
		record->neighbour_state = BPF_CORE_READ(neighbour, nud_state);
		record->station_flags |= IPTTRACE_S_NEIGHBOUR;
	}
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return 0;
}

static __always_inline int routed(const struct sk_buff *skb, __u32 slot,
				  const bool probed)
{
	return station(skb, NULL, NULL, NULL, NULL, IPTTRACE_ROUTED, slot,
		       probed);
}

/* Behind the chains of FORWARD or OUTPUT, and before those of POSTROUTING. */
static __always_inline int leaving(const struct sk_buff *skb, __u32 slot,
				   const bool probed)
{
	return station(skb, NULL, NULL, NULL, NULL,
		       GET(probed, skb, skb_iif) ? IPTTRACE_FORWARDED :
						   IPTTRACE_ROUTED,
		       slot, probed);
}

/* Only without an address, or a failure to find it, does the packet wait. */
static __always_inline int queued(const struct neighbour *neighbour,
				  const struct sk_buff *skb, const bool probed)
{
	if (!skb || BPF_CORE_READ(neighbour, nud_state) & ~NUD_INCOMPLETE)
		return 0;
	return station(skb, NULL, NULL, NULL, neighbour, IPTTRACE_QUEUED,
		       SLOT_NEIGHBOUR, probed);
}

static __always_inline int delivered(const struct sock *sk,
				     const struct sock *owner,
				     const struct sk_buff *skb, __u32 slot,
				     const bool probed)
{
	return station(skb, sk, owner, NULL, NULL, IPTTRACE_DELIVERED, slot,
		       probed);
}

/* Of sockets that drop the packet if there is no room for it. */
static __always_inline int delivered_if_room(const struct sock *sk,
					     const struct sk_buff *skb,
					     __u32 slot, const bool probed)
{
	if (BPF_CORE_READ(sk, sk_backlog.rmem_alloc.counter) >
	    BPF_CORE_READ(sk, sk_rcvbuf))
		return 0;
	return delivered(sk, sk, skb, slot, probed);
}

SEC("tp_btf/netif_receive_skb")
int BPF_PROG(ipttrace_received, struct sk_buff *skb)
{
	return station(skb, NULL, NULL, NULL, NULL, IPTTRACE_RECEIVED,
		       SLOT_RECEIVED, false);
}

/* Behind it the address may be another packet's.  Those that are dropped go with the drop. */
SEC("tp_btf/consume_skb")
int BPF_PROG(ipttrace_consumed, struct sk_buff *skb)
{
	__u64 address = (unsigned long)skb;

	bpf_map_delete_elem(&seen, &address);
	return 0;
}

SEC("tp_btf/net_dev_start_xmit")
int BPF_PROG(ipttrace_sent, struct sk_buff *skb, struct net_device *device)
{
	return station(skb, NULL, NULL, device, NULL, IPTTRACE_SENT, SLOT_SENT,
		       false);
}

/* A program for fentry, and the same for kprobes, where the kernel refuses fentry. */
#define PROGRAMS(name, function, call)                   \
	SEC("fentry/" function)                          \
	int ipttrace_##name(__u64 *ctx)                  \
	{                                                \
		return call(FENTRY, false);              \
	}                                                \
	SEC("kprobe/" function)                          \
	int ipttrace_##name##_probe(struct pt_regs *ctx) \
	{                                                \
		return call(KPROBE, true);               \
	}

/* The arguments of a function, from the first one on. */
#define FENTRY(number) ((void *)ctx[(number) - 1])
#define KPROBE(number) ((void *)PT_REGS_PARM##number(ctx))

#define INPUT(argument, probed)	    routed(argument(1), SLOT_INPUT, probed)
#define INPUT6(argument, probed)    routed(argument(1), SLOT_INPUT6, probed)
#define FORWARD(argument, probed)   routed(argument(1), SLOT_FORWARD, probed)
#define FORWARD6(argument, probed)  routed(argument(1), SLOT_FORWARD6, probed)
#define OUTPUT(argument, probed)    leaving(argument(3), SLOT_OUTPUT, probed)
#define OUTPUT6(argument, probed)   leaving(argument(3), SLOT_OUTPUT6, probed)
#define NEIGHBOUR(argument, probed) queued(argument(1), argument(2), probed)
#define UDP(argument, probed) \
	delivered_if_room(argument(1), argument(2), SLOT_UDP, probed)
#define TCP(argument, probed) \
	delivered(argument(1), argument(1), argument(2), SLOT_TCP, probed)
#define TCP6(argument, probed) \
	delivered(argument(1), argument(1), argument(2), SLOT_TCP6, probed)
#define CHILD(argument, probed) \
	delivered(argument(2), argument(1), argument(3), SLOT_CHILD, probed)
#define QUEUE(argument, probed) \
	delivered_if_room(argument(1), argument(2), SLOT_QUEUE, probed)

/* A route was found: to a socket of this host, or to another host. */
PROGRAMS(input, "ip_local_deliver", INPUT)
PROGRAMS(input6, "ip6_input", INPUT6)
PROGRAMS(forward, "ip_forward", FORWARD)
PROGRAMS(forward6, "ip6_forward", FORWARD6)

PROGRAMS(output, "ip_output", OUTPUT)
PROGRAMS(output6, "ip6_output", OUTPUT6)
PROGRAMS(queued, "__neigh_event_send", NEIGHBOUR)

PROGRAMS(udp, "__udp_enqueue_schedule_skb", UDP)
PROGRAMS(tcp, "tcp_v4_do_rcv", TCP)
PROGRAMS(tcp6, "tcp_v6_do_rcv", TCP6)
/* The last segment of a handshake: until it is accepted, the listener has the new socket. */
PROGRAMS(child, "tcp_child_process", CHILD)
/* Sockets of ping and raw IP; before Linux 5.18 the function has another name. */
PROGRAMS(queue, "sock_queue_rcv_skb_reason", QUEUE)
PROGRAMS(queue_old, "sock_queue_rcv_skb", QUEUE)

char LICENSE[] SEC("license") = "GPL";
