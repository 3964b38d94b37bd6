// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generic netlink protocol of uapi/ipttrace.h: commands in, answers and
 * multicasts out.  What a command does is in control.c.
 */

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/notifier.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "compat.h"
#include "ipttrace.h"

static struct genl_family netlink_family;

static const struct nla_policy netlink_policy[IPTTRACE_A_MAX + 1] = {
	[IPTTRACE_A_PROG_CALL] = { .type = NLA_NUL_STRING, .len = 255 },
	[IPTTRACE_A_PROG_RULE] = { .type = NLA_NUL_STRING, .len = 255 },
	[IPTTRACE_A_FILTER] = { .type = NLA_BINARY,
				.len = BPF_MAXINSNS *
				       sizeof(struct sock_filter) },
	[IPTTRACE_A_NETNS] = { .type = NLA_U32 },
	[IPTTRACE_A_MAXACTIVE] = { .type = NLA_U32 },
};

/* Indices of netlink_groups */
enum { GROUP_STATE, GROUP_RULES };

static void notify_state(enum ipttrace_state state, u32 owner_pid,
			 enum ipttrace_reason reason)
{
	struct sk_buff *msg = nlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	void *head;

	if (!msg)
		return;
	head = genlmsg_put(msg, 0, 0, &netlink_family, 0, IPTTRACE_CMD_NOTIFY);
	if (!head || nla_put_u32(msg, IPTTRACE_A_STATE, state) ||
	    nla_put_u32(msg, IPTTRACE_A_OWNER_PID, owner_pid) ||
	    nla_put_u32(msg, IPTTRACE_A_REASON, reason)) {
		nlmsg_free(msg);
		return;
	}
	genlmsg_end(msg, head);
	ipttrace_multicast(&netlink_family, msg, GROUP_STATE);
}

static void notify_rules(const struct ipttrace_change *change)
{
	struct sk_buff *msg = nlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	void *head;

	if (!msg)
		return;
	head = genlmsg_put(msg, 0, 0, &netlink_family, 0, IPTTRACE_CMD_CHANGED);
	if (!head || nla_put_u32(msg, IPTTRACE_A_RULESET, change->generation) ||
	    nla_put_u32(msg, IPTTRACE_A_NETNS, change->netns) ||
	    nla_put_u32(msg, IPTTRACE_A_FAMILY, change->family) ||
	    nla_put_string(msg, IPTTRACE_A_TABLE, change->table)) {
		nlmsg_free(msg);
		return;
	}
	genlmsg_end(msg, head);
	ipttrace_multicast(&netlink_family, msg, GROUP_RULES);
}

static const struct ipttrace_events netlink_events = {
	.state_changed = notify_state,
	.rules_changed = notify_rules,
};

static int netlink_arm(struct sk_buff *skb, struct genl_info *info)
{
	const struct ipttrace_owner owner = {
		.net = genl_info_net(info),
		.portid = info->snd_portid,
		.pid = task_tgid_nr(current),
	};
	struct ipttrace_setup setup = {};
	int err;

	ipttrace_control_lock();
	err = ipttrace_control_may_arm(info->extack);
	if (err)
		goto unlock;
	err = ipttrace_setup_get(&setup, info);
	if (err)
		goto unlock;
	err = ipttrace_control_arm(&setup, &owner, info->extack);
	if (err)
		ipttrace_setup_put(&setup);
unlock:
	ipttrace_control_unlock();
	return err;
}

static int owner_check(struct genl_info *info)
{
	if (ipttrace_control_owned_by(genl_info_net(info), info->snd_portid))
		return 0;
	GENL_SET_ERR_MSG(info, "not armed by this socket");
	return -EPERM;
}

static int netlink_disarm(struct sk_buff *skb, struct genl_info *info)
{
	int err;

	ipttrace_control_lock();
	err = owner_check(info);
	if (!err)
		ipttrace_control_disarm(IPTTRACE_BY_OWNER);
	ipttrace_control_unlock();
	return err;
}

static int netlink_filter(struct sk_buff *skb, struct genl_info *info)
{
	struct bpf_prog *filter;
	int err;

	ipttrace_control_lock();
	err = owner_check(info);
	if (err)
		goto unlock;
	err = ipttrace_filter_get(&filter, info);
	if (err)
		goto unlock;
	ipttrace_control_set_filter(filter);
unlock:
	ipttrace_control_unlock();
	return err;
}

static int put_u64(struct sk_buff *msg, enum ipttrace_attr attr, u64 value)
{
	return nla_put_u64_64bit(msg, attr, value, IPTTRACE_A_PAD);
}

