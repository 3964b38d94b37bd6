/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the module's files share, in their order from top to bottom.  A file
 * calls only files that stand below it here; what has to travel upwards goes
 * through struct ipttrace_events.
 *
 *	main.c		module init and exit
 *	target.c	the target IPTTRACE
 *	netlink.c	the generic netlink protocol (uapi/ipttrace.h)
 *	messages.c	the contents of messages to user space
 *	control.c	the state machine: idle, armed for one socket, draining
 *	armed.c		for which socket and namespace, and whether that is over
 *	setup.c		what an ARM asks for: BPF programs, filter, limits
 *	probes.c	makes the kernel call the handlers: ftrace or kprobes; keeps
 *			ftrace on
 *	handlers.c	a run of a table becomes a call
 *	hits.c		a log line becomes a rule hit of it
 *	session.c	what the handlers use while armed, and their counters
 *	programs.c	which BPF programs are ours, and running one
 *	ruleset.c	the generations of the rules; has kretprobes of its own
 *	changes.c	changes of rules that are to be reported
 *	canary.c	whether kprobes hit, or are switched off
 *	flaggers.c	who else sets nf_trace
 *	breaks.c	rules with the target IPTTRACE, and who wants their packets
 *	follow.c	the packets that matched, by address
 *	calls.c		the calls that are running, by task and skb
 *	record.c	fills in parts of a record
 *
 * compat.h hides the differences between kernels and is included by any file;
 * breaks.h has what concerns the target alone.
 */
#ifndef IPTTRACE_H
#define IPTTRACE_H

#include <linux/bpf.h>
#include <linux/ftrace.h>
#include <linux/jump_label.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/netlink.h>
#include <linux/percpu.h>
#include <linux/skbuff.h>
#include <linux/types.h>

#include "record.h"
#include "uapi/ipttrace.h"

struct ftrace_regs; /* absent from 5.10 */
struct genl_info;
struct ipttrace_break_table;
struct net;
struct nf_hook_state;
struct work_struct;
struct xt_table;

/* The rules of a table have changed: once, or several times. */
struct ipttrace_change {
	u32 first; /* generation of the first change */
	u32 last;
	u32 netns; /* inode; 0: any namespace */
	u8 family; /* 0: any table */
	char table[IPTTRACE_NAME_LEN];
};

/* What lower files report upwards.  netlink.c implements it; all may sleep. */
struct ipttrace_events {
	/* Returns false if there is no memory to report it. */
	bool (*rules_changed)(const struct ipttrace_change *change);
	/* After all changes up to that generation. */
	void (*rules_reported)(u32 generation);
};

#define IPTTRACE_PENDING 12 /* tables of a namespace, for one report */

/* What the module keeps for each network namespace while it is loaded. */
struct ipttrace_net {
	u64 id; /* never used again, unlike the inode */

	/* ruleset.c: the rest is void unless this is the current epoch */
	u32 epoch;
	u32 begun; /* changes */
	u32 done;
	u32 last; /* generation of the newest change; 0: none */

	/* changes.c */
	struct list_head reports; /* linked while there are any pending */
	u32 pending;
	struct ipttrace_change change[IPTTRACE_PENDING];
};

extern unsigned int ipttrace_net_id;

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
	struct net *net; /* NULL: all; a reference until armed */
	u64 net_id;
	u32 maxactive;
	bool from_rules;
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
	u64 next_call; /* not reset */
};

/* What a GET returns. */
struct ipttrace_status {
	enum ipttrace_state state;
	enum ipttrace_reason reason;
	u32 owner_pid;
	u32 targets;
	u32 ruleset;
	u64 net_id;
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
	const struct net *net;
	struct ipttrace_call *parent;
	u64 start;
	u64 overhead; /* ns in our own handlers, and in calls inside it */
	u16 rules;
	u8 depth; /* 1: outermost */
	u8 hook;
	u8 family;
	bool softirq;
	bool marked; /* else nf_trace is clear as yet: there is no row */
	/* The newest call inside this one, of a packet that a target sends */
	const struct sk_buff *inner;
	const struct xt_table *inner_table; /* compared, never dereferenced */
	int inner_priority;
	u8 inner_hook;
	struct ipttrace_call_record record; /* filled in step by step */
};

/* netlink.c */
int ipttrace_netlink_setup(void);
void ipttrace_netlink_teardown(void);

