// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generic netlink side, as uapi/ipttrace.h tells it, and the state machine
 * behind it: idle, armed (for one socket), draining.
 */

#include <linux/bpf.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "compat.h"
#include "ipttrace.h"

static DEFINE_MUTEX(ipttrace_mutex);

/* All under the mutex. */
static enum ipttrace_state control_state;
static struct {
	const struct net *net;	/* compared only */
	u32 portid;
	u32 pid;
} owner;

static struct genl_family control_family;

static void control_drain(struct work_struct *work);
static void control_rescan(struct work_struct *work);
static DECLARE_DELAYED_WORK(drain_work, control_drain);
static DECLARE_WORK(rescan_work, control_rescan);

static const struct nla_policy control_policy[IPTTRACE_A_MAX + 1] = {
	[IPTTRACE_A_PROG_CALL]	= { .type = NLA_NUL_STRING, .len = 255 },
	[IPTTRACE_A_PROG_RULE]	= { .type = NLA_NUL_STRING, .len = 255 },
	[IPTTRACE_A_FILTER]	= { .type = NLA_BINARY,
				    .len = BPF_MAXINSNS *
					   sizeof(struct sock_filter) },
	[IPTTRACE_A_NETNS]	= { .type = NLA_U32 },
	[IPTTRACE_A_MAXACTIVE]	= { .type = NLA_U32 },
};

/* Indices of control_groups */
enum { GROUP_STATE, GROUP_RULES };

static void control_notify(enum ipttrace_reason reason)
{
	struct sk_buff *msg = nlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	void *head;

	if (!msg)
		return;
	head = genlmsg_put(msg, 0, 0, &control_family, 0, IPTTRACE_CMD_NOTIFY);
	if (!head ||
	    nla_put_u32(msg, IPTTRACE_A_STATE, control_state) ||
	    nla_put_u32(msg, IPTTRACE_A_OWNER_PID, owner.pid) ||
	    nla_put_u32(msg, IPTTRACE_A_REASON, reason)) {
		nlmsg_free(msg);
		return;
	}
	genlmsg_end(msg, head);
	ipttrace_multicast(&control_family, msg, GROUP_STATE);
}

/* From ruleset.c's worker, or while it is set up. */
void ipttrace_control_changed(const struct ipttrace_change *change)
{
	struct sk_buff *msg = nlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	void *head;

	if (!msg)
		return;
	head = genlmsg_put(msg, 0, 0, &control_family, 0, IPTTRACE_CMD_CHANGED);
	if (!head ||
	    nla_put_u32(msg, IPTTRACE_A_RULESET, change->generation) ||
	    nla_put_u32(msg, IPTTRACE_A_NETNS, change->netns) ||
	    nla_put_u32(msg, IPTTRACE_A_FAMILY, change->family) ||
	    nla_put_string(msg, IPTTRACE_A_TABLE, change->table)) {
		nlmsg_free(msg);
		return;
	}
	genlmsg_end(msg, head);
	ipttrace_multicast(&control_family, msg, GROUP_RULES);
}

/* Ends DRAINING at once, so that the next state may begin. */
static void drain_end(void)
{
	if (control_state != IPTTRACE_DRAINING)
		return;
	ipttrace_probes_drained();
	control_state = IPTTRACE_IDLE;
	control_notify(IPTTRACE_BY_OWNER);
}

static void control_drain(struct work_struct *work)
{
	mutex_lock(&ipttrace_mutex);
	drain_end();
	mutex_unlock(&ipttrace_mutex);
}

static void disarm(enum ipttrace_reason reason)
{
	ipttrace_probes_teardown();
	ipttrace_ruleset_teardown();
	control_state = IPTTRACE_DRAINING;
	control_notify(reason);
	memset(&owner, 0, sizeof(owner));
	schedule_delayed_work(&drain_work,
			      msecs_to_jiffies(IPTTRACE_DRAIN_MS));
	module_put(THIS_MODULE);
}

static bool owned_by(struct genl_info *info)
{
	return control_state == IPTTRACE_ARMED &&
	       owner.portid == info->snd_portid &&
	       net_eq(owner.net, genl_info_net(info));
}

static int prog_get(struct bpf_prog **prog, struct genl_info *info,
		    enum ipttrace_attr attr)
{
	const struct nlattr *path = info->attrs[attr];

