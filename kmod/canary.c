// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whether kprobes hit.  Root can switch all of them off, and on again, by
 * debugfs (kprobes/enabled): they stay registered, and nobody is told.
 *
 * The canary is a kprobe on a function that is never called.  Its first
 * instruction is a breakpoint exactly while kprobes are armed, which is read
 * there.
 *
 * A kprobe at the start of a function may be made by ftrace, and then
 * kernel.ftrace_enabled=0 switches it off, which the canary does not show.
 * While the switch is held, the kernel refuses that sysctl.
 */

#include <linux/ftrace.h>
#include <linux/kprobes.h>

#include "compat.h"
#include "ipttrace.h"

static struct kprobe canary_probe;
static bool canary_registered;

/* Not a function of ftrace: that would be patched by others, too. */
static noinline notrace int canary_site(void)
{
	/* Some instructions, so that a breakpoint has room. */
	return READ_ONCE(canary_registered) ? 23 : 0;
}

static int canary_hit(struct kprobe *p, struct pt_regs *regs)
{
	return 0;
}

/* Keeps the kernel from replacing the breakpoint by a jump. */
static void canary_post(struct kprobe *p, struct pt_regs *regs,
			unsigned long flags)
{
}

void ipttrace_canary_setup(void)
{
	canary_probe.addr = (kprobe_opcode_t *)canary_site;
	canary_probe.pre_handler = canary_hit;
	canary_probe.post_handler = canary_post;
	/* If there are no kprobes at all, arming finds out. */
	canary_registered = !register_kprobe(&canary_probe);
}

void ipttrace_canary_teardown(void)
{
	if (canary_registered)
		unregister_kprobe(&canary_probe);
	canary_registered = false;
}

/* Also from handlers. */
bool ipttrace_kprobes_hit(void)
{
	return !READ_ONCE(canary_registered) ||
	       READ_ONCE(*canary_probe.addr) != canary_probe.opcode;
}
NOKPROBE_SYMBOL(ipttrace_kprobes_hit);

#ifdef CONFIG_KPROBES_ON_FTRACE

/* Never called.  Permanent ops have to be attached to some function. */
static noinline int switch_site(void)
{
	return READ_ONCE(canary_registered) ? 42 : 0;
}

static void notrace switch_hit(unsigned long ip, unsigned long parent_ip,
			       struct ftrace_ops *ops,
			       ipttrace_ftrace_regs *regs)
{
}

static struct ftrace_ops switch_ops = {
	.func = switch_hit,
	.flags = FTRACE_OPS_FL_PERMANENT,
};
static bool switch_held;

/*
 * From here on until _release, kernel.ftrace_enabled=0 is refused.
 * -EBUSY: ftrace is switched off already.
 */
int ipttrace_ftrace_hold(void)
{
	int err;

	if (switch_held)
		return 0;
	err = ftrace_set_filter_ip(&switch_ops, (unsigned long)switch_site, 0,
				   1);
	if (!err)
		err = register_ftrace_function(&switch_ops);
	switch_held = !err;
	return err;
}

void ipttrace_ftrace_release(void)
{
	if (switch_held)
		unregister_ftrace_function(&switch_ops);
	switch_held = false;
}

#else

int ipttrace_ftrace_hold(void)
{
	return 0;
}

void ipttrace_ftrace_release(void)
{
}

#endif
