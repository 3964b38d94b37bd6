// SPDX-License-Identifier: GPL-2.0-only
/*
 * Breakpoints: which tables have rules with the target IPTTRACE, and who wants
 * packets to be traced from these rules on.
 *
 * That is the owner of an ARM with FROM_RULES, and sockets that have sent BREAK
 * for an engine that does not need ARM.  Without any, the rules do nothing.
 */

#include <linux/err.h>
#include <linux/jump_label.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/netfilter/x_tables.h>
#include <linux/rculist.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <net/net_namespace.h>

#include "breaks.h"
#include "ipttrace.h"

#define BREAK_SOCKETS 8

/* Sockets are closed, and namespaces end, where nothing may wait. */
static DEFINE_SPINLOCK(sockets_lock);
static struct {
	const struct net *owner; /* NULL: free; compared, never dereferenced */
	u32 portid;
	const struct net *only; /* NULL: all; likewise */
} sockets[BREAK_SOCKETS];
static unsigned int sockets_used;

static DEFINE_MUTEX(tables_mutex); /* of the list, and of what it counts */
static LIST_HEAD(break_tables);

/* Packets are traced from breakpoints on as long as this socket is open. */
int ipttrace_breaks_add(const struct net *owner, u32 portid,
			const struct net *only)
{
	int i, found = -1;

	spin_lock_bh(&sockets_lock);
	for (i = 0; i < BREAK_SOCKETS; i++) {
		if (sockets[i].owner == owner && sockets[i].portid == portid)
			break;
		if (!sockets[i].owner && found < 0)
			found = i;
	}
	if (i < BREAK_SOCKETS) {
		WRITE_ONCE(sockets[i].only, only);
		found = i;
	} else if (found >= 0) {
		sockets[found].portid = portid;
		WRITE_ONCE(sockets[found].only, only);
		smp_store_release(&sockets[found].owner, owner);
		WRITE_ONCE(sockets_used, sockets_used + 1);
	}
	spin_unlock_bh(&sockets_lock);
	return found < 0 ? -ENOSPC : 0;
}

static void socket_free(int i)
{
	WRITE_ONCE(sockets[i].owner, NULL);
	WRITE_ONCE(sockets_used, sockets_used - 1);
}

void ipttrace_breaks_socket_gone(const struct net *owner, u32 portid)
{
	int i;

	if (!READ_ONCE(sockets_used))
		return;
	spin_lock_bh(&sockets_lock);
	for (i = 0; i < BREAK_SOCKETS; i++)
		if (sockets[i].owner == owner && sockets[i].portid == portid)
			socket_free(i);
	spin_unlock_bh(&sockets_lock);
}

/* A new namespace may get its address: that was not asked for. */
void ipttrace_breaks_net_exit(const struct net *net)
{
	int i;

	spin_lock_bh(&sockets_lock);
	for (i = 0; i < BREAK_SOCKETS; i++)
		if (sockets[i].owner && sockets[i].only == net)
			socket_free(i);
	spin_unlock_bh(&sockets_lock);
}

/* Whether a socket wants packets of this namespace. */
bool ipttrace_breaks_socket_wants(const struct net *net)
{
	int i;

	if (likely(!READ_ONCE(sockets_used)))
		return false;
	for (i = 0; i < BREAK_SOCKETS; i++) {
		const struct net *only;

		if (!smp_load_acquire(&sockets[i].owner))
			continue;
		only = READ_ONCE(sockets[i].only);
		if (!only || only == net)
			return true;
	}
	return false;
}
NOKPROBE_SYMBOL(ipttrace_breaks_socket_wants);

/*
 * The table that a rule is checked for; it is created if need be.  It stays
 * where it is until all its rules are destroyed.
 */
static const struct xt_table *table_find(struct net *net, u8 family,
					 const char *name)
{
	struct xt_table *table = xt_find_table_lock(net, family, name);

	if (IS_ERR_OR_NULL(table))
		return NULL;
	module_put(table->me);
	xt_table_unlock(table);
	return table;
}

/* As a rule with "meta nftrace" does: nftables reports hits if there is any. */
static void nft_reports(int more)
{
	struct static_key_false *key = NULL;

	if (IS_ENABLED(CONFIG_NF_TABLES))
		key = __symbol_get("nft_trace_enabled");
	if (!key)
		return;
	if (more > 0)
		static_key_slow_inc(&key->key);
	else
		static_key_slow_dec(&key->key);
	__symbol_put("nft_trace_enabled");
}

/* The table of a new rule, which holds it until _put(), or an error. */
struct ipttrace_break_table *
ipttrace_break_table_get(struct net *net, u8 family, const char *name, bool nft)
{
	const struct xt_table *table = nft ? NULL :
					     table_find(net, family, name);
	struct ipttrace_break_table *one;

	mutex_lock(&tables_mutex);
	list_for_each_entry(
		one, &break_tables,
		list) if (one->net == net && one->family == family &&
			  one->nft == nft && one->table == table &&
			  !strncmp(one->name, name,
				   sizeof(one->name) - 1)) goto found;
	one = kzalloc(sizeof(*one), GFP_KERNEL_ACCOUNT);
	if (!one) {
		one = ERR_PTR(-ENOMEM);
		goto unlock;
	}
	one->net = net;
	one->netns = net->ns.inum;
	one->family = family;
	one->nft = nft;
	one->table = table;
	strscpy(one->name, name, sizeof(one->name));
	list_add_tail_rcu(&one->list, &break_tables);
found:
	one->rules++;
	if (nft)
		nft_reports(1);
unlock:
	mutex_unlock(&tables_mutex);
	return one;
}

void ipttrace_break_table_put(struct ipttrace_break_table *one)
{
	mutex_lock(&tables_mutex);
	if (one->nft)
		nft_reports(-1);
	if (!--one->rules) {
		list_del_rcu(&one->list);
		kfree_rcu(one, rcu);
	}
	mutex_unlock(&tables_mutex);
}

/* Whether a legacy table has breakpoints.  In an RCU read section. */
bool ipttrace_breaks_in(const struct xt_table *table)
{
	const struct ipttrace_break_table *one;

	list_for_each_entry_lockless(one, &break_tables,
				     list) if (one->table == table) return true;
	return false;
}
NOKPROBE_SYMBOL(ipttrace_breaks_in);

/* A copy of the n-th table with rules; false: there are not so many. */
bool ipttrace_breaks_get(unsigned long n, struct ipttrace_break_table *copy)
{
	const struct ipttrace_break_table *one;
	bool found = false;

	mutex_lock(&tables_mutex);
	list_for_each_entry(one, &break_tables, list)
	{
		if (n--)
			continue;
		*copy = *one;
		found = true;
		break;
	}
	mutex_unlock(&tables_mutex);
	return found;
}
