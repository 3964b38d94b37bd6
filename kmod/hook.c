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

static struct kprobe log_probe;

static struct {
	bool registered[IPTTRACE_TABLES];
	u32 maxactive;
	u64 skipped;	/* of probes that are no more */
} hooks;

#ifdef IPTTRACE_FTRACE

/* Permanent: whoever turns ftrace off for all is told that it is in use. */
static struct ftrace_ops table_ops = {
	.func = ipttrace_table_traced,
	.flags = FTRACE_OPS_FL_PERMANENT,
};
static struct ftrace_ops log_ops = {
	.func = ipttrace_log_traced,
	.flags = FTRACE_OPS_FL_PERMANENT,
};
static bool table_traced, log_traced;
static bool table_aimed[IPTTRACE_TABLES];

/* An empty filter would mean every function: only of what is not registered. */
static void ops_forget(struct ftrace_ops *ops)
{
	ftrace_set_filter(ops, NULL, 0, 1);
}

static void tables_untrace(void)
{
	if (table_traced)
		unregister_ftrace_function(&table_ops);
	table_traced = false;
	memset(table_aimed, 0, sizeof(table_aimed));
	ops_forget(&table_ops);
}

/* Aims at the tables that are registered, and at no other. */
static int tables_trace(void)
{
	bool reset = false, any = false;
	int err = 0;
	int i;

	if (!by_ftrace)
		return -EOPNOTSUPP;
	for (i = 0; i < IPTTRACE_TABLES; i++) {
		any |= hooks.registered[i];
		reset |= table_aimed[i] && !hooks.registered[i];
	}
	if (!any)
		goto untrace;
	if (reset)
		memset(table_aimed, 0, sizeof(table_aimed));
	for (i = 0; i < IPTTRACE_TABLES; i++) {
		if (!hooks.registered[i] || table_aimed[i])
			continue;
		err = ftrace_set_filter_ip(&table_ops,
					   (unsigned long)
					   ipttrace_table_probes[i].kp.addr,
					   0, reset);
		if (err)
			goto untrace;
		table_aimed[i] = true;
		reset = false;
	}
	if (!table_traced) {
		err = register_ftrace_function(&table_ops);
		if (err)
			goto untrace;
		table_traced = true;
	}
	return 0;

untrace:
	tables_untrace();
	return err;
}

static int log_trace(void)
{
	int err;

	if (!by_ftrace)
		return -EOPNOTSUPP;
	err = ftrace_set_filter_ip(&log_ops, (unsigned long)log_probe.addr,
				   0, 1);
	if (err)
		return err;
	err = register_ftrace_function(&log_ops);
	if (err)
		ops_forget(&log_ops);
	log_traced = !err;
	return err;
}

static void log_untrace(void)
{
	if (!log_traced)
		return;
	unregister_ftrace_function(&log_ops);
	log_traced = false;
	ops_forget(&log_ops);
}

#else

static int tables_trace(void)
{
	return -EOPNOTSUPP;
}

static void tables_untrace(void)
{
}

static int log_trace(void)
{
	return -EOPNOTSUPP;
}

static void log_untrace(void)
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

/* From here on the handlers are called for the tables that are registered. */
static int tables_enable(void)
{
	int i, err;

	err = tables_trace();
	/* Turned off by sysctl: kprobes would be as deaf, and say nothing. */
	if (!err || err == -EBUSY)
		return err;
	for (i = 0; i < IPTTRACE_TABLES; i++) {
		struct kprobe *kp = &ipttrace_table_probes[i].kp;

		if (!hooks.registered[i] || !kprobe_disabled(kp))
			continue;
		err = enable_kprobe(kp);
		if (err)
			return err;
	}
	return 0;
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
	tables_enable();
	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (!hooks.registered[i])
			table_register(i);
	tables_enable();
}

/* Every handler of a call has returned when it does. */
void ipttrace_hooks_teardown(void)
{
	int i;

	tables_untrace();
	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (hooks.registered[i])
			table_unregister(i);
}

int ipttrace_hooks_setup(u32 maxactive, struct netlink_ext_ack *extack)
{
	bool any = false;
	int i, err;

	hooks.maxactive = maxactive;
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
		return -ENOENT;
	}
	err = tables_enable();
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
	return err;
}

int ipttrace_hooks_log_setup(struct netlink_ext_ack *extack)
{
	int err;

	hooks.skipped = 0;
	memset(&log_probe, 0, sizeof(log_probe));
	log_probe.symbol_name = "nf_log_trace";
	log_probe.flags = KPROBE_FLAG_DISABLED;
	log_probe.pre_handler = ipttrace_log_hit;
	err = register_kprobe(&log_probe);
	if (!err && log_trace()) {
		err = enable_kprobe(&log_probe);
		if (err)
			unregister_kprobe(&log_probe);
	}
	if (err)
		NL_SET_ERR_MSG(extack,
			       "nf_log_trace cannot be probed: this kernel has no netfilter tracing, or no kprobes");
	return err;
}

void ipttrace_hooks_log_teardown(void)
{
	log_untrace();
	unregister_kprobe(&log_probe);
	hooks.skipped += log_probe.nmissed;
	log_probe.nmissed = 0;
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
	u64 skipped = hooks.skipped + log_probe.nmissed;
	int i;

	for (i = 0; i < IPTTRACE_TABLES; i++)
		if (hooks.registered[i])
			skipped += ipttrace_table_probes[i].kp.nmissed;
	return skipped;
}
