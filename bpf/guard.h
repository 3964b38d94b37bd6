/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The rules of the guard, as its programs look them up, and what they report.
 *
 * Checked by a test against ipttrace/guard/layout.py.
 *
 * Each condition cuts the values that are possible into spans; in a span the same rules are
 * met, one bit for each.  The rules that a call meets are those whose bit is set in the spans
 * of all its values, and the first one decides.  So a thousand rules cost little more than one.
 * All of it is one value of a map, which is replaced as a whole.
 */
#ifndef IPTTRACE_GUARD_H
#define IPTTRACE_GUARD_H

#include <linux/types.h>

#define IPTTRACE_GUARD_RULES 1024
#define IPTTRACE_GUARD_WORDS (IPTTRACE_GUARD_RULES / 64)
#define IPTTRACE_GUARD_SPANS 2048 /* of each condition */
#define IPTTRACE_GUARD_CONTAINERS \
	256 /* cgroups of containers that rules name */
#define IPTTRACE_GUARD_SEVERAL 0xffff
#define IPTTRACE_GUARD_COMM    16

/* What a process does, or what comes to its socket. */
enum ipttrace_guard_call {
	IPTTRACE_GUARD_CONNECT, /* or sends to an address */
	IPTTRACE_GUARD_ACCEPT,	/* a process takes a connection */
	IPTTRACE_GUARD_ARRIVAL, /* a connection arrives at a listening socket */
	IPTTRACE_GUARD_RECEIVE,
	IPTTRACE_GUARD_CALLS,
};

enum ipttrace_guard_protocol {
	IPTTRACE_GUARD_TCP,
	IPTTRACE_GUARD_UDP,
	IPTTRACE_GUARD_OTHER,
	IPTTRACE_GUARD_PROTOCOLS = 4, /* a power of two */
};

/* An address of IPv6, or of IPv4 mapped into it, or a name: its halves as numbers. */
struct ipttrace_guard_value {
	__u64 high, low;
};

struct ipttrace_guard_bits {
	__u64 of[IPTTRACE_GUARD_WORDS];
};

/*
 * Spans begin at `from`, in ascending order, the first one at 0.  Behind the last one are others
 * like it at the highest value, so that a search need not know how many there are.
 */
struct ipttrace_guard_values {
	struct ipttrace_guard_value from[IPTTRACE_GUARD_SPANS];
	struct ipttrace_guard_bits rules[IPTTRACE_GUARD_SPANS];
};

struct ipttrace_guard_numbers {
	__u32 from[IPTTRACE_GUARD_SPANS];
	struct ipttrace_guard_bits rules[IPTTRACE_GUARD_SPANS];
};

struct ipttrace_guard_policy {
	__u32 version; /* of these rules, as the agent counts them */
	__u32 rules;   /* how many there are */
	__u32 dry;     /* nothing is denied */
	__u32 calls;   /* a bit for each call that some rule is of */
	__u32 remotes, locals, comms; /* spans of each condition */
	__u32 remote_ports, local_ports, uids;
	__u32 containers;
	__u32 reserved;
	__u16 words[IPTTRACE_GUARD_CALLS]; /* of call[], those with any bit */
	struct ipttrace_guard_bits allow;  /* the rules that allow */
	struct ipttrace_guard_bits call[IPTTRACE_GUARD_CALLS];
	struct ipttrace_guard_bits protocol[IPTTRACE_GUARD_PROTOCOLS];
	struct ipttrace_guard_bits any_container; /* rules that name none */
	__u64 cgroup[IPTTRACE_GUARD_CONTAINERS];  /* in ascending order */
	struct ipttrace_guard_bits of_cgroup[IPTTRACE_GUARD_CONTAINERS];
	struct ipttrace_guard_values remote, local, comm;
	struct ipttrace_guard_numbers remote_port, local_port, uid;
	/* Of remote.rules, the words with any bit. */
	__u16 remote_words[IPTTRACE_GUARD_SPANS];
	/* Of each /16 of IPv4 its span of remote, or IPTTRACE_GUARD_SEVERAL. */
	__u16 four[1 << 16];
};

/* ipttrace_guard_event.flags */
#define IPTTRACE_GUARD_DRY 0x01 /* it would have been denied */
#define IPTTRACE_GUARD_PROCESS \
	0x02 /* pid, tid and comm are those of the process that called */

/* A call that a rule denies. */
struct ipttrace_guard_event {
	__u64 time;
	__u64 cgroup;
	__u32 version;
	__u32 rule; /* its number, from 1 */
	__u32 netns;
	__u32 pid, tid, uid;
	__u16 remote_port, local_port;
	__u8 call, protocol, flags; /* protocol: IPPROTO_* */
	__u8 reserved;
	struct ipttrace_guard_value remote, local;
	char comm[IPTTRACE_GUARD_COMM];
};

/* What the programs count, each CPU for itself. */
enum ipttrace_guard_counter {
	IPTTRACE_GUARD_DENIED,
	IPTTRACE_GUARD_LOST, /* events for which the ring had no room */
	IPTTRACE_GUARD_COUNTERS,
};

_Static_assert(sizeof(struct ipttrace_guard_event) == 96, "event size");

#endif
