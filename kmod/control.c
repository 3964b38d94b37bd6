// SPDX-License-Identifier: GPL-2.0-only
/*
 * The state machine: idle, armed for one socket, draining.
 *
 * Owns the armed state: who armed, with which BPF programs and which filter.
 * Brings up what tracing takes, and takes it down again, in one order.
 */

#include <linux/jiffies.h>
#include <linux/lockdep.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/string.h>
#include <linux/workqueue.h>
#include <net/net_namespace.h>

#include "ipttrace.h"

static DEFINE_MUTEX(control_mutex);

/* All under the mutex. */
static struct {
	enum ipttrace_state state;
	struct ipttrace_owner owner; /* while armed */
	struct ipttrace_setup setup; /* while armed */
	const struct ipttrace_events *events;
} control;

static void control_drain(struct work_struct *work);
static void control_rescan(struct work_struct *work);
static DECLARE_DELAYED_WORK(drain_work, control_drain);
static DECLARE_WORK(rescan_work, control_rescan);

void ipttrace_control_lock(void)
{
	mutex_lock(&control_mutex);
}

void ipttrace_control_unlock(void)
{
	mutex_unlock(&control_mutex);
}

static void state_set(enum ipttrace_state state, enum ipttrace_reason reason)
{
	control.state = state;
	control.events->state_changed(state, control.owner.pid, reason);
}

static int tracing_setup(const struct ipttrace_setup *setup,
			 struct netlink_ext_ack *extack)
{
	int err;

	err = ipttrace_follow_setup();
	if (err) {
		NL_SET_ERR_MSG(extack, "no memory to follow packets");
		return err;
	}
	ipttrace_calls_clear();
	ipttrace_session_setup(setup);
	err = ipttrace_probes_setup(setup->maxactive, extack);
	if (err)
		goto teardown_session;
	/* Log lines can be silenced: now they may be caused. */
	ipttrace_session_start();
	return 0;

teardown_session:
	ipttrace_session_teardown();
	ipttrace_follow_teardown();
	return err;
}

/*
 * No call is traced any more.  Log lines of packets that are still on their
 * way are silenced until tracing_drained().
 */
static void tracing_teardown(void)
{
	ipttrace_session_stop();
	ipttrace_probes_teardown();
	ipttrace_calls_clear();
	ipttrace_session_teardown();
}

static void tracing_drained(void)
{
	ipttrace_probes_drained();
	ipttrace_follow_teardown();
}

/* Ends DRAINING at once, so that the next state may begin. */
static void drain_end(void)
{
	if (control.state != IPTTRACE_DRAINING)
		return;
	tracing_drained();
	state_set(IPTTRACE_IDLE, IPTTRACE_BY_OWNER);
}

static void control_drain(struct work_struct *work)
{
	ipttrace_control_lock();
	drain_end();
	ipttrace_control_unlock();
}

int ipttrace_control_may_arm(struct netlink_ext_ack *extack)
{
	lockdep_assert_held(&control_mutex);
	if (control.state != IPTTRACE_ARMED)
		return 0;
	NL_SET_ERR_MSG(extack,
		       "another ipttrace is already tracing on this host");
	return -EBUSY;
}

/* After _may_arm().  If it returns 0, it owns what setup refers to. */
int ipttrace_control_arm(const struct ipttrace_setup *setup,
			 const struct ipttrace_owner *owner,
			 struct netlink_ext_ack *extack)
{
	int err;

	lockdep_assert_held(&control_mutex);
	/* Held while armed: rmmod reports that the module is in use. */
	if (!try_module_get(THIS_MODULE)) {
		NL_SET_ERR_MSG(extack, "the module is being removed");
		return -ENODEV;
	}
	drain_end();
	/* If it fails, packets are traced without generations of rules. */
	ipttrace_ruleset_setup(control.events);
	err = tracing_setup(setup, extack);
	if (err)
		goto teardown_ruleset;
	control.setup = *setup;
	control.owner = *owner;
	state_set(IPTTRACE_ARMED, IPTTRACE_BY_OWNER);
	return 0;

teardown_ruleset:
	ipttrace_ruleset_teardown();
	module_put(THIS_MODULE);
	return err;
}

bool ipttrace_control_owned_by(const struct net *net, u32 portid)
{
	lockdep_assert_held(&control_mutex);
	return control.state == IPTTRACE_ARMED &&
	       control.owner.portid == portid && net_eq(control.owner.net, net);
}

/* While armed. */
void ipttrace_control_disarm(enum ipttrace_reason reason)
{
	lockdep_assert_held(&control_mutex);
	tracing_teardown();
	ipttrace_setup_put(&control.setup);
	ipttrace_ruleset_teardown();
	state_set(IPTTRACE_DRAINING, reason);
	memset(&control.owner, 0, sizeof(control.owner));
	schedule_delayed_work(&drain_work, msecs_to_jiffies(IPTTRACE_DRAIN_MS));
	module_put(THIS_MODULE);
}

/* While armed.  Owns filter from here on; NULL matches every packet. */
void ipttrace_control_set_filter(struct bpf_prog *filter)
{
	lockdep_assert_held(&control_mutex);
	ipttrace_session_set_filter(filter);
	ipttrace_filter_put(control.setup.filter);
	control.setup.filter = filter;
}

void ipttrace_control_status(struct ipttrace_status *status)
{
	lockdep_assert_held(&control_mutex);
	status->state = control.state;
	status->owner_pid = control.owner.pid;
	status->targets = ipttrace_probes_targets();
	if (ipttrace_ruleset_watched())
		status->targets |= BIT(2);
	status->ruleset = ipttrace_ruleset();
	status->skipped = ipttrace_probes_skipped();
	ipttrace_session_stats(&status->stats);
}

static void control_rescan(struct work_struct *work)
{
	ipttrace_control_lock();
	if (control.state == IPTTRACE_ARMED) {
		ipttrace_probes_rescan();
		ipttrace_ruleset_rescan();
	}
	ipttrace_control_unlock();
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

int ipttrace_control_setup(const struct ipttrace_events *events)
{
	control.events = events;
	return register_module_notifier(&control_module_block);
}

/*
 * The module is held while armed, so at most the draining is left to end.
 * Nobody may send a command any more.
 */
void ipttrace_control_teardown(void)
{
	unregister_module_notifier(&control_module_block);
	cancel_work_sync(&rescan_work);
	cancel_delayed_work_sync(&drain_work);
	ipttrace_control_lock();
	if (control.state == IPTTRACE_DRAINING) {
		tracing_drained();
		control.state = IPTTRACE_IDLE;
	}
	ipttrace_control_unlock();
}
