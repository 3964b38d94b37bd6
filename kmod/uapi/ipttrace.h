/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ipttrace: the generic netlink protocol
 *
 * Family "ipttrace", version 1, multicast groups "state" and "rules".  Every command needs
 * CAP_NET_ADMIN in the initial user namespace.
 *
 * ARM      starts tracing, bound to the socket that sends it: when that socket
 *          is closed, in whatever way, tracing ends.
 *	PROG_CALL, PROG_RULE  (string) the paths at which two BPF programs of
 *		type kprobe are pinned.  CALL uses a per-CPU array whose value is
 *		of the size of a struct ipttrace_whole (bpf/record.h): there it
 *		finds a finished call with its first rules; its context is
 *		empty.  The registers of RULE hold, from the first byte of
 *		struct pt_regs on, a struct ipttrace_rule: each rule of a call
 *		beyond those, before the call is finished.
 *	FILTER	(binary, optional) an array of struct sock_filter: classic BPF
 *		on the packet from its network header on.  None: every packet.
 *	NETNS	(u32, optional) inode of the one network namespace to trace.
 *	MAXACTIVE (u32, optional) calls that may be traced at one time.
 *
 *	-EBUSY	another socket has armed it (GET tells whose)
 *	-ENOENT	no program at a path; neither ip_tables nor ip6_tables there;
 *		no nf_log_trace in this kernel
 *	-EINVAL	not a kprobe program, or no program at all; CALL without its
 *		array; not a classic BPF program
 *	-EACCES	nothing of BPF at a path
 *	-ENOMEM
 *	All with a sentence in NLMSGERR_ATTR_MSG; nothing stays registered.
 *
 * FILTER   (owner only) replaces the filter; without the attribute: none.
 *	-EPERM	not armed by this socket.  -EINVAL as above.
 *
 * DISARM   (owner only) ends tracing.  When it returns no call is traced any
 *          more; for DRAIN_MS longer the log lines of packets that are still on
 *          their way are kept silent.
 *	-EPERM	not armed by this socket.
 *
 * GET      gives STATE, VERSION, OWNER_PID, TARGETS, RULESET and all counters.
 *          The counters are those of the newest ARM and stay after DISARM.
 *          RULESET is the generation of all tables' rules: it begins at 1 with
 *          the first ARM and rises by 1 with each change of a table, and by 1
 *          for all that may have been changed between a DISARM and an ARM.  0
 *          while a change is under way, and where changes are not seen (TARGETS
 *          has no bit 2).
 *
 * Group "state": a message of command NOTIFY with STATE, OWNER_PID and REASON
 * at every change.
 *
 * Group "rules": while armed, a message of command CHANGED for each change of a
 * table's rules, with RULESET (the generation from which on they hold), NETNS
 * (0: some namespace's), FAMILY (0: any table may have been changed) and TABLE;
 * no generation is left out unless the message of it was lost.
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
	IPTTRACE_A_TARGETS,	/* u32: bit 0 ipt_do_table, bit 1 ip6t_do_table,
				   bit 2 changes of rules */
	IPTTRACE_A_CALLS,	/* u64: calls that the probe saw */
	IPTTRACE_A_REFUSED,	/* u64: of these, refused by filter or netns */
	IPTTRACE_A_MATCHED,	/* u64: of these, matched by the filter */
	IPTTRACE_A_FOLLOWED,	/* u64: of these, matched at an earlier hook */
	IPTTRACE_A_FLIPPED,	/* u64: packets whose nf_trace it set */
	IPTTRACE_A_SILENCED,	/* u64: log calls kept silent */
	IPTTRACE_A_DUE_ENTRY,	/* u64: records that should come */
	IPTTRACE_A_DUE_RULE,	/* u64 */
	IPTTRACE_A_DUE_EXIT,	/* u64 */
	IPTTRACE_A_NMISSED,	/* u64: calls due, but no instance was free */
	IPTTRACE_A_SKIPPED,	/* u64: probe hits inside another probe's handler */
	IPTTRACE_A_UNFOLLOWED,	/* u64: packets forgotten for want of room */
	IPTTRACE_A_DEPTH,	/* u32: deepest nesting, 1: no call in a call */
	IPTTRACE_A_RULESET,	/* u32: generation of all rules, 0: not known */
	IPTTRACE_A_FAMILY,	/* u32: NFPROTO_IPV4, NFPROTO_IPV6 */
	IPTTRACE_A_TABLE,	/* string */
	__IPTTRACE_A_END,
};
#define IPTTRACE_A_MAX (__IPTTRACE_A_END - 1)

enum ipttrace_state {
	IPTTRACE_IDLE,
	IPTTRACE_ARMED,
	IPTTRACE_DRAINING,	/* disarmed; late log lines still kept silent */
};

enum ipttrace_reason {
	IPTTRACE_BY_OWNER,
	IPTTRACE_OWNER_GONE,	/* its socket was closed */
	IPTTRACE_UNLOADED,
};

#endif
