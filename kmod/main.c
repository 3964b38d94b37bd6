// SPDX-License-Identifier: GPL-2.0-only
/*
 * ipttrace: tells every iptables rule that every packet hits.
 *
 * Does nothing until it is armed over generic netlink; see uapi/ipttrace.h.
 */

#include <linux/init.h>
#include <linux/module.h>

#include "ipttrace.h"

static int __init ipttrace_init(void)
{
	return ipttrace_control_setup();
}

static void __exit ipttrace_exit(void)
{
	ipttrace_control_teardown();
}

module_init(ipttrace_init);
module_exit(ipttrace_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Tells every iptables rule that every packet hits");
MODULE_VERSION("0.1.0");
