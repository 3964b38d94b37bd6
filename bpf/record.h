/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The record layout: one struct for each kind of record in the stream, and one
 * in which the records of a call cross from the kernel to the agent together.
 *
 * Shared by the module (which fills them in), by the BPF programs (which write
 * them to perf buffers) and, checked by a test that compares every offset, by
 * ipttrace/stream/record.py and ipttrace/capture/kernel/calls.py.
 *
 * All records in a perf buffer have the same size, so that a part of the buffer
 * can be read as an array.  Integers are in host order unless named be16.
 * Strings are padded with NULs; one that fills its field has none.
 *
 * To change it: add fields at the end or into reserved space, and raise
 * IPTTRACE_RECORD_VERSION.  Streams carry their own layout, so old recordings
 * stay readable.
 */
#ifndef IPTTRACE_RECORD_H
#define IPTTRACE_RECORD_H

#define IPTTRACE_RECORD_VERSION	7

#define IPTTRACE_PACKET_LEN	128
#define IPTTRACE_NAME_LEN	32	/* XT_TABLE_MAXNAMELEN */
#define IPTTRACE_IF_LEN		16	/* IFNAMSIZ */
#define IPTTRACE_COMM_LEN	16	/* TASK_COMM_LEN */
#define IPTTRACE_MAC_LEN	16

/* The kinds of record; every array of counters by kind has these indices. */
enum ipttrace_kind {
	IPTTRACE_ENTRY,
	IPTTRACE_RULE,
	IPTTRACE_EXIT,
	IPTTRACE_KINDS,
};

/* ipttrace_entry.flags */
#define IPTTRACE_F_FIRST	0x01	/* nf_trace was clear, or is a copy's */
#define IPTTRACE_F_FOLLOWED	0x02	/* matched at an earlier hook */
#define IPTTRACE_F_CONNTRACK	0x04	/* the ct_ fields are valid */
#define IPTTRACE_F_SOFTIRQ	0x08	/* pid, comm: the interrupted process */
#define IPTTRACE_F_NO_MARK	0x10	/* mark is unknown */
#define IPTTRACE_F_NO_LEN	0x20	/* len is unknown */

/* ipttrace_entry.ct_flags */
#define IPTTRACE_CT_INVALID	0x01	/* conntrack has seen it: no entry */
#define IPTTRACE_CT_STATE	0x02	/* only ct_info, ct_status are valid */
#define IPTTRACE_CT_NO_MARK	0x04	/* ct_mark is unknown */

/* ipttrace_exit.flags */
#define IPTTRACE_F_ALIVE	0x01	/* skb not freed: mark, ct_ are valid */
#define IPTTRACE_F_CHANGED	0x02	/* rules have changed since the entry */
#define IPTTRACE_F_NO_VERDICT 0x04	/* verdict is unknown */

/*
 * ipttrace_entry.source: where the record comes from.  Only those of the module and
 * of BPF contain addresses, pids and CPUs; in others skb is a number for each packet.
 */
enum ipttrace_source {
	IPTTRACE_SOURCE_KERNEL,
	IPTTRACE_SOURCE_NFT,	/* NFT_MSG_TRACE */
	IPTTRACE_SOURCE_NFLOG,	/* nfnetlink_log */
	IPTTRACE_SOURCE_BPF,	/* bpf/nft.bpf.c, bpf/legacy.bpf.c */
};

/* ipttrace_rule.match: like nf_log_trace()'s "comment", but of rules always RULE */
enum ipttrace_match {
	IPTTRACE_MATCH_RULE,
	IPTTRACE_MATCH_RETURN,	/* off the end of a user-defined chain */
	IPTTRACE_MATCH_POLICY,
};

