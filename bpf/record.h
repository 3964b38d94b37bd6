/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The record layout: what the stream carries, one struct for each kind; and how
 * the records of a call cross from the kernel to the agent, in one piece.
 *
 * Shared by the module (which fills them in), by the BPF programs (which write
 * them to perf buffers) and, through a test that compares every offset, by
 * ipttrace/stream/record.py and ipttrace/capture/kernel/calls.py.
 *
 * What has a perf buffer is of one fixed size, so that a stretch of a buffer is
 * an array.  Integers are in host order unless they are named be16.  Strings
 * are padded with NULs, and have none when they are as long as their field.
 *
 * To change it: add fields at the end or into reserved space, and raise
 * IPTTRACE_RECORD_VERSION.  Streams carry their own layout, so old recordings
 * stay readable.
 */
#ifndef IPTTRACE_RECORD_H
#define IPTTRACE_RECORD_H

#define IPTTRACE_RECORD_VERSION	4

#define IPTTRACE_PACKET_LEN	128
#define IPTTRACE_NAME_LEN	32	/* XT_TABLE_MAXNAMELEN */
#define IPTTRACE_IF_LEN		16	/* IFNAMSIZ */
#define IPTTRACE_COMM_LEN	16	/* TASK_COMM_LEN */
#define IPTTRACE_MAC_LEN	16

/* The kinds of record, also the index of a kind's counters everywhere. */
enum ipttrace_kind {
	IPTTRACE_ENTRY,
	IPTTRACE_RULE,
	IPTTRACE_EXIT,
	IPTTRACE_KINDS,
};

/* ipttrace_entry.flags */
#define IPTTRACE_F_FIRST	0x01	/* nf_trace was clear: a journey begins */
#define IPTTRACE_F_FOLLOWED	0x02	/* matched at an earlier hook */
#define IPTTRACE_F_CONNTRACK	0x04	/* the ct_ fields hold something */
#define IPTTRACE_F_SOFTIRQ	0x08	/* pid and comm: of whom it interrupted */

/* ipttrace_exit.flags */
#define IPTTRACE_F_ALIVE	0x01	/* skb was still ours: mark is valid */
#define IPTTRACE_F_CHANGED	0x02	/* rules have changed since the entry */

#define IPTTRACE_F_UNTOLD	0x04	/* verdict is not known */

/*
 * ipttrace_entry.source: who told of the call.  Only the kernel's own records
 * have addresses, pids and CPUs; otherwise skb is a number for each packet.
 */
enum ipttrace_source {
	IPTTRACE_SOURCE_KERNEL,
	IPTTRACE_SOURCE_NFT,	/* NFT_MSG_TRACE */
	IPTTRACE_SOURCE_NFLOG,	/* nfnetlink_log */
};

/* ipttrace_rule.match, and what nf_log_trace() calls its "comment" */
enum ipttrace_match {
	IPTTRACE_MATCH_RULE,
	IPTTRACE_MATCH_RETURN,
	IPTTRACE_MATCH_POLICY,
};

struct ipttrace_entry_head {
	__u64	call;		/* id of this run of ip[6]t_do_table() */
	__u64	time;		/* ns, CLOCK_MONOTONIC */
	__u64	skb;		/* address */
	__u64	parent;		/* call from inside which this one was made */
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
	__u32	ruleset;	/* generation of all rules, 0: not known */
	__u32	pid;		/* thread group, as ps shows it */
	__u32	tid;
	__u16	cpu;
	__u16	protocol_be16;	/* skb->protocol */
	__u16	vlan_tci;
	__u16	caplen;		/* valid bytes of packet[] */
	__u8	mac[IPTTRACE_MAC_LEN];	/* link-layer header */
	__u8	mac_len;	/* its valid bytes, 0: none */
	__u8	source;		/* enum ipttrace_source */
	__u8	tables;		/* of nftables: NFPROTO_* of the table, 0: legacy */
	__u8	reserved1;
	__u32	trace_id;	/* of nftables, 0: none */
};

struct ipttrace_entry {
	struct ipttrace_entry_head head;
	char	comm[IPTTRACE_COMM_LEN];
	char	in[IPTTRACE_IF_LEN];
	char	out[IPTTRACE_IF_LEN];
	__u8	packet[IPTTRACE_PACKET_LEN];	/* from the network header */
};

struct ipttrace_rule {
	__u64	call;
	__u64	time;
	__u32	rulenum;	/* as iptables -L --line-numbers counts, 0: not known */
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
	__u64	cost;		/* ns in the call, ipttrace's handlers left out */
	__u32	verdict;	/* as returned: NF_* and what is above it */
	__u32	mark;		/* after the call */
	__u16	rules;		/* rule records that this call should have */
	__u8	flags;
	__u8	ct_info;	/* after the call */
	__u32	ct_status;	/* after the call */
};

/* A rule that a call has hit, without what its entry says already. */
struct ipttrace_hit {
	__u64	time;		/* from here on as in struct ipttrace_rule */
	__u32	rulenum;
	__u16	seq;
	__u8	match;
	__u8	reserved;
	char	chain[IPTTRACE_NAME_LEN];
};

/* Of a call's rules, how many cross together with it; later ones go ahead. */
#define IPTTRACE_HITS	4

/*
 * A finished call: its entry, its exit and its first rules, for one output of a
 * BPF program costs as much as all that is done to fill this in.
 */
struct ipttrace_whole {
	struct ipttrace_entry	entry;
	struct ipttrace_exit	exit;
	struct ipttrace_hit	hits[IPTTRACE_HITS];	/* exit.rules are valid */
};

#define IPTTRACE_AT(type, field, offset) \
	_Static_assert(__builtin_offsetof(struct type, field) == (offset), \
		       #type "." #field " has moved")

_Static_assert(sizeof(struct ipttrace_entry_head) == 232, "entry_head size");
_Static_assert(sizeof(struct ipttrace_entry) == 408, "entry size");
_Static_assert(sizeof(struct ipttrace_rule) == 88, "rule size");
_Static_assert(sizeof(struct ipttrace_exit) == 48, "exit size");
_Static_assert(sizeof(struct ipttrace_hit) == 48, "hit size");
_Static_assert(sizeof(struct ipttrace_whole) == 648, "whole size");
IPTTRACE_AT(ipttrace_entry_head, netns, 48);
IPTTRACE_AT(ipttrace_entry_head, ct_zone, 76);
IPTTRACE_AT(ipttrace_entry_head, family, 86);
IPTTRACE_AT(ipttrace_entry_head, ct_orig_src, 92);
IPTTRACE_AT(ipttrace_entry_head, table, 156);
IPTTRACE_AT(ipttrace_entry_head, ruleset, 188);
IPTTRACE_AT(ipttrace_entry_head, pid, 192);
IPTTRACE_AT(ipttrace_entry_head, trace_id, 228);
IPTTRACE_AT(ipttrace_entry, packet, 280);
IPTTRACE_AT(ipttrace_rule, rulenum, 16);
IPTTRACE_AT(ipttrace_rule, chain, 56);
IPTTRACE_AT(ipttrace_exit, verdict, 32);
IPTTRACE_AT(ipttrace_hit, chain, 16);
IPTTRACE_AT(ipttrace_whole, exit, 408);
IPTTRACE_AT(ipttrace_whole, hits, 456);

#endif