	if (!path) {
		GENL_SET_ERR_MSG(info,
				 "ARM needs the pins of two BPF programs");
		return -EINVAL;
	}
	*prog = bpf_prog_get_type_path(nla_data(path), BPF_PROG_TYPE_KPROBE);
	if (!IS_ERR(*prog))
		return 0;

	switch (PTR_ERR(*prog)) {
	case -ENOENT:
		NL_SET_ERR_MSG_ATTR(info->extack, path,
				    "no BPF program is pinned at the path");
		break;
	case -EINVAL:
		NL_SET_ERR_MSG_ATTR(info->extack, path,
				    "what is pinned at the path is no BPF program of type kprobe");
		break;
	default:
		NL_SET_ERR_MSG_ATTR(info->extack, path,
				    "the path holds no BPF program");
	}
	return PTR_ERR(*prog);
}

/* No attribute: no filter, which is not an error. */
static int filter_get(struct bpf_prog **filter, struct genl_info *info)
{
	const struct nlattr *attr = info->attrs[IPTTRACE_A_FILTER];
	struct sock_fprog_kern code;
	int err;

	*filter = NULL;
	if (!attr)
		return 0;
	if (!nla_len(attr) || nla_len(attr) % sizeof(struct sock_filter)) {
		NL_SET_ERR_MSG_ATTR(info->extack, attr,
				    "the filter is not a number of BPF instructions");
		return -EINVAL;
	}
	code.len = nla_len(attr) / sizeof(struct sock_filter);
	code.filter = nla_data(attr);
	err = bpf_prog_create(filter, &code);
	if (err)
		NL_SET_ERR_MSG_ATTR(info->extack, attr,
				    "the filter is not a valid classic BPF program");
	return err;
}

static void setup_put(struct ipttrace_setup *setup)
{
	int i;

	if (setup->filter)
		bpf_prog_destroy(setup->filter);
	for (i = 0; i < IPTTRACE_PROGS; i++)
		if (!IS_ERR_OR_NULL(setup->progs[i]))
			bpf_prog_put(setup->progs[i]);
}

static int setup_get(struct ipttrace_setup *setup, struct genl_info *info)
{
	static const enum ipttrace_attr attrs[IPTTRACE_PROGS] = {
		[IPTTRACE_PROG_CALL] = IPTTRACE_A_PROG_CALL,
		[IPTTRACE_PROG_RULE] = IPTTRACE_A_PROG_RULE,
	};
	int err, i;

	for (i = 0; i < IPTTRACE_PROGS; i++) {
		err = prog_get(&setup->progs[i], info, attrs[i]);
		if (err)
			goto put;
	}
	setup->finished =
		ipttrace_prog_value(setup->progs[IPTTRACE_PROG_CALL],
				    sizeof(struct ipttrace_whole));
	if (!setup->finished) {
		NL_SET_ERR_MSG_ATTR(info->extack,
				    info->attrs[IPTTRACE_A_PROG_CALL],
				    "the BPF program for calls has no per-CPU array of this version's calls");
		err = -EINVAL;
		goto put;
	}
	err = filter_get(&setup->filter, info);
	if (err)
		goto put;
	if (info->attrs[IPTTRACE_A_NETNS])
		setup->netns = nla_get_u32(info->attrs[IPTTRACE_A_NETNS]);
	if (info->attrs[IPTTRACE_A_MAXACTIVE])
		setup->maxactive =
			nla_get_u32(info->attrs[IPTTRACE_A_MAXACTIVE]);
	if (setup->maxactive > 65536) {
		NL_SET_ERR_MSG_ATTR(info->extack,
				    info->attrs[IPTTRACE_A_MAXACTIVE],
				    "more than 65536 calls at a time");
		err = -EINVAL;
		goto put;
	}
	return 0;

put:
	setup_put(setup);
	return err;
}

