// SPDX-License-Identifier: GPL-2.0-only
/*
 * Makes the kernel call the handlers.
 *
 * Preferably by ftrace that saves only a function's arguments: a rejected
 * packet then costs less than half of what entering a kprobe takes.  The
 * kretprobes are registered all the same, but disabled: they provide an
 * instance when a packet matches.  If the kernel has no such ftrace, or refuses
 * it, kprobes do everything.
 *
 * All under the lock of control.c.
 */

#include <linux/module.h>

#include "compat.h"
#include "ipttrace.h"

static bool by_ftrace = true;
module_param_named(ftrace, by_ftrace, bool, 0444);
MODULE_PARM_DESC(ftrace, "0: use kprobes even if the kernel supports ftrace");

static const char *const table_symbols[IPTTRACE_TABLES] = {
	[IPTTRACE_IP] = "ipt_do_table",
	[IPTTRACE_IP6] = "ip6t_do_table",
};

static struct {
	bool registered[IPTTRACE_TABLES];
	bool by_kprobes; /* ftrace was refused, and is not tried again */
	u32 maxactive;
	u64 skipped; /* by probes that are unregistered by now */
} probes;

#if defined(IPTTRACE_FTRACE) || defined(CONFIG_KPROBES_ON_FTRACE)

/* Never called.  An empty filter would mean every function. */
static noinline int hold_site(void)
{
	return READ_ONCE(by_ftrace) ? 42 : 0;
}

#ifdef IPTTRACE_FTRACE
#define ftrace_hit ipttrace_ftrace_hit
#else
static void notrace ftrace_hit(unsigned long ip, unsigned long parent_ip,
			       struct ftrace_ops *ops,
			       ipttrace_ftrace_regs *regs)
{
}
#endif

/*
 * One for all functions, since each takes a while to unregister.  Permanent:
 * turning ftrace off by sysctl fails while it is registered.
 */
static struct ftrace_ops trace_ops = {
	.func = ftrace_hit,
	.flags = FTRACE_OPS_FL_PERMANENT,
};
static bool trace_held;

/* No handler is called any more, except for those that have begun. */
static int trace_clear(void)
{
	return ftrace_set_filter_ip(&trace_ops, (unsigned long)hold_site, 0, 1);
}

/*
 * From here on until _release, kernel.ftrace_enabled=0 is refused.  That would
 * switch off the kprobes that the kernel makes by ftrace, of which the canary
 * shows nothing: whatever registers one comes after this.
 */
int ipttrace_probes_hold(struct netlink_ext_ack *extack)
{
	int err = trace_clear();

	if (!err)
		err = register_ftrace_function(&trace_ops);
	trace_held = !err;
	if (err != -EBUSY)
		return 0; /* There is no ftrace: kprobes have to do without. */
	NL_SET_ERR_MSG(extack,
		       "ftrace is turned off: sysctl kernel.ftrace_enabled=1");
	return err;
}

/* When it returns, no handler is running. */
void ipttrace_probes_release(void)
{
	if (trace_held)
		unregister_ftrace_function(&trace_ops);
	trace_held = false;
	ftrace_set_filter(&trace_ops, NULL, 0, 1);
}

#else

int ipttrace_probes_hold(struct netlink_ext_ack *extack)
{
	return 0;
}

void ipttrace_probes_release(void)
{
}

#endif

#ifdef IPTTRACE_FTRACE

static bool trace_on; /* it has nf_log_trace() */
static bool trace_filtered[IPTTRACE_TABLES];

static void trace_teardown(void)
{
	if (trace_on && trace_clear())
		ipttrace_probes_release();
	trace_on = false;
	memset(trace_filtered, 0, sizeof(trace_filtered));
}

static int trace_filter_add(const struct kprobe *kp, bool reset)
{
	return ftrace_set_filter_ip(&trace_ops, (unsigned long)kp->addr, 0,
				    reset);
}

/* Exactly nf_log_trace() and the tables that are registered. */
static int trace_filter_set(void)
{
	bool gone = false;
	int i, err;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		gone |= trace_filtered[i] && !probes.registered[i];
	if (!trace_on || gone) {
		memset(trace_filtered, 0, sizeof(trace_filtered));
		err = trace_filter_add(&ipttrace_log_probe, true);
		if (err)
			return err;
		trace_on = true;
	}
	for (i = 0; i < IPTTRACE_TABLES; i++) {
		if (!probes.registered[i] || trace_filtered[i])
			continue;
		err = trace_filter_add(&ipttrace_table_probes[i].kp, false);
		if (err)
			return err;
		trace_filtered[i] = true;
	}
	return 0;
}

static int trace_setup(void)
{
	int err;

	if (!by_ftrace || !trace_held)
		return -EOPNOTSUPP;
	err = trace_filter_set();
	if (err)
		trace_teardown();
	return err;
}

#else