struct ipttrace_entry_head {
	__u64	call;		/* id of this run of ip[6]t_do_table() */
	__u64	time;		/* ns, CLOCK_MONOTONIC */
	__u64	skb;		/* address */
	__u64	parent;		/* the call inside which this one runs */
	__u64	sk;		/* address of the skb's socket */
	__u64	ct;		/* address of its conntrack entry */
	__u32	netns;		/* inode */
	__u32	len;		/* skb->len: from the network header on */
	__u32	mark;
	__u32	in_ifindex;
	__u32	out_ifindex;
	__u32	ct_status;	/* IPS_* */
	__u32	ct_mark;
	__u16	ct_zone;
	__u16	ct_orig_sport_be16;
	__u16	ct_orig_dport_be16;
	__u16	ct_reply_sport_be16;
	__u16	ct_reply_dport_be16;
	__u8	family;		/* NFPROTO_IPV4, NFPROTO_IPV6 */
	__u8	hook;		/* NF_INET_* */
	__u8	flags;		/* IPTTRACE_F_* */
	__u8	ct_info;	/* enum ip_conntrack_info */
	__u8	ct_proto;
	__u8	depth;		/* calls around this one on its stack */
	__u8	ct_orig_src[16];
	__u8	ct_orig_dst[16];
	__u8	ct_reply_src[16];
	__u8	ct_reply_dst[16];
	char	table[IPTTRACE_NAME_LEN];
	__u32	ruleset;	/* generation of all rules, 0: unknown */
	__u32	pid;		/* thread group, as ps shows it */
	__u32	tid;
	__u16	cpu;
	__u16	protocol_be16;	/* skb->protocol */
	__u16	vlan_tci;
	__u16	caplen;		/* valid bytes of packet[] */
	__u8	mac[IPTTRACE_MAC_LEN];	/* link-layer header */
	__u8	mac_len;	/* valid bytes of mac[] */
	__u8	source;		/* enum ipttrace_source */
	__u8	tables;		/* nftables: NFPROTO_* of the table, else 0 */
	__u8	ct_flags;	/* IPTTRACE_CT_* */
	__u32	trace_id;	/* nftables, 0: none */
};

struct ipttrace_entry {
	struct ipttrace_entry_head head;
	char	comm[IPTTRACE_COMM_LEN];
	char	in[IPTTRACE_IF_LEN];
	char	out[IPTTRACE_IF_LEN];
	__u8	packet[IPTTRACE_PACKET_LEN];	/* from the network header */
	char	physin[IPTTRACE_IF_LEN];	/* of a bridged packet: the ports */
	char	physout[IPTTRACE_IF_LEN];
	__u32	physin_ifindex;
	__u32	physout_ifindex;
	/* Base chains of nftables at this hook, of the table's priority. */
	__u8	nft_before;	/* called before the table */
	__u8	nft_behind;	/* called after it */
	__u8	reserved[6];
};

struct ipttrace_rule {
	__u64	call;
	__u64	time;
	__u32	rulenum;	/* as iptables -L --line-numbers, 0: unknown */
	__u16	seq;		/* 0, 1, … within its call */
	__u8	match;		/* enum ipttrace_match */
	__u8	reserved;
	char	table[IPTTRACE_NAME_LEN];
	char	chain[IPTTRACE_NAME_LEN];
};

struct ipttrace_exit {
	__u64	call;
	__u64	time;
	__u64	skb;
	__u64	cost;		/* ns, without ipttrace's handlers and calls inside */
	__u32	verdict;	/* as returned: NF_* and the bits above it */
	__u32	mark;		/* after the call */
	__u16	rules;		/* rule records to expect for this call */
	__u8	flags;
	__u8	ct_info;	/* after the call */
	__u32	ct_status;	/* after the call */
};

/* A rule that a call has hit: struct ipttrace_rule without call and table. */
struct ipttrace_hit {
	__u64	time;
	__u32	rulenum;
	__u16	seq;
	__u8	match;
	__u8	reserved;
	char	chain[IPTTRACE_NAME_LEN];
};

/* ipttrace_station.what: what happened to a packet outside the tables */
enum ipttrace_what {
	IPTTRACE_DROPPED = 1,	/* freed by kfree_skb() */
	IPTTRACE_RECEIVED,	/* taken from a device */
	IPTTRACE_ROUTED,	/* a route was found for it */
	IPTTRACE_FORWARDED,	/* from one device to another */
	IPTTRACE_QUEUED,	/* waits for a neighbour to be resolved */
	IPTTRACE_SENT,		/* handed to a device */
	IPTTRACE_DELIVERED,	/* put into a socket's queue */
};

/* ipttrace_station.station_flags */
#define IPTTRACE_S_ROUTE	0x01	/* the route_ fields are valid */
#define IPTTRACE_S_NEIGHBOUR	0x02	/* neighbour_state is valid */
#define IPTTRACE_S_TRACED	0x04	/* nf_trace was set */
#define IPTTRACE_S_MATCHED	0x08	/* EXPR matches these bytes */

