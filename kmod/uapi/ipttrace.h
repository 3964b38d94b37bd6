/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ipttrace: the generic netlink protocol
 *
 * Family "ipttrace", in every network namespace, without multicast groups.  Every
 * command needs CAP_NET_ADMIN in the initial user namespace.
 *
 * ARM      starts tracing, bound to the socket that sends it: when that socket
 *          is closed, for whatever reason, tracing ends; likewise when the
 *          only namespace to trace ends, which is not kept alive.
 *	PROG_CALL, PROG_RULE  (string) the paths at which two BPF programs of
 *		type kprobe are pinned.  CALL uses a per-CPU array whose value
 *		has the size of a struct ipttrace_call_record (bpf/record.h):
 *		from there it reads a finished call with its first rules; its
 *		context is undefined.  The registers of RULE contain, from the
 *		first byte of struct pt_regs on, a struct ipttrace_rule: each
 *		further rule of a call, before the call is finished.
 *	FILTER	(binary, optional) an array of struct sock_filter: classic BPF
 *		on the packet from its network header on.  Absent: every packet.
 *	NETNS_FD (u32, optional) descriptor of the only network namespace to
 *		trace; needed until ARM returns.
 *	NETNS_ID (u64, optional) NETNS_FD must be this one, from an earlier GET.
 *	MAXACTIVE (u32, optional) calls that may be traced at a time.
 *	FROM_RULES (flag, optional) trace only packets that the user's rules
 *		mark, from the rule on that does: the targets IPTTRACE and TRACE,
 *		and "meta nftrace" of nftables.  Excludes FILTER.
 *
 *	-EBUSY	armed by another socket (GET returns its process)
 *	-ENOENT	no program at a path; neither ip_tables nor ip6_tables is
 *		loaded; no nf_log_trace in this kernel
 *	-EINVAL	not a kprobe program, not the one of ipttrace, or not a program;
 *		CALL lacks its array; not a classic BPF program; not a network
 *		namespace
 *	-EBADF	NETNS_FD is not open
 *	-ESRCH	NETNS_FD is not NETNS_ID
 *	-EOPNOTSUPP kprobes are switched off
 *	-EACCES	not a BPF pin
 *	-EPERM	others than root can replace the pin
 *	-ENOMEM
 *	All with a sentence in NLMSGERR_ATTR_MSG; nothing stays registered.
 *
 * FILTER   (owner only) replaces the filter; absent: every packet.
 *	-EPERM	not armed by this socket.  -EINVAL as above.
 *
 * DISARM   (owner only) ends tracing.  When it returns, no call is traced any
 *          more; the log lines of packets that are still on their way are
 *          silenced for DRAIN_MS longer.
 *	-EPERM	not armed by this socket.
 *
 * GET      returns PROTOCOL, STATE, REASON, VERSION, OWNER_PID, TARGETS, RULESET,
 *          NETNS_ID and all counters.  These are of the newest ARM and remain
 *          after DISARM.
 *	NETNS_FD (u32, optional) descriptor of a network namespace.
 *          RULESET is the generation of all tables' rules: it rises by 1 with
 *          each change of a table, and by 1 for all changes that may have
 *          occurred between a DISARM and an ARM.  With NETNS_FD it is that of
 *          the newest change in this namespace, and 0 while one is under way.
 *          It is 0 if changes are not watched (bit 2 of TARGETS is clear).
 *          If there was a NETNS_FD in ARM, only changes in that one count.
 *
 * WATCH    the module sends changes of rules to this socket from now on, while
 *          armed: messages with command CHANGED.
 *	-ENOSPC	too many do so already
 *
 * CHANGED  (from the module) RULESET_FIRST and RULESET: the generations of the
 *          first and the newest change of a table that was not reported yet;
 *          NETNS (inode; 0: in any namespace), FAMILY (0: any table) and TABLE.
 *          With RULESET alone: all changes up to that generation have been
 *          reported.  A socket that has no room reads ENOBUFS, and has lost
 *          some.  The sequence number is 0.
 *
 * BREAK    packets that hit a rule with the target IPTTRACE are marked (nf_trace
 *          is set) as long as this socket is open, for somebody who sees such
 *          packets without ARM.  A further one replaces the first.
 *	NETNS_FD (u32, optional) descriptor of the only network namespace.
 *	-ENOSPC	too many do so already
 *
 * BREAKS   (dump) the tables with such rules, which hold the module: NETNS
 *          (inode), FAMILY, TABLE, RULES (how many), NFT if it is a table of
 *          nftables.
 */
#ifndef _UAPI_IPTTRACE_H
#define _UAPI_IPTTRACE_H

