/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the module's files share, in their order from top to bottom.  A file
 * calls only files that stand below it here; what has to travel upwards goes
 * through struct ipttrace_events.
 *
 *	main.c		module init and exit
 *	netlink.c	the generic netlink protocol (uapi/ipttrace.h)
 *	control.c	the state machine: idle, armed for one socket, draining
 *	setup.c		what an ARM asks for: BPF programs, filter, limits
 *	probes.c	makes the kernel call the handlers: ftrace or kprobes
 *	handlers.c	a run of a table becomes a call, a log line a rule hit
 *	session.c	what the handlers use while armed, and their counters
 *	ruleset.c	the generation of the rules; has kretprobes of its own
 *	follow.c	the packets that matched, by address
 *	calls.c		the calls that are running, by task and skb
 *	record.c	fills in parts of a record
 *
 * compat.h hides the differences between kernels and is included by any file.
 */
#ifndef IPTTRACE_H
#define IPTTRACE_H

#include <linux/bpf.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/netlink.h>
#include <linux/percpu.h>
#include <linux/skbuff.h>
#include <linux/types.h>

#include "record.h"
#include "uapi/ipttrace.h"

struct genl_info;
struct net;
struct nf_hook_state;
struct xt_table;

/* A table has other rules from this generation on. */
struct ipttrace_change {
	u32 generation;
	u32 netns; /* inode; 0: unknown */
	u8 family;
	char table[IPTTRACE_NAME_LEN];
};

/* What lower files report upwards.  netlink.c implements it; all may sleep. */
struct ipttrace_events {
	void (*state_changed)(enum ipttrace_state state, u32 owner_pid,
			      enum ipttrace_reason reason);
	void (*rules_changed)(const struct ipttrace_change *change);
};

enum ipttrace_prog {
	IPTTRACE_PROG_CALL,
	IPTTRACE_PROG_RULE,
	IPTTRACE_PROGS,
};

/* What an ARM asks for. */
struct ipttrace_setup {
	struct bpf_prog *progs[IPTTRACE_PROGS];
	struct ipttrace_call_record __percpu *finished; /* input of CALL */
	struct bpf_prog *filter;			/* NULL: every packet */
	u32 netns;					/* inode, 0: all */
	u32 maxactive;
};

/* The socket that armed, and its process. */
struct ipttrace_owner {
	const struct net *net; /* compared, never dereferenced */
	u32 portid;
	u32 pid;
};

/* Counted by each CPU for itself; reset by arming. */
struct ipttrace_stats {
	u64 calls; /* in sums only */
	u64 refused;
	u64 matched;
	u64 followed;
	u64 flipped;
	u64 silenced;
	u64 unfollowed;
	u64 nmissed;
	u64 due[IPTTRACE_KINDS];
	u32 depth;
	u32 next_call;
};

/* What a GET returns. */
struct ipttrace_status {
	enum ipttrace_state state;
	u32 owner_pid;
	u32 targets;
	u32 ruleset;
	u64 skipped;
	struct ipttrace_stats stats;
};

/*
 * A run of a table, from entry to exit.  It lives in the call's kretprobe
 * instance.
 */
struct ipttrace_call {
	struct hlist_node node;
	struct task_struct *task;
	struct sk_buff *skb;
	const struct xt_table *table;
	struct ipttrace_call *parent;
	u64 start;
	u64 overhead; /* ns of it that our own handlers took */
	u16 rules;
	u8 depth; /* 1: outermost */
	u8 hook;
	u8 family;
	bool softirq;
	struct ipttrace_call_record record; /* filled in step by step */
};

/* netlink.c */
int ipttrace_netlink_setup(void);
void ipttrace_netlink_teardown(void);

/* control.c */
int ipttrace_control_setup(const struct ipttrace_events *events);
void ipttrace_control_teardown(void);
void ipttrace_control_lock(void);
void ipttrace_control_unlock(void);

/* control.c, with its lock held */
int ipttrace_control_may_arm(struct netlink_ext_ack *extack);
int ipttrace_control_arm(const struct ipttrace_setup *setup,
			 const struct ipttrace_owner *owner,
			 struct netlink_ext_ack *extack);
bool ipttrace_control_owned_by(const struct net *net, u32 portid);
void ipttrace_control_disarm(enum ipttrace_reason reason);
void ipttrace_control_set_filter(struct bpf_prog *filter);
void ipttrace_control_status(struct ipttrace_status *status);