static int control_arm(struct sk_buff *skb, struct genl_info *info)
{
	struct ipttrace_setup setup = {};
	int err;

	mutex_lock(&ipttrace_mutex);
	if (control_state == IPTTRACE_ARMED) {
		GENL_SET_ERR_MSG(info,
				 "another ipttrace traces on this host already");
		err = -EBUSY;
		goto unlock;
	}
	err = setup_get(&setup, info);
	if (err)
		goto unlock;

	/* Held while armed: rmmod says that it is in use. */
	if (!try_module_get(THIS_MODULE)) {
		GENL_SET_ERR_MSG(info, "the module is being removed");
		err = -ENODEV;
		goto put;
	}
	drain_end();
	/* Tracing goes on without it. */
	ipttrace_ruleset_setup();
	err = ipttrace_probes_setup(&setup, info->extack);
	if (err) {
		ipttrace_ruleset_teardown();
		module_put(THIS_MODULE);
		goto put;
	}
	owner.net = genl_info_net(info);
	owner.portid = info->snd_portid;
	owner.pid = task_tgid_nr(current);
	control_state = IPTTRACE_ARMED;
	control_notify(IPTTRACE_BY_OWNER);
	mutex_unlock(&ipttrace_mutex);
	return 0;

put:
	setup_put(&setup);
unlock:
	mutex_unlock(&ipttrace_mutex);
	return err;
}

static int control_disarm(struct sk_buff *skb, struct genl_info *info)
{
	int err = 0;

	mutex_lock(&ipttrace_mutex);
	if (owned_by(info)) {
		disarm(IPTTRACE_BY_OWNER);
	} else {
		GENL_SET_ERR_MSG(info, "not armed by this socket");
		err = -EPERM;
	}
	mutex_unlock(&ipttrace_mutex);
	return err;
}

static int control_filter(struct sk_buff *skb, struct genl_info *info)
{
	struct bpf_prog *filter;
	int err;

	mutex_lock(&ipttrace_mutex);
	if (!owned_by(info)) {
		GENL_SET_ERR_MSG(info, "not armed by this socket");
		err = -EPERM;
		goto unlock;
	}
	err = filter_get(&filter, info);
	if (err)
		goto unlock;
	filter = ipttrace_probes_swap_filter(filter);
	if (filter)
		bpf_prog_destroy(filter);
unlock:
	mutex_unlock(&ipttrace_mutex);
	return err;
}

static int put_u64(struct sk_buff *msg, enum ipttrace_attr attr, u64 value)
{
	return nla_put_u64_64bit(msg, attr, value, IPTTRACE_A_PAD);
}

static int put_state(struct sk_buff *msg)
{
	struct ipttrace_stats stats;
	u64 skipped;
	u32 targets = ipttrace_hooks_targets();

	if (ipttrace_ruleset_watched())
		targets |= BIT(2);
	ipttrace_probes_stats(&stats, &skipped);
	if (nla_put_u32(msg, IPTTRACE_A_STATE, control_state) ||
	    nla_put_u32(msg, IPTTRACE_A_VERSION, IPTTRACE_RECORD_VERSION) ||
	    nla_put_u32(msg, IPTTRACE_A_OWNER_PID, owner.pid) ||
	    nla_put_u32(msg, IPTTRACE_A_TARGETS, targets) ||
	    nla_put_u32(msg, IPTTRACE_A_RULESET, ipttrace_ruleset()) ||
	    put_u64(msg, IPTTRACE_A_CALLS, stats.calls) ||
	    put_u64(msg, IPTTRACE_A_REFUSED, stats.refused) ||
	    put_u64(msg, IPTTRACE_A_MATCHED, stats.matched) ||
	    put_u64(msg, IPTTRACE_A_FOLLOWED, stats.followed) ||
	    put_u64(msg, IPTTRACE_A_FLIPPED, stats.flipped) ||
	    put_u64(msg, IPTTRACE_A_SILENCED, stats.silenced) ||
	    put_u64(msg, IPTTRACE_A_DUE_ENTRY, stats.due[IPTTRACE_ENTRY]) ||
	    put_u64(msg, IPTTRACE_A_DUE_RULE, stats.due[IPTTRACE_RULE]) ||
	    put_u64(msg, IPTTRACE_A_DUE_EXIT, stats.due[IPTTRACE_EXIT]) ||
	    put_u64(msg, IPTTRACE_A_NMISSED, stats.nmissed) ||
	    put_u64(msg, IPTTRACE_A_SKIPPED, skipped) ||
	    put_u64(msg, IPTTRACE_A_UNFOLLOWED, stats.unfollowed) ||
	    nla_put_u32(msg, IPTTRACE_A_DEPTH, stats.depth))
		return -EMSGSIZE;
	return 0;
}

static int control_get(struct sk_buff *skb, struct genl_info *info)
{
	struct sk_buff *msg;
	void *head;
	int err;

	msg = genlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
	head = genlmsg_put_reply(msg, info, &control_family, 0,
				 IPTTRACE_CMD_GET);
	err = -EMSGSIZE;
	if (!head)
		goto free;
	mutex_lock(&ipttrace_mutex);
	err = put_state(msg);
	mutex_unlock(&ipttrace_mutex);
	if (err)
		goto free;
	genlmsg_end(msg, head);
	return genlmsg_reply(msg, info);

free:
	nlmsg_free(msg);
	return err;
}