static int put_status(struct sk_buff *msg, const struct ipttrace_status *status)
{
	const struct ipttrace_stats *stats = &status->stats;

	if (nla_put_u32(msg, IPTTRACE_A_STATE, status->state) ||
	    nla_put_u32(msg, IPTTRACE_A_VERSION, IPTTRACE_RECORD_VERSION) ||
	    nla_put_u32(msg, IPTTRACE_A_OWNER_PID, status->owner_pid) ||
	    nla_put_u32(msg, IPTTRACE_A_TARGETS, status->targets) ||
	    nla_put_u32(msg, IPTTRACE_A_RULESET, status->ruleset) ||
	    put_u64(msg, IPTTRACE_A_CALLS, stats->calls) ||
	    put_u64(msg, IPTTRACE_A_REFUSED, stats->refused) ||
	    put_u64(msg, IPTTRACE_A_MATCHED, stats->matched) ||
	    put_u64(msg, IPTTRACE_A_FOLLOWED, stats->followed) ||
	    put_u64(msg, IPTTRACE_A_FLIPPED, stats->flipped) ||
	    put_u64(msg, IPTTRACE_A_SILENCED, stats->silenced) ||
	    put_u64(msg, IPTTRACE_A_DUE_ENTRY, stats->due[IPTTRACE_ENTRY]) ||
	    put_u64(msg, IPTTRACE_A_DUE_RULE, stats->due[IPTTRACE_RULE]) ||
	    put_u64(msg, IPTTRACE_A_DUE_EXIT, stats->due[IPTTRACE_EXIT]) ||
	    put_u64(msg, IPTTRACE_A_NMISSED, stats->nmissed) ||
	    put_u64(msg, IPTTRACE_A_SKIPPED, status->skipped) ||
	    put_u64(msg, IPTTRACE_A_UNFOLLOWED, stats->unfollowed) ||
	    nla_put_u32(msg, IPTTRACE_A_DEPTH, stats->depth))
		return -EMSGSIZE;
	return 0;
}

static int netlink_get(struct sk_buff *skb, struct genl_info *info)
{
	struct ipttrace_status status;
	struct sk_buff *msg;
	void *head;
	int err;

	msg = genlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
	err = -EMSGSIZE;
	head = genlmsg_put_reply(msg, info, &netlink_family, 0,
				 IPTTRACE_CMD_GET);
	if (!head)
		goto free;
	ipttrace_control_lock();
	ipttrace_control_status(&status);
	ipttrace_control_unlock();
	err = put_status(msg, &status);
	if (err)
		goto free;
	genlmsg_end(msg, head);
	return genlmsg_reply(msg, info);

free:
	nlmsg_free(msg);
	return err;
}

static const struct genl_small_ops netlink_ops[] = {
	{
		.cmd = IPTTRACE_CMD_ARM,
		.doit = netlink_arm,
		.flags = GENL_ADMIN_PERM,
	},
	{
		.cmd = IPTTRACE_CMD_DISARM,
		.doit = netlink_disarm,
		.flags = GENL_ADMIN_PERM,
	},
	{
		.cmd = IPTTRACE_CMD_GET,
		.doit = netlink_get,
		.flags = GENL_ADMIN_PERM,
	},
	{
		.cmd = IPTTRACE_CMD_FILTER,
		.doit = netlink_filter,
		.flags = GENL_ADMIN_PERM,
	},
};

static const struct genl_multicast_group netlink_groups[] = {
	[GROUP_STATE] = { .name = IPTTRACE_GENL_MCGRP },
	[GROUP_RULES] = { .name = IPTTRACE_GENL_MCGRP_RULES },
};

static struct genl_family netlink_family __ro_after_init = {
	.name = IPTTRACE_GENL_NAME,
	.version = IPTTRACE_GENL_VERSION,
	.maxattr = IPTTRACE_A_MAX,
	.policy = netlink_policy,
	.netnsok = true,
	.module = THIS_MODULE,
	.small_ops = netlink_ops,
	.n_small_ops = ARRAY_SIZE(netlink_ops),
	.mcgrps = netlink_groups,
	.n_mcgrps = ARRAY_SIZE(netlink_groups),
};

/* However the owner dies, its socket is closed: that disarms. */
static int netlink_socket_gone(struct notifier_block *block,
			       unsigned long event, void *data)
{
	const struct netlink_notify *gone = data;

	if (event != NETLINK_URELEASE || gone->protocol != NETLINK_GENERIC)
		return NOTIFY_DONE;
	ipttrace_control_lock();
	if (ipttrace_control_owned_by(gone->net, gone->portid))
		ipttrace_control_disarm(IPTTRACE_OWNER_GONE);
	ipttrace_control_unlock();
	return NOTIFY_DONE;
}

static struct notifier_block netlink_socket_block = {
	.notifier_call = netlink_socket_gone,
};

int ipttrace_netlink_setup(void)
{
	int err;

	err = ipttrace_control_setup(&netlink_events);
	if (err)
		return err;
	err = netlink_register_notifier(&netlink_socket_block);
	if (err)
		goto teardown_control;
	err = genl_register_family(&netlink_family);
	if (err)
		goto unregister_socket;
	return 0;

unregister_socket:
	netlink_unregister_notifier(&netlink_socket_block);
teardown_control:
	ipttrace_control_teardown();
	return err;
}

void ipttrace_netlink_teardown(void)
{
	genl_unregister_family(&netlink_family);
	netlink_unregister_notifier(&netlink_socket_block);
	ipttrace_control_teardown();
}