/*
 * A packet seen outside the tables.  Written by BPF; the agent puts numbers in the place
 * of addresses of code, and names them in a PLACES frame.
 */
struct ipttrace_station {
	struct ipttrace_entry entry;	/* without table and ruleset; call: a number of its own */
	__u64	place;		/* of the code, 0: unknown */
	__u64	stack;		/* the kernel stack, 0: unknown */
	__u32	reason;		/* enum skb_drop_reason of the running kernel, 0: unknown */
	__u32	route_table;	/* RT_TABLE_* */
	__u8	gateway[16];	/* next hop, zero: the destination itself */
	__u8	gateway_family;	/* NFPROTO_IPV4, NFPROTO_IPV6, 0: no gateway */
	__u8	route_type;	/* RTN_* */
	__u8	neighbour_state; /* NUD_* */
	__u8	what;		/* enum ipttrace_what */
	__u8	station_flags;	/* IPTTRACE_S_* */
	__u8	padding[3];
	__u64	owner;		/* inode of the socket it was delivered to, 0: unknown; see PLACES */
};

/* ipttrace_socket.stage: what happened to a socket */
enum ipttrace_stage {
	IPTTRACE_LISTENING = 1,	/* listen() */
	IPTTRACE_BOUND,		/* UDP: it has a port */
	IPTTRACE_CONNECTING,	/* TCP: a SYN is sent */
	IPTTRACE_CONNECTED,	/* a client's handshake is done; UDP: connect() */
	IPTTRACE_SYN_TAKEN,	/* by a listener */
	IPTTRACE_SYN_DROPPED,	/* by a listener; see SK_ACCEPT_FULL and what follows it */
	IPTTRACE_SYN_ACK_SENT,	/* for a request */
	IPTTRACE_ACK_DROPPED,	/* the last one of a handshake: the accept queue had no room */
	IPTTRACE_ESTABLISHED,	/* the request has become a socket, in the accept queue */
	IPTTRACE_ACCEPTED,	/* a process has it */
	IPTTRACE_FIRST_READ,	/* a process has read data for the first time */
	IPTTRACE_REFUSED,	/* a SYN for which there is no listener; a connect() that failed */
	IPTTRACE_RESET,
	IPTTRACE_ABANDONED,	/* a request that came to nothing */
	IPTTRACE_CLOSED,
	IPTTRACE_DENIED,	/* connect() or accept(), by a security module */
};

/* ipttrace_socket.flags */
#define IPTTRACE_SK_PROCESS	0x0001	/* pid to comm are of the process that called */
#define IPTTRACE_SK_ORIGINAL	0x0002	/* orig_dst, orig_dport are valid */
#define IPTTRACE_SK_TRANSLATED	0x0004	/* reply_src, reply_sport are valid */
#define IPTTRACE_SK_COOKIE	0x0008	/* a SYN-ACK with a cookie: no request is kept */
#define IPTTRACE_SK_ACCEPT_FULL	0x0010	/* the accept queue had no room */
#define IPTTRACE_SK_SYN_FULL	0x0020	/* there were as many requests as may be */
#define IPTTRACE_SK_DENIED	0x0040	/* by a security module */
#define IPTTRACE_SK_SENT	0x0080	/* the reset was sent by this host */
#define IPTTRACE_SK_QUEUE	0x0100	/* queue and queue_most are valid */
#define IPTTRACE_SK_AGAIN	0x0200	/* a repetition */
#define IPTTRACE_SK_LISTENER	0x0400	/* it is the listener that is closed */
#define IPTTRACE_SK_FASTOPEN	0x0800	/* TCP Fast Open */
#define IPTTRACE_SK_MPTCP	0x1000	/* a subflow of MPTCP */
#define IPTTRACE_SK_REQUESTS	0x2000	/* requests is valid */

#define IPTTRACE_PID_LEVELS	4

/*
 * A stage of a socket.  Local and remote are as the socket has them.  Written by BPF; the agent
 * puts the number of a process in the place of the owner, and describes it in a PROCESSES frame.
 */
