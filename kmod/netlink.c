// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generic netlink protocol of uapi/ipttrace.h: commands in, answers and
 * reports out.  What a command does is in control.c.
 */

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/sched.h>
#include <linux/string.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "breaks.h"
#include "compat.h"
#include "ipttrace.h"

static struct genl_family netlink_family;

static const struct nla_policy netlink_policy[IPTTRACE_A_MAX + 1] = {
	[IPTTRACE_A_PROG_CALL] = { .type = NLA_NUL_STRING, .len = 255 },
	[IPTTRACE_A_PROG_RULE] = { .type = NLA_NUL_STRING, .len = 255 },
	[IPTTRACE_A_FILTER] = { .type = NLA_BINARY,
				.len = BPF_MAXINSNS *
				       sizeof(struct sock_filter) },
	[IPTTRACE_A_MAXACTIVE] = { .type = NLA_U32 },
	[IPTTRACE_A_NETNS_FD] = { .type = NLA_U32 },
	[IPTTRACE_A_NETNS_ID] = { .type = NLA_U64 },
	[IPTTRACE_A_FROM_RULES] = { .type = NLA_FLAG },
};

#define WATCHERS 8

/*
 * The sockets that sent WATCH.  Not a multicast group: any user can join those,
 * on some kernels in any network namespace.
 *
 * Under the mutex.  A socket that is closed waits for it only if it is one of
 * them: until then its namespace is valid.
 */
static DEFINE_MUTEX(watch_mutex);
static struct {
	struct net *net; /* NULL: free */
	u32 portid;
} watchers[WATCHERS];

/* change is NULL: all changes up to that generation have been reported. */
static bool notify(const struct ipttrace_change *change, u32 generation)
{
	bool sent = true;
	int i;

	mutex_lock(&watch_mutex);
	for (i = 0; i < WATCHERS && sent; i++) {
		u32 portid = watchers[i].portid;
		struct sk_buff *msg;
		void *head;

		if (!watchers[i].net)
			continue;
		msg = nlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
		sent = msg;
		if (!sent)
			break;
		head = genlmsg_put(msg, portid, 0, &netlink_family, 0,
				   IPTTRACE_CMD_CHANGED);
		if (!head || (change ? ipttrace_put_change(msg, change) :
				       nla_put_u32(msg, IPTTRACE_A_RULESET,
						   generation))) {
			nlmsg_free(msg);
			continue;
		}
		genlmsg_end(msg, head);
		/* If it has no room, its next read fails with ENOBUFS. */
		genlmsg_unicast(watchers[i].net, msg, portid);
	}
	mutex_unlock(&watch_mutex);
	return sent;
}

static bool notify_changed(const struct ipttrace_change *change)
{
	return notify(change, 0);
}

static void notify_reported(u32 generation)
{
	notify(NULL, generation);
}

static const struct ipttrace_events netlink_events = {
	.rules_changed = notify_changed,
	.rules_reported = notify_reported,
};

static int netlink_watch(struct sk_buff *skb, struct genl_info *info)
{
	struct net *net = genl_info_net(info);
	int i, err = 0;

	mutex_lock(&watch_mutex);
	for (i = 0; i < WATCHERS; i++)
		if (watchers[i].net == net &&
		    watchers[i].portid == info->snd_portid)
			goto unlock;
	for (i = 0; i < WATCHERS && watchers[i].net; i++)
		;
	if (i < WATCHERS) {
		WRITE_ONCE(watchers[i].portid, info->snd_portid);
		WRITE_ONCE(watchers[i].net, net);
	} else {
		GENL_SET_ERR_MSG(info, "too many sockets watch the rules");
		err = -ENOSPC;
	}
unlock:
	mutex_unlock(&watch_mutex);
	return err;
}

/* It cannot be closed before WATCH, sent by it, has returned. */
static void watcher_gone(const struct net *net, u32 portid)
{
	int i;

	for (i = 0; i < WATCHERS; i++) {
		if (READ_ONCE(watchers[i].net) != net ||
		    READ_ONCE(watchers[i].portid) != portid)
			continue;
		mutex_lock(&watch_mutex);
		if (watchers[i].net == net && watchers[i].portid == portid)
			WRITE_ONCE(watchers[i].net, NULL);
		mutex_unlock(&watch_mutex);
	}
}

static struct ipttrace_owner sender(struct genl_info *info)
{
	return (struct ipttrace_owner){
		.net = genl_info_net(info),
		.portid = info->snd_portid,
		.pid = task_tgid_nr(current),
	};
}