/* messages.c */
int ipttrace_put_change(struct sk_buff *msg,
			const struct ipttrace_change *change);
int ipttrace_put_status(struct sk_buff *msg,
			const struct ipttrace_status *status);
int ipttrace_put_break(struct sk_buff *msg,
		       const struct ipttrace_break_table *table);

/* control.c */
int ipttrace_control_setup(const struct ipttrace_events *events);
void ipttrace_control_teardown(void);
int ipttrace_control_arm(struct ipttrace_setup *setup,
			 const struct ipttrace_owner *owner,
			 struct netlink_ext_ack *extack);
int ipttrace_control_disarm(const struct ipttrace_owner *owner,
			    struct netlink_ext_ack *extack);
int ipttrace_control_set_filter(struct bpf_prog *filter,
				const struct ipttrace_owner *owner,
				struct netlink_ext_ack *extack);
void ipttrace_control_status(struct ipttrace_status *status,
			     const struct net *net);

/* armed.c */
int ipttrace_armed_setup(struct work_struct *over);
void ipttrace_armed_teardown(void);
void ipttrace_armed_set(const struct ipttrace_owner *owner,
			const struct net *net);
void ipttrace_armed_clear(void);
void ipttrace_armed_drained(void);
bool ipttrace_armed_over(enum ipttrace_reason *reason);
bool ipttrace_armed_by(const struct ipttrace_owner *owner);
u32 ipttrace_armed_pid(void);
void ipttrace_armed_socket_gone(const struct net *net, u32 portid);

/* setup.c */
int ipttrace_filter_get(struct bpf_prog **filter, struct genl_info *info);
void ipttrace_filter_put(struct bpf_prog *filter);
struct net *ipttrace_net_get(struct genl_info *info);
int ipttrace_setup_get(struct ipttrace_setup *setup, struct genl_info *info);
void ipttrace_setup_put(struct ipttrace_setup *setup);

/* probes.c, under the lock of control.c */
int ipttrace_probes_hold(struct netlink_ext_ack *extack);
void ipttrace_probes_release(void);
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
/* The pre_handler of every kretprobe: takes an instance, hooks the return */
extern kprobe_pre_handler_t ipttrace_take_instance;

int ipttrace_table_hit(struct kprobe *p, struct pt_regs *regs);
int ipttrace_call_enter(struct kretprobe_instance *ri, struct pt_regs *regs);
int ipttrace_call_exit(struct kretprobe_instance *ri, struct pt_regs *regs);
void ipttrace_ftrace_hit(unsigned long ip, unsigned long parent_ip,
			 struct ftrace_ops *ops, struct ftrace_regs *fregs);

/* hits.c: its probe is registered by probes.c too */
extern struct kprobe ipttrace_log_probe;

int ipttrace_log_hit(struct kprobe *p, struct pt_regs *regs);
bool ipttrace_break_armed(const struct sk_buff *skb, const struct net *net,
			  bool legacy);

/* session.c: read by handlers, written under the lock of control.c */
struct ipttrace_session {
	struct bpf_prog *progs[IPTTRACE_PROGS];
	struct ipttrace_call_record __percpu *finished;
	struct bpf_prog __rcu *filter;
	const struct net *net; /* NULL: all; compared, never dereferenced */
	bool live; /* calls are traced; else only log lines are silenced */
	bool from_rules; /* only packets that the user's rules mark */
	/* Still valid after teardown: */
	bool flips_all; /* there is no filter, or was none at the end */
	unsigned long flipped_all_until; /* jiffies */
};

extern unsigned int ipttrace_drain_ms; /* a parameter of the module */
extern struct ipttrace_session ipttrace_session;
DECLARE_PER_CPU(struct ipttrace_stats, ipttrace_stats);

static __always_inline bool ipttrace_netns_wanted(const struct net *net)
{
	const struct net *only = READ_ONCE(ipttrace_session.net);

	return !only || only == net;
}

/* Whether packets are remembered by address. */
static inline bool ipttrace_session_follows(void)
{
	return ipttrace_session.from_rules ||
	       rcu_access_pointer(ipttrace_session.filter);
}

