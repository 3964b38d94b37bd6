/* SPDX-License-Identifier: GPL-2.0-only */
/* What the module's files share. */
#ifndef IPTTRACE_H
#define IPTTRACE_H

#include <linux/bpf.h>
#include <linux/ftrace.h>
#include <linux/kprobes.h>
#include <linux/netlink.h>
#include <linux/skbuff.h>
#include <linux/types.h>

#include "record.h"
#include "uapi/ipttrace.h"

struct nf_hook_state;
struct xt_table;

/* Counted by each CPU for itself; reset by arming. */
struct ipttrace_stats {
	u64 calls;	/* of a sum only */
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

enum ipttrace_prog {
	IPTTRACE_PROG_CALL,
	IPTTRACE_PROG_RULE,
	IPTTRACE_PROGS,
};

/* What an ARM asks for.  The probes own what it points to once armed. */
struct ipttrace_setup {
	struct bpf_prog *progs[IPTTRACE_PROGS];
	struct ipttrace_whole __percpu *finished;	/* where CALL finds it */
	struct bpf_prog *filter;	/* NULL: every packet */
	u32 netns;			/* inode, 0: all */
	u32 maxactive;
};

/* A run of a table, from its entry to its exit: in its kretprobe instance. */
struct ipttrace_call {
	struct hlist_node node;
	struct task_struct *task;
	struct sk_buff *skb;
	const struct xt_table *table;
	struct ipttrace_call *parent;
	u64 start;
	u64 overhead;	/* ns that our own handlers took of it */
	u16 rules;
	u8 depth;	/* 1: no call around it */
	u8 hook;
	u8 family;
	bool softirq;
	struct ipttrace_whole whole;	/* what is known of it by now */
};

/* calls.c: from handlers only */
void ipttrace_call_link(struct ipttrace_call *call);
void ipttrace_call_unlink(struct ipttrace_call *call);
struct ipttrace_call *ipttrace_call_find(const struct sk_buff *skb);
void ipttrace_calls_clear(void);

/* record.c: from handlers only */
void ipttrace_head_conntrack(struct ipttrace_entry_head *head,
			     const struct sk_buff *skb);
void ipttrace_head_link(struct ipttrace_entry_head *head,
			const struct sk_buff *skb);
void ipttrace_entry_names(struct ipttrace_entry *entry,
			  const struct nf_hook_state *state);
enum ipttrace_match ipttrace_match_of(const struct ipttrace_call *call,
				      const char *comment, u32 rulenum);

enum ipttrace_table {
	IPTTRACE_IP,
	IPTTRACE_IP6,
	IPTTRACE_TABLES,
};

/* hook.c: what makes the handlers be called */
extern struct kretprobe ipttrace_table_probes[IPTTRACE_TABLES];
extern struct kprobe ipttrace_log_probe;
/* What pre_handler of every kretprobe is: takes an instance, hooks the return */
extern kprobe_pre_handler_t ipttrace_take_instance;

int ipttrace_hooks_setup(u32 maxactive, struct netlink_ext_ack *extack);
void ipttrace_hooks_teardown(void);
void ipttrace_hooks_drained(void);
void ipttrace_hooks_rescan(void);
u32 ipttrace_hooks_targets(void);
u64 ipttrace_hooks_skipped(void);

/* probes.c: the handlers */
int ipttrace_table_hit(struct kprobe *p, struct pt_regs *regs);
int ipttrace_call_enter(struct kretprobe_instance *ri, struct pt_regs *regs);
int ipttrace_call_exit(struct kretprobe_instance *ri, struct pt_regs *regs);
int ipttrace_log_hit(struct kprobe *p, struct pt_regs *regs);
#ifdef IPTTRACE_FTRACE
void ipttrace_traced(unsigned long ip, unsigned long parent_ip,
		     struct ftrace_ops *ops, struct ftrace_regs *fregs);
#endif

/* probes.c: all under ipttrace_mutex */
int ipttrace_probes_setup(const struct ipttrace_setup *setup,
			  struct netlink_ext_ack *extack);
void ipttrace_probes_teardown(void);
void ipttrace_probes_drained(void);
struct bpf_prog *ipttrace_probes_swap_filter(struct bpf_prog *filter);
void ipttrace_probes_stats(struct ipttrace_stats *sum, u64 *skipped);

/* follow.c: the packets that matched, by address */
int ipttrace_follow_setup(void);
void ipttrace_follow_teardown(void);
bool ipttrace_follow_find(const struct sk_buff *skb);

/* Spares refused packets the look-up as long as nothing has ever matched. */
extern bool ipttrace_follow_used;

static inline bool ipttrace_follow_has(const struct sk_buff *skb)
{
	return READ_ONCE(ipttrace_follow_used) && ipttrace_follow_find(skb);
}

bool ipttrace_follow_add(const struct sk_buff *skb);
void ipttrace_follow_del(const struct sk_buff *skb);

/* A table has other rules from this generation on. */
struct ipttrace_change {
	u32 generation;
	u32 netns;	/* inode; 0: not known, some namespace's */
	u8 family;
	char table[IPTTRACE_NAME_LEN];
};

/* ruleset.c: the generation from handlers, the rest under ipttrace_mutex */
u32 ipttrace_ruleset(void);
void ipttrace_ruleset_setup(void);
void ipttrace_ruleset_teardown(void);
void ipttrace_ruleset_rescan(void);
bool ipttrace_ruleset_watched(void);

/* control.c */
void ipttrace_control_changed(const struct ipttrace_change *change);
int ipttrace_control_setup(void);
void ipttrace_control_teardown(void);

#endif
