// SPDX-License-Identifier: GPL-2.0-only
/*
 * The state machine: idle, armed for one socket, draining.
 *
 * Owns the armed state: who armed, with which BPF programs and which filter.
 * Brings up what tracing takes, and takes it down again, in one order.
 *
 * The mutex is held while that waits for RCU and ftrace.  Therefore only those
 * take it who send a command of ours, and a worker; see armed.c.
 */

#include <linux/jiffies.h>
#include <linux/lockdep.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/notifier.h>
#include <linux/string.h>
#include <linux/workqueue.h>

#include "ipttrace.h"

static DEFINE_MUTEX(control_mutex);

/* All under the mutex. */
static struct {
	enum ipttrace_state state;
	enum ipttrace_reason reason; /* for the newest DRAINING */
	struct ipttrace_setup setup; /* while armed */
	u64 net_id;		     /* of the newest ARM; 0: all namespaces */
	unsigned long drained;	     /* jiffies at which DRAINING ends */
	const struct ipttrace_events *events;
} control;

static void control_drain(struct work_struct *work);
static void control_over(struct work_struct *work);
static void control_rescan(struct work_struct *work);
static DECLARE_DELAYED_WORK(drain_work, control_drain);
static DECLARE_WORK(over_work, control_over);
static DECLARE_WORK(rescan_work, control_rescan);

static int tracing_setup(const struct ipttrace_setup *setup,
			 struct netlink_ext_ack *extack)
{
	int err;

	err = ipttrace_follow_setup();
	if (err) {
		NL_SET_ERR_MSG(extack, "no memory to follow packets");
		return err;
	}
	err = ipttrace_probes_hold(extack);
	if (err)
		goto teardown_follow;
	/* If it fails, packets are traced without generations of rules. */
	ipttrace_ruleset_setup(control.events, setup->net);
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
	ipttrace_ruleset_teardown();
	ipttrace_probes_release();
teardown_follow:
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
	ipttrace_ruleset_teardown();
}

static void tracing_drained(void)
{
	ipttrace_probes_drained();
	ipttrace_probes_release();
	ipttrace_follow_teardown();
}

/* Ends DRAINING at once, so that the next state may begin. */
static void drain_end(void)
{
	if (control.state != IPTTRACE_DRAINING)
		return;
	tracing_drained();
	ipttrace_armed_drained();
	control.state = IPTTRACE_IDLE;
}

static void control_drain(struct work_struct *work)
{
	unsigned long now = jiffies;

	mutex_lock(&control_mutex);
	/* It may have been scheduled for an earlier draining. */
	if (control.state == IPTTRACE_DRAINING &&
	    time_before(now, control.drained))
		schedule_delayed_work(&drain_work, control.drained - now);
	else
		drain_end();
	mutex_unlock(&control_mutex);
}

static void disarm(enum ipttrace_reason reason)
{
	unsigned long drain = msecs_to_jiffies(ipttrace_drain_ms);

	tracing_teardown();
	ipttrace_setup_put(&control.setup);
	control.state = IPTTRACE_DRAINING;
	control.reason = reason;
	ipttrace_armed_clear();
	control.drained = jiffies + drain;
	schedule_delayed_work(&drain_work, drain);
	module_put(THIS_MODULE);
}

/* Takes the mutex, and ends what is over. */
static void control_lock(void)
{
	enum ipttrace_reason reason;

	mutex_lock(&control_mutex);
	if (control.state == IPTTRACE_ARMED && ipttrace_armed_over(&reason))
		disarm(reason);
}

static void control_unlock(void)
{
	mutex_unlock(&control_mutex);
}

static void control_over(struct work_struct *work)
{
	control_lock();
	control_unlock();
}

/*
 * If it returns 0, it owns what setup refers to, except for the namespace,
 * which the caller releases: a reference would keep it alive.
 */
int ipttrace_control_arm(struct ipttrace_setup *setup,
			 const struct ipttrace_owner *owner,
			 struct netlink_ext_ack *extack)
{
	int err;

