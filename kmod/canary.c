// SPDX-License-Identifier: GPL-2.0-only
/*
 * Whether kprobes hit.  Root can switch all of them off, and on again, by
 * debugfs (kprobes/enabled): they stay registered, and nobody is told.
 *
 * The canary is a kprobe on a function that is never called.  Its first
 * instruction is a breakpoint exactly while kprobes are armed, which is read
 * there.
 */

#include <linux/kprobes.h>

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
