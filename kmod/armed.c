// SPDX-License-Identifier: GPL-2.0-only
/*
 * For which socket and which namespace tracing is armed, and whether it is over.
 *
 * Sockets are closed and namespaces end without our doing, in somebody else's
 * time: here they only leave word, under a spinlock, that tracing is over.  A
 * worker of control.c ends it.
 */

#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include <net/net_namespace.h>
#include <net/netns/generic.h>

#include "breaks.h"
#include "ipttrace.h"

/* What is set is so under the mutex of control.c and the spinlock. */
static DEFINE_SPINLOCK(armed_lock);
static struct {
	struct ipttrace_owner owner;
	const struct net *net; /* of the newest ARM; NULL: all, or gone */
	bool over;
	enum ipttrace_reason reason;
} armed;

static struct work_struct *armed_work; /* to be done when it is over */
static atomic64_t net_ids;

/* Tracing begins for the owner, in net or in all. */
void ipttrace_armed_set(const struct ipttrace_owner *owner,
			const struct net *net)
{
	spin_lock(&armed_lock);
	armed.owner = *owner;
	armed.net = net;
	armed.over = false;
	spin_unlock(&armed_lock);
}

/* No handler is called: the next ARM may say which namespace they want. */
void ipttrace_armed_drained(void)
{
	spin_lock(&armed_lock);
	armed.net = NULL;
	spin_unlock(&armed_lock);
}

/* Tracing has ended.  Log lines of the namespace are silenced for a while. */
void ipttrace_armed_clear(void)
{
	spin_lock(&armed_lock);
	memset(&armed.owner, 0, sizeof(armed.owner));
	armed.over = false;
	spin_unlock(&armed_lock);
}

bool ipttrace_armed_over(enum ipttrace_reason *reason)
{
	bool over;

	spin_lock(&armed_lock);
	over = armed.over;
	*reason = armed.reason;
	spin_unlock(&armed_lock);
	return over;
}

static bool owned_by(const struct net *net, u32 portid)
{
	return armed.owner.net && net_eq(armed.owner.net, net) &&
	       armed.owner.portid == portid;
}

/* Under control.c's mutex. */
bool ipttrace_armed_by(const struct ipttrace_owner *owner)
{
	return owned_by(owner->net, owner->portid);
}

/* Under control.c's mutex; 0: nobody. */
u32 ipttrace_armed_pid(void)
{
	return armed.owner.pid;
}

static void over_set(enum ipttrace_reason reason)
{
	if (armed.over)
		return;
	armed.over = true;
	armed.reason = reason;
	schedule_work(armed_work);
}

/*
 * However the owner dies, its socket is closed, and that ends tracing.  Nobody
 * can close a socket before ARM, sent by it, has returned: it is known here.
 */
void ipttrace_armed_socket_gone(const struct net *net, u32 portid)
{
	spin_lock(&armed_lock);
	if (owned_by(net, portid))
		over_set(IPTTRACE_OWNER_GONE);
	spin_unlock(&armed_lock);
}

static int armed_net_init(struct net *net)
{
	struct ipttrace_net *rn = net_generic(net, ipttrace_net_id);

	rn->id = atomic64_inc_return(&net_ids);
	return 0;
}

/*
 * ARM had a reference until it was done, so the one to trace is known here.
 * This is before another namespace can be made at its address.
 */
static void armed_net_exit(struct net *net)
{
	ipttrace_ruleset_net_exit(net);
	ipttrace_breaks_net_exit(net);
	spin_lock(&armed_lock);
	if (armed.net && armed.net == net) {
		ipttrace_session_net_gone();
		armed.net = NULL;
		if (armed.owner.net)
			over_set(IPTTRACE_NETNS_GONE);
	}
	spin_unlock(&armed_lock);
}

static struct pernet_operations armed_net_ops = {
	.init = armed_net_init,
	.exit = armed_net_exit,
	.id = &ipttrace_net_id,
	.size = sizeof(struct ipttrace_net),
};

int ipttrace_armed_setup(struct work_struct *over)
{
	armed_work = over;
	return register_pernet_subsys(&armed_net_ops);
}

void ipttrace_armed_teardown(void)
{
	unregister_pernet_subsys(&armed_net_ops);
}