struct ipttrace_socket {
	__u64	time;
	__u64	sk;		/* the socket; 0: there is none as yet */
	__u64	listener;
	__u64	request;
	__u64	cgroup;		/* of the process, in the hierarchy of version 2 */
	__u64	owner;		/* inode of the listener, or of the socket that is reset */
	__u32	netns;
	__u32	pid;
	__u32	tid;
	__u32	uid;
	__u32	pids[IPTTRACE_PID_LEVELS];	/* of the process, from the initial namespace on */
	__u32	tids[IPTTRACE_PID_LEVELS];
	__u32	queue;		/* accept queue of the listener */
	__u32	queue_most;
	__u32	requests;	/* of the listener */
	__u32	error;		/* errno, 0: none */
	__u8	local[16];
	__u8	remote[16];
	__u8	orig_dst[16];	/* as the client called it, before DNAT */
	__u8	reply_src[16];	/* who answers it, after DNAT */
	__u16	local_port_be16;
	__u16	remote_port_be16;
	__u16	orig_dport_be16;
	__u16	reply_sport_be16;
	char	comm[IPTTRACE_COMM_LEN];
	__u16	cpu;
	__u16	flags;		/* IPTTRACE_SK_* */
	__u8	family;		/* NFPROTO_* */
	__u8	protocol;	/* IPPROTO_* */
	__u8	stage;		/* enum ipttrace_stage */
	__u8	levels;		/* of pid namespaces that the process is in */
};

/* How many of a call's rules cross with it; further ones cross before it. */
#define IPTTRACE_HITS	4

/*
 * A finished call: its entry, its exit and its first rules.  In one piece,
 * since one output of a BPF program costs as much as filling in all of this.
 */
struct ipttrace_call_record {
	struct ipttrace_entry	entry;
	struct ipttrace_exit	exit;
	struct ipttrace_hit	hits[IPTTRACE_HITS];	/* valid: exit.rules */
};

#define IPTTRACE_AT(type, field, offset) \
	_Static_assert(__builtin_offsetof(struct type, field) == (offset), \
		       #type "." #field " has moved")

_Static_assert(sizeof(struct ipttrace_entry_head) == 232, "entry_head size");
_Static_assert(sizeof(struct ipttrace_entry) == 456, "entry size");
_Static_assert(sizeof(struct ipttrace_rule) == 88, "rule size");
_Static_assert(sizeof(struct ipttrace_exit) == 48, "exit size");
_Static_assert(sizeof(struct ipttrace_station) == 512, "station size");
_Static_assert(sizeof(struct ipttrace_hit) == 48, "hit size");
_Static_assert(sizeof(struct ipttrace_socket) == 208, "socket size");
_Static_assert(sizeof(struct ipttrace_call_record) == 696, "call_record size");
IPTTRACE_AT(ipttrace_entry_head, netns, 48);
IPTTRACE_AT(ipttrace_entry_head, ct_zone, 76);
IPTTRACE_AT(ipttrace_entry_head, family, 86);
IPTTRACE_AT(ipttrace_entry_head, ct_orig_src, 92);
IPTTRACE_AT(ipttrace_entry_head, table, 156);
IPTTRACE_AT(ipttrace_entry_head, ruleset, 188);
IPTTRACE_AT(ipttrace_entry_head, pid, 192);
IPTTRACE_AT(ipttrace_entry_head, trace_id, 228);
IPTTRACE_AT(ipttrace_entry, packet, 280);
IPTTRACE_AT(ipttrace_entry, physin, 408);
IPTTRACE_AT(ipttrace_entry, nft_before, 448);
IPTTRACE_AT(ipttrace_rule, rulenum, 16);
IPTTRACE_AT(ipttrace_rule, chain, 56);
IPTTRACE_AT(ipttrace_exit, verdict, 32);
IPTTRACE_AT(ipttrace_station, place, 456);
IPTTRACE_AT(ipttrace_station, gateway, 480);
IPTTRACE_AT(ipttrace_station, what, 499);
IPTTRACE_AT(ipttrace_station, owner, 504);
IPTTRACE_AT(ipttrace_hit, chain, 16);
IPTTRACE_AT(ipttrace_socket, pids, 64);
IPTTRACE_AT(ipttrace_socket, local, 112);
IPTTRACE_AT(ipttrace_socket, comm, 184);
IPTTRACE_AT(ipttrace_socket, stage, 206);
IPTTRACE_AT(ipttrace_call_record, exit, 456);
IPTTRACE_AT(ipttrace_call_record, hits, 504);

#endif