static int trace_setup(void)
{
	return -EOPNOTSUPP;
}

static void trace_teardown(void)
{
}

#endif

static int table_register(int i)
{
	struct kretprobe *rp = &ipttrace_table_probes[i];
	int err;

	memset(rp, 0, sizeof(*rp));
	rp->kp.symbol_name = table_symbols[i];
	rp->kp.flags = KPROBE_FLAG_DISABLED;
	rp->entry_handler = ipttrace_call_enter;
	rp->handler = ipttrace_call_exit;
	rp->data_size = sizeof(struct ipttrace_call);
	rp->maxactive = probes.maxactive ?:
				max_t(int, 128, 16 * num_possible_cpus());
	err = register_kretprobe(rp);
	if (err)
		return err;
	ipttrace_take_instance = rp->kp.pre_handler;
	rp->kp.pre_handler = ipttrace_table_hit;
	probes.registered[i] = true;
	return 0;
}

static void table_unregister(int i)
{
	struct kretprobe *rp = &ipttrace_table_probes[i];

	unregister_kretprobe(rp);
	probes.skipped += rp->kp.nmissed;
	probes.registered[i] = false;
}

static int probe_enable(struct kprobe *kp)
{
	return kprobe_disabled(kp) ? enable_kprobe(kp) : 0;
}

/* From here on handlers are called for the tables that are registered. */
static int probes_enable(void)
{
	int i, err;

	if (!probes.by_kprobes && !trace_setup())
		return 0;
	probes.by_kprobes = true;
	err = probe_enable(&ipttrace_log_probe);
	for (i = 0; i < IPTTRACE_TABLES && !err; i++)
		if (probes.registered[i])
			err = probe_enable(&ipttrace_table_probes[i].kp);
	return err;
}

/*
 * The tables' modules may be loaded and unloaded while armed.  The first enable
 * takes a function that is gone out of ftrace's filter: this must come before
 * its probe is registered anew.
 */
void ipttrace_probes_rescan(void)
{
	int i;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (probes.registered[i] &&
		    kprobe_gone(&ipttrace_table_probes[i].kp))
			table_unregister(i);
	probes_enable();
	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (!probes.registered[i])
			table_register(i);
	probes_enable();
}

/*
 * No return is hooked any more.  Handlers may still be called: for tables,
 * where they must do nothing, and for log lines.
 */
void ipttrace_probes_teardown(void)
{
	int i;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (probes.registered[i])
			table_unregister(i);
}

/* Ends what _teardown left: after _release, no handler is running. */
void ipttrace_probes_drained(void)
{
	trace_teardown();
	unregister_kprobe(&ipttrace_log_probe);
	probes.skipped += ipttrace_log_probe.nmissed;
	ipttrace_log_probe.nmissed = 0;
	ipttrace_flaggers_teardown();
}

static int log_register(void)
{
	struct kprobe *kp = &ipttrace_log_probe;

	memset(kp, 0, sizeof(*kp));
	kp->symbol_name = "nf_log_trace";
	kp->flags = KPROBE_FLAG_DISABLED;
	kp->pre_handler = ipttrace_log_hit;
	return register_kprobe(kp);
}

int ipttrace_probes_setup(u32 maxactive, struct netlink_ext_ack *extack)
{
	bool any = false;
	int i, err;

	probes.maxactive = maxactive;
	probes.by_kprobes = false;
	probes.skipped = 0;
	err = log_register();
	if (err) {
		NL_SET_ERR_MSG(
			extack,
			"cannot probe nf_log_trace: this kernel has no netfilter tracing, or no kprobes");
		return err;
	}
	/* Before any line is silenced. */
	ipttrace_flaggers_setup();
	for (i = 0; i < IPTTRACE_TABLES; i++) {
		err = table_register(i);
		if (!err)
			any = true;
		else if (err != -ENOENT)
			goto refused;
	}
	if (!any) {
		NL_SET_ERR_MSG(
			extack,
			"ipt_do_table and ip6t_do_table are absent: legacy iptables is not loaded (modprobe ip_tables)");
		goto unregister;
	}
	err = probes_enable();
	if (!err)
		return 0;
refused:
	NL_SET_ERR_MSG(
		extack,
		"the kernel refused a kretprobe on ipt_do_table or ip6t_do_table");
unregister:
	ipttrace_probes_teardown();
	ipttrace_probes_drained();
	return err;
}

u32 ipttrace_probes_targets(void)
{
	u32 targets = 0;
	int i;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (probes.registered[i])
			targets |= BIT(i);
	return targets;
}

/* Hits that kprobes skipped because a handler was running on that CPU. */
u64 ipttrace_probes_skipped(void)
{
	u64 skipped = probes.skipped + ipttrace_log_probe.nmissed;
	int i;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (probes.registered[i])
			skipped += ipttrace_table_probes[i].kp.nmissed;
	return skipped;
}
