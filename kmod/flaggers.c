// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who else sets nf_trace: rules with the target TRACE, and nftables' rules with
 * "meta nftrace set 1".
 *
 * The kernel copies nf_trace to copies and fragments of a packet, at addresses
 * that follow.c does not know.  So a packet with nf_trace set that is not known
 * may be the child of one of ours.  It certainly is as long as nobody else sets
 * nf_trace; if somebody does, it may be theirs, and its log lines are what they
 * asked for.
 *
 * TRACE is seen at work: a probe on its function notes the namespace before the
 * first line about a packet.  "meta nftrace" counts if there is such a rule in
 * any namespace: the kernel keeps their number in a static key.
 *
 * Modules are watched: both may be loaded, and unloaded, while armed.
 */

#include <linux/bitmap.h>
#include <linux/hash.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/netfilter/x_tables.h>
#include <linux/notifier.h>
#include <linux/rcupdate.h>
#include <linux/string.h>
#include <net/net_namespace.h>

#include "breaks.h"
#include "ipttrace.h"

#define NETNS_BITS 8

#if IS_BUILTIN(CONFIG_NETFILTER_XT_TARGET_TRACE)
#define TRACE_SYMBOL "trace_tg"
#else
#define TRACE_SYMBOL "xt_TRACE:trace_tg"
#endif

static struct {
	struct mutex mutex; /* the probe, and who looks up the key */
	struct kprobe probe;
	bool probed;
	bool unknown; /* TRACE cannot be seen */
	/* Where TRACE was seen, by hash of inode; a collision errs that way. */
	DECLARE_BITMAP(netns, 1 << NETNS_BITS);
} flaggers = {
	.mutex = __MUTEX_INITIALIZER(flaggers.mutex),
};

static u32 netns_hash(const struct net *net)
{
	return hash_32(net->ns.inum, NETNS_BITS);
}
NOKPROBE_SYMBOL(netns_hash);

/* trace_tg(skb, par), before it sets nf_trace */
static int trace_hit(struct kprobe *p, struct pt_regs *regs)
{
	const struct sk_buff *skb = (void *)regs_get_kernel_argument(regs, 0);
	const struct xt_action_param *par =
		(void *)regs_get_kernel_argument(regs, 1);
	u32 at = netns_hash(xt_net(par));

	if (!test_bit(at, flaggers.netns))
		set_bit(at, flaggers.netns);
	/* Its address may be that of an earlier packet, which was ours. */
	if (!skb->nf_trace)
		ipttrace_follow_del(skb);
	return 0;
}
NOKPROBE_SYMBOL(trace_hit);

static void probe_unregister(void)
{
	if (!flaggers.probed)
		return;
	unregister_kprobe(&flaggers.probe);
	flaggers.probed = false;
}

static void probe_register(void)
{
	struct kprobe *kp = &flaggers.probe;
	int err;

	probe_unregister();
	memset(kp, 0, sizeof(*kp));
	kp->symbol_name = TRACE_SYMBOL;
	kp->pre_handler = trace_hit;
	err = register_kprobe(kp);
	flaggers.probed = !err;
	WRITE_ONCE(flaggers.unknown,
		   err && (err != -ENOENT ||
			   IS_BUILTIN(CONFIG_NETFILTER_XT_TARGET_TRACE)));
}

/* Without a reference: nf_tables may be unloaded, of which we are told. */
static void nft_find(void)
{
	void *key = NULL;

	if (IS_ENABLED(CONFIG_NF_TABLES))
		key = __symbol_get("nft_trace_enabled");
	WRITE_ONCE(ipttrace_nft_tracing, key);
	if (key)
		__symbol_put("nft_trace_enabled");
}

static int flaggers_module_moves(struct notifier_block *block,
				 unsigned long event, void *data)
{
	const struct module *module = data;

	mutex_lock(&flaggers.mutex);
	if (!strcmp(module->name, "xt_TRACE")) {
		if (event == MODULE_STATE_COMING)
			probe_register();
		else if (event == MODULE_STATE_GOING)
			probe_unregister();
	} else if (!strcmp(module->name, "nf_tables")) {
		if (event == MODULE_STATE_LIVE) {
			nft_find();
		} else if (event == MODULE_STATE_GOING) {
			WRITE_ONCE(ipttrace_nft_tracing, NULL);
			synchronize_rcu();
		}
	}
	mutex_unlock(&flaggers.mutex);
	return NOTIFY_DONE;
}

static struct notifier_block flaggers_module_block = {
	.notifier_call = flaggers_module_moves,
};

/* If TRACE cannot be seen, it counts as in use: this cannot fail. */
void ipttrace_flaggers_setup(void)
{
	bitmap_zero(flaggers.netns, 1 << NETNS_BITS);
	register_module_notifier(&flaggers_module_block);
	mutex_lock(&flaggers.mutex);
	probe_register();
	nft_find();
	mutex_unlock(&flaggers.mutex);
}

/* After _setup(). */
void ipttrace_flaggers_teardown(void)
{
	unregister_module_notifier(&flaggers_module_block);
	mutex_lock(&flaggers.mutex);
	probe_unregister();
	WRITE_ONCE(ipttrace_nft_tracing, NULL);
	mutex_unlock(&flaggers.mutex);
}

/* Void while kprobes are switched off: TRACE is not seen at work then. */
bool ipttrace_flaggers_any(const struct net *net)
{
	return READ_ONCE(flaggers.unknown) || flaggers.probe.nmissed ||
	       test_bit(netns_hash(net), flaggers.netns) ||
	       ipttrace_breaks_socket_wants(net) || ipttrace_nft_traces();
}
NOKPROBE_SYMBOL(ipttrace_flaggers_any);

/* Whether the target TRACE is there. */
bool ipttrace_flaggers_trace(void)
{
	return READ_ONCE(flaggers.probed) || READ_ONCE(flaggers.unknown);
}
NOKPROBE_SYMBOL(ipttrace_flaggers_trace);