static const struct genl_small_ops control_ops[] = {
	{
		.cmd	= IPTTRACE_CMD_ARM,
		.doit	= control_arm,
		.flags	= GENL_ADMIN_PERM,
	}, {
		.cmd	= IPTTRACE_CMD_DISARM,
		.doit	= control_disarm,
		.flags	= GENL_ADMIN_PERM,
	}, {
		.cmd	= IPTTRACE_CMD_GET,
		.doit	= control_get,
		.flags	= GENL_ADMIN_PERM,
	}, {
		.cmd	= IPTTRACE_CMD_FILTER,
		.doit	= control_filter,
		.flags	= GENL_ADMIN_PERM,
	},
};

static const struct genl_multicast_group control_groups[] = {
	[GROUP_STATE] = { .name = IPTTRACE_GENL_MCGRP },
	[GROUP_RULES] = { .name = IPTTRACE_GENL_MCGRP_RULES },
};

static struct genl_family control_family __ro_after_init = {
	.name		= IPTTRACE_GENL_NAME,
	.version	= IPTTRACE_GENL_VERSION,
	.maxattr	= IPTTRACE_A_MAX,
	.policy		= control_policy,
	.netnsok	= true,
	.module		= THIS_MODULE,
	.small_ops	= control_ops,
	.n_small_ops	= ARRAY_SIZE(control_ops),
	.mcgrps		= control_groups,
	.n_mcgrps	= ARRAY_SIZE(control_groups),
};

/* However the owner dies, its socket is closed: that disarms. */
static int control_socket_gone(struct notifier_block *block,
			       unsigned long event, void *data)
{
	const struct netlink_notify *gone = data;

	if (event != NETLINK_URELEASE || gone->protocol != NETLINK_GENERIC)
		return NOTIFY_DONE;
	mutex_lock(&ipttrace_mutex);
	if (control_state == IPTTRACE_ARMED && owner.portid == gone->portid &&
	    net_eq(owner.net, gone->net))
		disarm(IPTTRACE_OWNER_GONE);
	mutex_unlock(&ipttrace_mutex);
	return NOTIFY_DONE;
}

static struct notifier_block control_socket_block = {
	.notifier_call = control_socket_gone,
};

static void control_rescan(struct work_struct *work)
{
	mutex_lock(&ipttrace_mutex);
	if (control_state == IPTTRACE_ARMED) {
		ipttrace_hooks_rescan();
		ipttrace_ruleset_rescan();
	}
	mutex_unlock(&ipttrace_mutex);
}

static int control_module_moves(struct notifier_block *block,
				unsigned long event, void *data)
{
	const struct module *module = data;

	if ((event == MODULE_STATE_LIVE || event == MODULE_STATE_GOING) &&
	    (!strcmp(module->name, "ip_tables") ||
	     !strcmp(module->name, "ip6_tables")))
		schedule_work(&rescan_work);
	return NOTIFY_DONE;
}

static struct notifier_block control_module_block = {
	.notifier_call = control_module_moves,
};

int ipttrace_control_setup(void)
{
	int err;

	err = netlink_register_notifier(&control_socket_block);
	if (err)
		return err;
	err = register_module_notifier(&control_module_block);
	if (err)
		goto unregister_socket;
	err = genl_register_family(&control_family);
	if (err)
		goto unregister_module;
	return 0;

unregister_module:
	unregister_module_notifier(&control_module_block);
unregister_socket:
	netlink_unregister_notifier(&control_socket_block);
	return err;
}

/*
 * The module is held while armed, so that at most the draining is left to end.
 */
void ipttrace_control_teardown(void)
{
	genl_unregister_family(&control_family);
	unregister_module_notifier(&control_module_block);
	netlink_unregister_notifier(&control_socket_block);
	cancel_work_sync(&rescan_work);
	cancel_delayed_work_sync(&drain_work);
	mutex_lock(&ipttrace_mutex);
	if (control_state == IPTTRACE_DRAINING) {
		ipttrace_probes_drained();
		control_state = IPTTRACE_IDLE;
	}
	mutex_unlock(&ipttrace_mutex);
}