	control_lock();
	if (control.state == IPTTRACE_ARMED) {
		NL_SET_ERR_MSG(
			extack,
			"another ipttrace is already tracing on this host");
		err = -EBUSY;
		goto unlock;
	}
	if (!ipttrace_kprobes_hit()) {
		NL_SET_ERR_MSG(
			extack,
			"kprobes are switched off: echo 1 > /sys/kernel/debug/kprobes/enabled");
		err = -EOPNOTSUPP;
		goto unlock;
	}
	/* Held while armed: rmmod reports that the module is in use. */
	if (!try_module_get(THIS_MODULE)) {
		NL_SET_ERR_MSG(extack, "the module is being removed");
		err = -ENODEV;
		goto unlock;
	}
	drain_end();
	err = tracing_setup(setup, extack);
	if (err)
		goto put_module;
	control.setup = *setup;
	control.setup.net = NULL;
	control.net_id = setup->net_id;
	ipttrace_armed_set(owner, setup->net);
	control.state = IPTTRACE_ARMED;
	control.reason = IPTTRACE_BY_OWNER;
	control_unlock();
	return 0;

put_module:
	module_put(THIS_MODULE);
unlock:
	control_unlock();
	return err;
}

static int owner_check(const struct ipttrace_owner *owner,
		       struct netlink_ext_ack *extack)
{
	if (control.state == IPTTRACE_ARMED && ipttrace_armed_by(owner))
		return 0;
	NL_SET_ERR_MSG(extack, "not armed by this socket");
	return -EPERM;
}

int ipttrace_control_disarm(const struct ipttrace_owner *owner,
			    struct netlink_ext_ack *extack)
{
	int err;

	control_lock();
	err = owner_check(owner, extack);
	if (!err)
		disarm(IPTTRACE_BY_OWNER);
	control_unlock();
	return err;
}

/* If it returns 0, it owns filter; NULL matches every packet. */
int ipttrace_control_set_filter(struct bpf_prog *filter,
				const struct ipttrace_owner *owner,
				struct netlink_ext_ack *extack)
{
	struct bpf_prog *old;
	int err;

	control_lock();
	err = owner_check(owner, extack);
	if (err) {
		control_unlock();
		return err;
	}
	if (control.setup.from_rules) {
		NL_SET_ERR_MSG(extack, "armed with FROM_RULES: no filter");
		control_unlock();
		return -EINVAL;
	}
	old = control.setup.filter;
	ipttrace_session_set_filter(filter);
	control.setup.filter = filter;
	control_unlock();
	ipttrace_filter_put(old);
	return 0;
}

/* net: the namespace whose generation is asked for, or NULL. */
void ipttrace_control_status(struct ipttrace_status *status,
			     const struct net *net)
{
	control_lock();
	ipttrace_ruleset_recover();
	status->state = control.state;
	status->reason = control.reason;
	status->owner_pid = ipttrace_armed_pid();
	status->net_id = control.net_id;
	status->targets = ipttrace_probes_targets();
	if (ipttrace_ruleset_watched())
		status->targets |= IPTTRACE_TARGET_RULES;
	if (!ipttrace_kprobes_hit())
		status->targets |= IPTTRACE_KPROBES_OFF;
	status->ruleset = net ? ipttrace_ruleset(net) : ipttrace_ruleset_last();
	status->skipped = ipttrace_probes_skipped();
	ipttrace_session_stats(&status->stats);
	control_unlock();
}

static void control_rescan(struct work_struct *work)
{
	control_lock();
	if (control.state == IPTTRACE_ARMED)
		ipttrace_probes_rescan();
	control_unlock();
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
	int err;

	control.events = events;
	err = ipttrace_armed_setup(&over_work);
	if (err)
		return err;
	err = register_module_notifier(&control_module_block);
	if (err) {
		ipttrace_armed_teardown();
		return err;
	}
	ipttrace_canary_setup();
	return 0;
}

/*
 * The module is held while armed, so at most the draining is left to end.
 * Nobody may send a command any more.
 */
void ipttrace_control_teardown(void)
{
	unregister_module_notifier(&control_module_block);
	ipttrace_armed_teardown();
	cancel_work_sync(&over_work);
	cancel_work_sync(&rescan_work);
	/* It may schedule itself once more. */
	mutex_lock(&control_mutex);
	drain_end();
	mutex_unlock(&control_mutex);
	cancel_delayed_work_sync(&drain_work);
	ipttrace_canary_teardown();
}
