/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ipttrace: the generic netlink protocol
 *
 * Family "ipttrace", version 1, multicast groups "state" and "rules".  Every
 * command needs CAP_NET_ADMIN in the initial user namespace.
 *
 * ARM      starts tracing, bound to the socket that sends it: when that socket
 *          is closed, for whatever reason, tracing ends.
 *	PROG_CALL, PROG_RULE  (string) the paths at which two BPF programs of
 *		type kprobe are pinned.  CALL uses a per-CPU array whose value
 *		has the size of a struct ipttrace_call_record (bpf/record.h):
 *		from there it reads a finished call with its first rules; its
 *		context is undefined.  The registers of RULE contain, from the
 *		first byte of struct pt_regs on, a struct ipttrace_rule: each
 *		further rule of a call, before the call is finished.
 *	FILTER	(binary, optional) an array of struct sock_filter: classic BPF
 *		on the packet from its network header on.  Absent: every packet.
 *	NETNS	(u32, optional) inode of the only network namespace to trace.
 *	MAXACTIVE (u32, optional) calls that may be traced at a time.
 *
 *	-EBUSY	armed by another socket (GET returns its process)
 *	-ENOENT	no program at a path; neither ip_tables nor ip6_tables is
 *		loaded; no nf_log_trace in this kernel
 *	-EINVAL	not a kprobe program, or not a program; CALL lacks its array;
 *		not a classic BPF program
 *	-EACCES	not a BPF pin
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
 * GET      returns STATE, VERSION, OWNER_PID, TARGETS, RULESET and all
 *          counters.  These are of the newest ARM and remain after DISARM.
 *          RULESET is the generation of all tables' rules: it starts at 1 with
 *          the first ARM and rises by 1 with each change of a table, and by 1
 *          for all changes that may have occurred between a DISARM and an ARM.
 *          It is 0 while a change is under way, and if changes are not watched
 *          (bit 2 of TARGETS is clear).
 *
 * Group "state": a message with command NOTIFY and STATE, OWNER_PID and REASON
 * at every change.
 *
 * Group "rules": while armed, a message with command CHANGED for each change of
 * a table's rules, with RULESET (the first generation of the new rules), NETNS
 * (0: unknown), FAMILY (0: any table may have changed) and TABLE.  A missing
 * generation means that its message was lost.
 */
#ifndef _UAPI_IPTTRACE_H
#define _UAPI_IPTTRACE_H

#define IPTTRACE_GENL_NAME	"ipttrace"
#define IPTTRACE_GENL_VERSION	1
#define IPTTRACE_GENL_MCGRP	"state"
#define IPTTRACE_GENL_MCGRP_RULES "rules"

#define IPTTRACE_DRAIN_MS	250

enum ipttrace_cmd {
	IPTTRACE_CMD_UNSPEC,
	IPTTRACE_CMD_ARM,
	IPTTRACE_CMD_DISARM,
	IPTTRACE_CMD_GET,
	IPTTRACE_CMD_FILTER,
	IPTTRACE_CMD_NOTIFY,
	IPTTRACE_CMD_CHANGED,
};

enum ipttrace_attr {
	IPTTRACE_A_UNSPEC,
	IPTTRACE_A_PAD,
	IPTTRACE_A_PROG_CALL,	/* string */
	IPTTRACE_A_PROG_RULE,	/* string */
	IPTTRACE_A_FILTER,	/* binary: struct sock_filter[] */
	IPTTRACE_A_NETNS,	/* u32 */
	IPTTRACE_A_MAXACTIVE,	/* u32 */
	IPTTRACE_A_STATE,	/* u32: enum ipttrace_state */
	IPTTRACE_A_VERSION,	/* u32: IPTTRACE_RECORD_VERSION */
	IPTTRACE_A_OWNER_PID,	/* u32 */
	IPTTRACE_A_REASON,	/* u32: enum ipttrace_reason */
	IPTTRACE_A_TARGETS,	/* u32: probed: bit 0 ipt_do_table,
				   bit 1 ip6t_do_table, bit 2 rule changes */
	IPTTRACE_A_CALLS,	/* u64: calls that the probe saw */
	IPTTRACE_A_REFUSED,	/* u64: of these, rejected by filter or netns */
	IPTTRACE_A_MATCHED,	/* u64: of these, matched by the filter */
	IPTTRACE_A_FOLLOWED,	/* u64: of these, matched at an earlier hook */
	IPTTRACE_A_FLIPPED,	/* u64: packets whose nf_trace it set */
	IPTTRACE_A_SILENCED,	/* u64: log lines silenced */
	IPTTRACE_A_DUE_ENTRY,	/* u64: records to expect */
	IPTTRACE_A_DUE_RULE,	/* u64 */
	IPTTRACE_A_DUE_EXIT,	/* u64 */
	IPTTRACE_A_NMISSED,	/* u64: calls due, but no instance was free */
	IPTTRACE_A_SKIPPED,	/* u64: probe hits inside a probe's handler */
	IPTTRACE_A_UNFOLLOWED,	/* u64: packets no longer followed: no room */
	IPTTRACE_A_DEPTH,	/* u32: deepest nesting, 1: no call in a call */
	IPTTRACE_A_RULESET,	/* u32: generation of all rules, 0: unknown */
	IPTTRACE_A_FAMILY,	/* u32: NFPROTO_IPV4, NFPROTO_IPV6 */
	IPTTRACE_A_TABLE,	/* string */
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
	IPTTRACE_UNLOADED,
};

#endif