#define IPTTRACE_GENL_NAME	"ipttrace"
#define IPTTRACE_GENL_VERSION	1
/* Rises when a program for either would not work with the other. */
#define IPTTRACE_PROTOCOL	3

/* Unless the module has the parameter drain_ms. */
#define IPTTRACE_DRAIN_MS	250

enum ipttrace_cmd {
	IPTTRACE_CMD_UNSPEC,
	IPTTRACE_CMD_ARM,
	IPTTRACE_CMD_DISARM,
	IPTTRACE_CMD_GET,
	IPTTRACE_CMD_FILTER,
	IPTTRACE_CMD_WATCH,
	IPTTRACE_CMD_CHANGED,
	IPTTRACE_CMD_BREAK,
	IPTTRACE_CMD_BREAKS,
};

enum ipttrace_attr {
	IPTTRACE_A_UNSPEC,
	IPTTRACE_A_PAD,
	IPTTRACE_A_PROG_CALL,	/* string */
	IPTTRACE_A_PROG_RULE,	/* string */
	IPTTRACE_A_FILTER,	/* binary: struct sock_filter[] */
	IPTTRACE_A_NETNS,	/* u32: inode */
	IPTTRACE_A_MAXACTIVE,	/* u32 */
	IPTTRACE_A_STATE,	/* u32: enum ipttrace_state */
	IPTTRACE_A_VERSION,	/* u32: IPTTRACE_RECORD_VERSION */
	IPTTRACE_A_OWNER_PID,	/* u32 */
	IPTTRACE_A_REASON,	/* u32: enum ipttrace_reason */
	IPTTRACE_A_TARGETS,	/* u32: enum ipttrace_target */
	IPTTRACE_A_CALLS,	/* u64: calls that the probe saw */
	IPTTRACE_A_REFUSED,	/* u64: of these, rejected by filter or netns */
	IPTTRACE_A_MATCHED,	/* u64: of these, matched by the filter */
	IPTTRACE_A_FOLLOWED,	/* u64: of these, matched at an earlier hook */
	IPTTRACE_A_FLIPPED,	/* u64: packets whose nf_trace it set */
	IPTTRACE_A_SILENCED,	/* u64: log lines silenced, of copies too */
	IPTTRACE_A_DUE_ENTRY,	/* u64: records to expect */
	IPTTRACE_A_DUE_RULE,	/* u64 */
	IPTTRACE_A_DUE_EXIT,	/* u64 */
	IPTTRACE_A_NMISSED,	/* u64: calls due, but no instance was free */
	IPTTRACE_A_SKIPPED,	/* u64: probe hits inside a probe's handler */
	IPTTRACE_A_UNFOLLOWED,	/* u64: packets no longer followed: no room */
	IPTTRACE_A_DEPTH,	/* u32: deepest nesting, 1: no call in a call */
	IPTTRACE_A_RULESET,	/* u32: generation of rules, 0: unknown */
	IPTTRACE_A_FAMILY,	/* u32: NFPROTO_IPV4, NFPROTO_IPV6 */
	IPTTRACE_A_TABLE,	/* string */
	IPTTRACE_A_PROTOCOL,	/* u32: IPTTRACE_PROTOCOL */
	IPTTRACE_A_NETNS_FD,	/* u32 */
	IPTTRACE_A_NETNS_ID,	/* u64: the namespace; never used again */
	IPTTRACE_A_RULESET_FIRST, /* u32 */
	IPTTRACE_A_FROM_RULES,	/* flag */
	IPTTRACE_A_RULES,	/* u32 */
	IPTTRACE_A_NFT,		/* flag */
	__IPTTRACE_A_END,
};
#define IPTTRACE_A_MAX (__IPTTRACE_A_END - 1)

enum ipttrace_state {
	IPTTRACE_IDLE,
	IPTTRACE_ARMED,
	IPTTRACE_DRAINING,	/* disarmed; late log lines still silenced */
};

enum ipttrace_reason {
	IPTTRACE_BY_OWNER,
	IPTTRACE_OWNER_GONE,	/* its socket was closed */
	IPTTRACE_NETNS_GONE,	/* the only namespace to trace has ended */
};

/* Bits: what is probed, and why it may not hit. */
enum ipttrace_target {
	IPTTRACE_TARGET_IP = 1,	/* ipt_do_table() */
	IPTTRACE_TARGET_IP6 = 2, /* ip6t_do_table() */
	IPTTRACE_TARGET_RULES = 4, /* changes of rules */
	IPTTRACE_KPROBES_OFF = 8,
};

#endif
