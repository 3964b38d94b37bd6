// SPDX-License-Identifier: GPL-2.0-only
/* The reference: a kretprobe on ipt_do_table() that skips every return. */

#include <linux/kprobes.h>
#include <linux/module.h>

static int skip(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	return 1;
}
NOKPROBE_SYMBOL(skip);

static struct kretprobe probe = {
	.kp.symbol_name = "ipt_do_table",
	.entry_handler = skip,
	.maxactive = 128,
};

static int __init bare_init(void)
{
	return register_kretprobe(&probe);
}

static void __exit bare_exit(void)
{
	unregister_kretprobe(&probe);
}

module_init(bare_init);
module_exit(bare_exit);

MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A kretprobe on ipt_do_table that skips every return");
