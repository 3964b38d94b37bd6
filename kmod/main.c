// SPDX-License-Identifier: GPL-2.0-only
/*
 * ipttrace: reports each iptables rule that a packet hits.
 *
 * Does nothing until it is armed over generic netlink; see uapi/ipttrace.h.
 * Rules may have its target IPTTRACE, which holds the module.
 * The order of its files is in ipttrace.h.
 */

#include <linux/init.h>
#include <linux/module.h>

#include "breaks.h"
#include "ipttrace.h"

static int __init ipttrace_init(void)
{
	int err;

	err = ipttrace_netlink_setup();
	if (err)
		return err;
	err = ipttrace_target_setup();
	if (err)
		ipttrace_netlink_teardown();
	return err;
}

static void __exit ipttrace_exit(void)
{
	ipttrace_target_teardown();
	ipttrace_netlink_teardown();
}

module_init(ipttrace_init);
module_exit(ipttrace_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Reports each iptables rule that a packet hits");
MODULE_VERSION("0.1.0");
MODULE_ALIAS("ipt_IPTTRACE");
MODULE_ALIAS("ip6t_IPTTRACE");
