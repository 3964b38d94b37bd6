// SPDX-License-Identifier: GPL-2.0-only
/*
 * How the handlers of probes.c come to be called.
 *
 * Where the kernel lets us, by ftrace with a function's arguments only: a packet
 * that is not wanted costs less than half of what a kprobe takes to begin with.
 * The kretprobes are there then, too, but disabled: they are asked for an
 * instance when a call is wanted.  Elsewhere, and when ftrace is refused, kprobes
 * do all of it.
 *
 * All under ipttrace_mutex.
 */

#include <linux/module.h>

#include "compat.h"
#include "ipttrace.h"

static bool by_ftrace = true;
module_param_named(ftrace, by_ftrace, bool, 0444);
MODULE_PARM_DESC(ftrace, "0: catch calls by kprobes even where ftrace would do");

static const char *const table_symbols[IPTTRACE_TABLES] = {
	[IPTTRACE_IP]	= "ipt_do_table",
	[IPTTRACE_IP6]	= "ip6t_do_table",
};

struct kretprobe ipttrace_table_probes[IPTTRACE_TABLES];
kprobe_pre_handler_t ipttrace_take_instance;

struct kprobe ipttrace_log_probe;

static struct {
	bool registered[IPTTRACE_TABLES];
	u32 maxactive;
	u64 skipped;	/* of probes that are no more */
} hooks;

#ifdef IPTTRACE_FTRACE

/*
 * One for all functions, since it takes a while to be sure that none of its
 * handlers is being called any more.  Permanent: whoever turns ftrace off for all
 * is told that it is in use.
 */
static struct ftrace_ops trace_ops = {
	.func = ipttrace_traced,
	.flags = FTRACE_OPS_FL_PERMANENT,
};
static bool trace_on;
static bool trace_aimed[IPTTRACE_TABLES];

/* Waits until no handler is being called any more. */
static void trace_teardown(void)
{
	if (trace_on)
		unregister_ftrace_function(&trace_ops);
	trace_on = false;
	memset(trace_aimed, 0, sizeof(trace_aimed));
	/* An empty filter means every function: not before it is unregistered. */
	ftrace_set_filter(&trace_ops, NULL, 0, 1);
}

static int trace_aim_at(const struct kprobe *kp, bool reset)
{
	return ftrace_set_filter_ip(&trace_ops, (unsigned long)kp->addr, 0,
				    reset);
}

/* At the log and the tables that are registered, and at no other. */
static int trace_aim(void)
{
	bool gone = false;
	int i, err;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		gone |= trace_aimed[i] && !hooks.registered[i];
	if (!trace_on || gone) {
		memset(trace_aimed, 0, sizeof(trace_aimed));
		err = trace_aim_at(&ipttrace_log_probe, true);
		if (err)
			return err;
	}
	for (i = 0; i < IPTTRACE_TABLES; i++) {
		if (!hooks.registered[i] || trace_aimed[i])
			continue;
		err = trace_aim_at(&ipttrace_table_probes[i].kp, false);
		if (err)
			return err;
		trace_aimed[i] = true;
	}
	return 0;
}

static int trace_setup(void)
{
	int err;

	if (!by_ftrace)
		return -EOPNOTSUPP;
	err = trace_aim();
	if (!err && !trace_on) {
		err = register_ftrace_function(&trace_ops);
		trace_on = !err;
	}
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
	rp->maxactive = hooks.maxactive ?:
			max_t(int, 128, 16 * num_possible_cpus());
	err = register_kretprobe(rp);
	if (err)
		return err;
	ipttrace_take_instance = rp->kp.pre_handler;
	rp->kp.pre_handler = ipttrace_table_hit;
	hooks.registered[i] = true;
	return 0;
}

static void table_unregister(int i)
{
	struct kretprobe *rp = &ipttrace_table_probes[i];

	unregister_kretprobe(rp);
	hooks.skipped += rp->kp.nmissed;
	hooks.registered[i] = false;
}

static int probe_enable(struct kprobe *kp)
{
	return kprobe_disabled(kp) ? enable_kprobe(kp) : 0;
}

/* From here on the handlers are called, for the tables that are registered. */
static int hooks_enable(void)
{
	int i, err;

	err = trace_setup();
	/* Turned off by sysctl: kprobes would be as deaf, and say nothing. */
	if (!err || err == -EBUSY)
		return err;
	err = probe_enable(&ipttrace_log_probe);
	for (i = 0; i < IPTTRACE_TABLES && !err; i++)
		if (hooks.registered[i])
			err = probe_enable(&ipttrace_table_probes[i].kp);
	return err;
}

/*
 * The table code may come, or go, with its module while we are armed.  Of one
 * that went nothing may be aimed at any more before its probe is set up anew.
 */
void ipttrace_hooks_rescan(void)
{
	int i;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (hooks.registered[i] &&
		    kprobe_gone(&ipttrace_table_probes[i].kp))
			table_unregister(i);
	hooks_enable();
	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (!hooks.registered[i])
			table_register(i);
	hooks_enable();
}

/*
 * No return is hooked any more.  Handlers may still be called for tables, which
 * must do nothing, and for log lines.
 */
void ipttrace_hooks_teardown(void)
{
	int i;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (hooks.registered[i])
			table_unregister(i);
}

/* No handler is called any more. */
void ipttrace_hooks_drained(void)
{
	trace_teardown();
	unregister_kprobe(&ipttrace_log_probe);
	hooks.skipped += ipttrace_log_probe.nmissed;
	ipttrace_log_probe.nmissed = 0;
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

int ipttrace_hooks_setup(u32 maxactive, struct netlink_ext_ack *extack)
{
	bool any = false;
	int i, err;

	hooks.maxactive = maxactive;
	hooks.skipped = 0;
	err = log_register();
	if (err) {
		NL_SET_ERR_MSG(extack,
			       "nf_log_trace cannot be probed: this kernel has no netfilter tracing, or no kprobes");
		return err;
	}
	for (i = 0; i < IPTTRACE_TABLES; i++) {
		err = table_register(i);
		if (!err)
			any = true;
		else if (err != -ENOENT)
			goto refused;
	}
	if (!any) {
		NL_SET_ERR_MSG(extack,
			       "ipt_do_table and ip6t_do_table are absent: no legacy iptables is loaded here (modprobe ip_tables)");
		goto unregister;
	}
	err = hooks_enable();
	if (!err)
		return 0;
	if (err == -EBUSY) {
		NL_SET_ERR_MSG(extack,
			       "ftrace is turned off here: sysctl kernel.ftrace_enabled=1");
		goto unregister;
	}
refused:
	NL_SET_ERR_MSG(extack,
		       "the kernel refused a kretprobe on ipt_do_table or ip6t_do_table");
unregister:
	ipttrace_hooks_teardown();
	ipttrace_hooks_drained();
	return err;
}

u32 ipttrace_hooks_targets(void)
{
	u32 targets = 0;
	int i;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (hooks.registered[i])
			targets |= BIT(i);
	return targets;
}

/* Hits that kprobes skipped, for a handler was at work on that CPU. */
u64 ipttrace_hooks_skipped(void)
{
	u64 skipped = hooks.skipped + ipttrace_log_probe.nmissed;
	int i;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (hooks.registered[i])
			skipped += ipttrace_table_probes[i].kp.nmissed;
	return skipped;
}