void ipttrace_session_setup(const struct ipttrace_setup *setup);
void ipttrace_session_teardown(void);
void ipttrace_session_start(void);
void ipttrace_session_stop(void);
void ipttrace_session_net_gone(void);
void ipttrace_session_set_filter(struct bpf_prog *filter);
bool ipttrace_session_flipped_all(void);
void ipttrace_session_stats(struct ipttrace_stats *sum);

/* programs.c: the check from setup.c, the run from handlers */
int ipttrace_program_check(const struct bpf_prog *prog,
			   const struct nlattr *path, enum ipttrace_prog which,
			   struct netlink_ext_ack *extack);
void ipttrace_program_run(const struct bpf_prog *prog, void *context);

/* ruleset.c: the generation from handlers, the rest under control.c's lock */
u32 ipttrace_ruleset(const struct net *net);
void ipttrace_ruleset_setup(const struct ipttrace_events *events,
			    const struct net *only);
void ipttrace_ruleset_teardown(void);
void ipttrace_ruleset_recover(void);
bool ipttrace_ruleset_watched(void);
u32 ipttrace_ruleset_last(void);
void ipttrace_ruleset_net_exit(struct net *net); /* without that lock */

/* changes.c: the pair under control.c's lock, the rest under its own */
void ipttrace_changes_setup(const struct ipttrace_events *events);
void ipttrace_changes_teardown(void);
unsigned long ipttrace_changes_lock(void);
void ipttrace_changes_unlock(unsigned long flags);
void ipttrace_change_note(struct ipttrace_net *rn,
			  const struct ipttrace_change *change);
void ipttrace_change_note_any(u32 generation);
void ipttrace_changes_wake(void); /* without any */

/* canary.c */
void ipttrace_canary_setup(void);
void ipttrace_canary_teardown(void);
bool ipttrace_kprobes_hit(void);

/* follow.c: the pair under control.c's lock, the rest from handlers */
int ipttrace_follow_setup(void);
void ipttrace_follow_teardown(void);
bool ipttrace_follow_find(const struct sk_buff *skb);

/* Spares rejected packets the look-up until the first packet has matched. */
extern bool ipttrace_follow_used;
extern const struct static_key_false *ipttrace_nft_tracing; /* or NULL */

/* Whether nftables' rules set nf_trace, before a table sees the packet. */
static __always_inline bool ipttrace_nft_traces(void)
{
	const struct static_key_false *key = READ_ONCE(ipttrace_nft_tracing);

	return key && atomic_read(&key->key.enabled);
}

static inline bool ipttrace_follow_has(const struct sk_buff *skb)
{
	return READ_ONCE(ipttrace_follow_used) && ipttrace_follow_find(skb);
}

bool ipttrace_follow_add(const struct sk_buff *skb);
void ipttrace_follow_del(const struct sk_buff *skb);

/* flaggers.c: the pair from probes.c, the rest from handlers */
void ipttrace_flaggers_setup(void);
void ipttrace_flaggers_teardown(void);
bool ipttrace_flaggers_any(const struct net *net);
bool ipttrace_flaggers_trace(void);

/* calls.c: from handlers, except for the last */
void ipttrace_call_link(struct ipttrace_call *call);
void ipttrace_call_unlink(struct ipttrace_call *call);
bool ipttrace_call_copied(struct ipttrace_call *call);
struct ipttrace_call *ipttrace_call_find(const struct sk_buff *skb);
void ipttrace_calls_clear(void);

/* record.c: from handlers */
void ipttrace_head_conntrack(struct ipttrace_entry_head *head,
			     const struct sk_buff *skb);
u8 ipttrace_ct_flags(const struct ipttrace_entry_head *head,
		     const struct xt_table *table,
		     const struct nf_hook_state *state);
void ipttrace_head_link(struct ipttrace_entry_head *head,
			const struct sk_buff *skb);
void ipttrace_entry_names(struct ipttrace_entry *entry,
			  const struct nf_hook_state *state);
void ipttrace_entry_phys(struct ipttrace_entry *entry,
			 const struct sk_buff *skb, struct net *net);
void ipttrace_entry_beside(struct ipttrace_entry *entry,
			   const struct xt_table *table,
			   const struct nf_hook_state *state);
void ipttrace_entry_packet(struct ipttrace_entry *entry,
			   const struct sk_buff *skb);
enum ipttrace_match ipttrace_match_of(const struct ipttrace_call *call,
				      const char *chain, const char *comment,
				      u32 rulenum);

#endif