static int netlink_arm(struct sk_buff *skb, struct genl_info *info)
{
	const struct ipttrace_owner owner = sender(info);
	struct ipttrace_setup setup = {};
	int err;

	err = ipttrace_setup_get(&setup, info);
	if (err)
		return err;
	err = ipttrace_control_arm(&setup, &owner, info->extack);
	if (err)
		ipttrace_setup_put(&setup);
	else if (setup.net)
		put_net(setup.net);
	return err;
}

static int netlink_disarm(struct sk_buff *skb, struct genl_info *info)
{
	const struct ipttrace_owner owner = sender(info);

	return ipttrace_control_disarm(&owner, info->extack);
}

static int netlink_filter(struct sk_buff *skb, struct genl_info *info)
{
	const struct ipttrace_owner owner = sender(info);
	struct bpf_prog *filter;
	int err;

	err = ipttrace_filter_get(&filter, info);
	if (err)
		return err;
	err = ipttrace_control_set_filter(filter, &owner, info->extack);
	if (err)
		ipttrace_filter_put(filter);
	return err;
}

static int netlink_get(struct sk_buff *skb, struct genl_info *info)
{
	struct ipttrace_status status;
	struct net *net = ipttrace_net_get(info);
	struct sk_buff *msg;
	void *head;
	int err;

	if (IS_ERR(net))
		return PTR_ERR(net);
	ipttrace_control_status(&status, net);
	if (net)
		put_net(net);
	msg = genlmsg_new(NLMSG_DEFAULT_SIZE, GFP_KERNEL);
	if (!msg)
		return -ENOMEM;
	err = -EMSGSIZE;
	head = genlmsg_put_reply(msg, info, &netlink_family, 0,
				 IPTTRACE_CMD_GET);
	if (!head)
		goto free;
	err = ipttrace_put_status(msg, &status);
	if (err)
		goto free;
	genlmsg_end(msg, head);
	return genlmsg_reply(msg, info);

free:
	nlmsg_free(msg);
	return err;
}

static int netlink_break(struct sk_buff *skb, struct genl_info *info)
{
	struct net *only = ipttrace_net_get(info);
	int err;

	if (IS_ERR(only))
		return PTR_ERR(only);
	err = ipttrace_breaks_add(genl_info_net(info), info->snd_portid, only);
	/* It is not kept alive: see ipttrace_breaks_net_exit(). */
	if (only)
		put_net(only);
	if (err)
		GENL_SET_ERR_MSG(info, "too many sockets want breakpoints");
	return err;
}

static int netlink_breaks(struct sk_buff *msg, struct netlink_callback *cb)
{
	struct ipttrace_break_table table;

	for (; ipttrace_breaks_get(cb->args[0], &table); cb->args[0]++) {
		void *head = genlmsg_put(msg, NETLINK_CB(cb->skb).portid,
					 cb->nlh->nlmsg_seq, &netlink_family,
					 NLM_F_MULTI, IPTTRACE_CMD_BREAKS);

		if (!head)
			break;
		if (ipttrace_put_break(msg, &table)) {
			genlmsg_cancel(msg, head);
			break;
		}
		genlmsg_end(msg, head);
	}
	return msg->len;
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
	{
		.cmd = IPTTRACE_CMD_WATCH,
		.doit = netlink_watch,
		.flags = GENL_ADMIN_PERM,
	},
	{
		.cmd = IPTTRACE_CMD_BREAK,
		.doit = netlink_break,
		.flags = GENL_ADMIN_PERM,
	},
	{
		.cmd = IPTTRACE_CMD_BREAKS,
		.dumpit = netlink_breaks,
		.flags = GENL_ADMIN_PERM,
	},
};

/*
 * In all namespaces, for those who start ipttrace inside one (ip netns exec).
 * Parallel: else the lock of all families would be held while arming.
 */

static struct genl_family netlink_family __ro_after_init = {
	.name = IPTTRACE_GENL_NAME,
	.version = IPTTRACE_GENL_VERSION,
	.maxattr = IPTTRACE_A_MAX,
	.policy = netlink_policy,
	.netnsok = true,
	.parallel_ops = true,
	.module = THIS_MODULE,
	.small_ops = netlink_ops,
	.n_small_ops = ARRAY_SIZE(netlink_ops),
};

/* For each socket of any family that is closed: must not wait. */
static int netlink_socket_gone(struct notifier_block *block,
			       unsigned long event, void *data)
{
	const struct netlink_notify *gone = data;

	if (event != NETLINK_URELEASE || gone->protocol != NETLINK_GENERIC)
		return NOTIFY_DONE;
	ipttrace_armed_socket_gone(gone->net, gone->portid);
	watcher_gone(gone->net, gone->portid);
	ipttrace_breaks_socket_gone(gone->net, gone->portid);
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