/* setup.c */
int ipttrace_filter_get(struct bpf_prog **filter, struct genl_info *info);
void ipttrace_filter_put(struct bpf_prog *filter);
int ipttrace_setup_get(struct ipttrace_setup *setup, struct genl_info *info);
void ipttrace_setup_put(struct ipttrace_setup *setup);

/* probes.c, under the lock of control.c */
int ipttrace_probes_setup(u32 maxactive, struct netlink_ext_ack *extack);
void ipttrace_probes_teardown(void);
void ipttrace_probes_drained(void);
void ipttrace_probes_rescan(void);
u32 ipttrace_probes_targets(void);
u64 ipttrace_probes_skipped(void);

enum ipttrace_table {
	IPTTRACE_IP,
	IPTTRACE_IP6,
	IPTTRACE_TABLES,
};

/* handlers.c: the probes that lead to it, registered by probes.c */
extern struct kretprobe ipttrace_table_probes[IPTTRACE_TABLES];
extern struct kprobe ipttrace_log_probe;
/* The pre_handler of every kretprobe: takes an instance, hooks the return */
extern kprobe_pre_handler_t ipttrace_take_instance;

int ipttrace_table_hit(struct kprobe *p, struct pt_regs *regs);
int ipttrace_call_enter(struct kretprobe_instance *ri, struct pt_regs *regs);
int ipttrace_call_exit(struct kretprobe_instance *ri, struct pt_regs *regs);
int ipttrace_log_hit(struct kprobe *p, struct pt_regs *regs);
void ipttrace_ftrace_hit(unsigned long ip, unsigned long parent_ip,
			 struct ftrace_ops *ops, struct ftrace_regs *fregs);

/* session.c: read by handlers, written under the lock of control.c */
struct ipttrace_session {
	struct bpf_prog *progs[IPTTRACE_PROGS];
	struct ipttrace_call_record __percpu *finished;
	struct bpf_prog __rcu *filter;
	u32 netns;
	bool live;     /* calls are traced; else only log lines are silenced */
	bool filtered; /* there was a filter; still valid after teardown */
};

extern struct ipttrace_session ipttrace_session;
DECLARE_PER_CPU(struct ipttrace_stats, ipttrace_stats);

void ipttrace_session_setup(const struct ipttrace_setup *setup);
void ipttrace_session_teardown(void);
void ipttrace_session_start(void);
void ipttrace_session_stop(void);
void ipttrace_session_set_filter(struct bpf_prog *filter);
void ipttrace_session_stats(struct ipttrace_stats *sum);

/* ruleset.c: the generation from handlers, the rest under control.c's lock */
u32 ipttrace_ruleset(void);
void ipttrace_ruleset_setup(const struct ipttrace_events *events);
void ipttrace_ruleset_teardown(void);
void ipttrace_ruleset_rescan(void);
bool ipttrace_ruleset_watched(void);

/* follow.c: the pair under control.c's lock, the rest from handlers */
int ipttrace_follow_setup(void);
void ipttrace_follow_teardown(void);
bool ipttrace_follow_find(const struct sk_buff *skb);

/* Spares rejected packets the look-up until the first packet has matched. */
extern bool ipttrace_follow_used;

static inline bool ipttrace_follow_has(const struct sk_buff *skb)
{
	return READ_ONCE(ipttrace_follow_used) && ipttrace_follow_find(skb);
}

bool ipttrace_follow_add(const struct sk_buff *skb);
void ipttrace_follow_del(const struct sk_buff *skb);

/* calls.c: from handlers, except for the last */
void ipttrace_call_link(struct ipttrace_call *call);
void ipttrace_call_unlink(struct ipttrace_call *call);
struct ipttrace_call *ipttrace_call_find(const struct sk_buff *skb);
void ipttrace_calls_clear(void);

/* record.c: from handlers */
void ipttrace_head_conntrack(struct ipttrace_entry_head *head,
			     const struct sk_buff *skb);
void ipttrace_head_link(struct ipttrace_entry_head *head,
			const struct sk_buff *skb);
void ipttrace_entry_names(struct ipttrace_entry *entry,
			  const struct nf_hook_state *state);
enum ipttrace_match ipttrace_match_of(const struct ipttrace_call *call,
				      const char *chain, const char *comment,
				      u32 rulenum);

#endif
