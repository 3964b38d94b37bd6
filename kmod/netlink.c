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

static int put_change(struct sk_buff *msg, const struct ipttrace_change *change)
{
	if (nla_put_u32(msg, IPTTRACE_A_RULESET_FIRST, change->first) ||
	    nla_put_u32(msg, IPTTRACE_A_RULESET, change->last) ||
	    nla_put_u32(msg, IPTTRACE_A_NETNS, change->netns) ||
	    nla_put_u32(msg, IPTTRACE_A_FAMILY, change->family) ||
	    nla_put_string(msg, IPTTRACE_A_TABLE, change->table))
		return -EMSGSIZE;
	return 0;
}

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
		if (!head || (change ? put_change(msg, change) :
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

static int put_u64(struct sk_buff *msg, enum ipttrace_attr attr, u64 value)
{
	return nla_put_u64_64bit(msg, attr, value, IPTTRACE_A_PAD);
}

static int put_status(struct sk_buff *msg, const struct ipttrace_status *status)
{
	const struct ipttrace_stats *stats = &status->stats;

	if (nla_put_u32(msg, IPTTRACE_A_PROTOCOL, IPTTRACE_PROTOCOL) ||
	    nla_put_u32(msg, IPTTRACE_A_STATE, status->state) ||
	    nla_put_u32(msg, IPTTRACE_A_REASON, status->reason) ||
	    nla_put_u32(msg, IPTTRACE_A_VERSION, IPTTRACE_RECORD_VERSION) ||
	    nla_put_u32(msg, IPTTRACE_A_OWNER_PID, status->owner_pid) ||
	    nla_put_u32(msg, IPTTRACE_A_TARGETS, status->targets) ||
	    nla_put_u32(msg, IPTTRACE_A_RULESET, status->ruleset) ||
	    put_u64(msg, IPTTRACE_A_NETNS_ID, status->net_id) ||
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
	{
		.cmd = IPTTRACE_CMD_WATCH,
		.doit = netlink_watch,
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
