// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generation of the rules: a number that rises with every change of a
 * table, so that a record can name the rules its packet met.
 *
 * One sequence numbers the changes in all network namespaces, but a namespace's
 * generation is that of its own newest change: what others do neither changes
 * it nor makes it uncertain.
 *
 * Every change of a table goes through xt_replace_table().  A change has begun
 * before the new rules are in place, and is done when nobody uses the old ones
 * any more; the generation is certain while no change is under way.  A call is
 * in one generation if it is certain, and the same, at its entry and its exit.
 *
 * A struct xt_table does not contain its namespace.  The replacing task finds
 * the table by xt_request_find_table_lock(), and holds the mutex of its family
 * from there to the end of xt_replace_table().  The namespace passed to the
 * former is kept, one for each family, under that mutex.  New tables come
 * through xt_register_table(), which has the namespace among its arguments.
 *
 * Handlers run in process context with preemption off.  They do not sleep,
 * allocate or print: what changed is noted, see changes.c.
 *
 * A long file: all of it guards the same few variables.
 */

#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/netfilter/x_tables.h>
#include <net/net_namespace.h>
#include <net/netns/generic.h>

#include "ipttrace.h"

enum { REPLACE, REGISTER, FIND, RULESET_PROBES };

static int replace_enter(struct kretprobe_instance *ri, struct pt_regs *regs);
static int register_enter(struct kretprobe_instance *ri, struct pt_regs *regs);
static int change_exit(struct kretprobe_instance *ri, struct pt_regs *regs);
static int find_enter(struct kretprobe_instance *ri, struct pt_regs *regs);
static int find_exit(struct kretprobe_instance *ri, struct pt_regs *regs);

/* active: tasks in it at once; all but the first function wait for a mutex. */
static const struct {
	const char *symbol;
	kretprobe_handler_t entry;
	kretprobe_handler_t exit;
	int active;
} ruleset_targets[RULESET_PROBES] = {
	[REPLACE] = { "xt_replace_table", replace_enter, change_exit, 256 },
	[REGISTER] = { "xt_register_table", register_enter, change_exit, 1024 },
	[FIND] = { "xt_request_find_table_lock", find_enter, find_exit, 1024 },
};

static struct kretprobe ruleset_probes[RULESET_PROBES];

static struct {
	bool watching;
	bool blind; /* kprobes were off: changes may have been missed */
	const struct net *only; /* changes in others are of no interest */
	/* Written under the lock of changes.c, like any struct ipttrace_net. */
	u32 epoch; /* rises with each setup */
	u32 last;  /* generation of the newest change */
	u32 base;  /* generation of what has not changed since */
} ruleset;

/* Changes in namespaces that could not be found out. */
static struct ipttrace_net ruleset_nowhere;

/* What a handler keeps until the function returns. */
struct ruleset_change {
	struct ipttrace_net *rn;
	struct ipttrace_change what;
};

/* By family, each under x_tables' mutex of that family. */
static struct {
	const struct xt_table *table;
	const struct net *net;
} ruleset_found[NFPROTO_NUMPROTO];

static struct ipttrace_net *ruleset_net(const struct net *net)
{
	return net_generic(net, ipttrace_net_id);
}
NOKPROBE_SYMBOL(ruleset_net);

/* Adds what is known of a namespace; false: a change is under way. */
static bool net_generation(const struct ipttrace_net *rn, u32 *generation)
{
	u32 begun, done, last;

	if (READ_ONCE(rn->epoch) != READ_ONCE(ruleset.epoch))
		return true;
	smp_rmb();
	done = smp_load_acquire(&rn->done);
	last = READ_ONCE(rn->last);
	smp_rmb();
	begun = READ_ONCE(rn->begun);
	if ((s32)(last - *generation) > 0)
		*generation = last;
	return begun == done;
}
NOKPROBE_SYMBOL(net_generation);

/* The generation of a namespace; 0: unknown, or a change is under way. */
u32 ipttrace_ruleset(const struct net *net)
{
	u32 generation;
	bool certain;
	int i;

	if (!READ_ONCE(ruleset.watching) || READ_ONCE(ruleset.blind))
		return 0;
	if (!ipttrace_kprobes_hit()) {
		WRITE_ONCE(ruleset.blind, true);
		return 0;
	}
	/* At an exit: a call that met new rules must see their change begun. */
	smp_rmb();
	generation = smp_load_acquire(&ruleset.base);
	certain = net_generation(ruleset_net(net), &generation) &&
		  net_generation(&ruleset_nowhere, &generation);
	/* At an entry: the call reads the rules after this. */
	smp_rmb();
	if (!certain)
		return 0;
	for (i = 0; i < RULESET_PROBES; i++)
		if (ruleset_probes[i].kp.nmissed ||
		    (i != FIND && ruleset_probes[i].nmissed))
			return 0;
	return generation;
}
NOKPROBE_SYMBOL(ipttrace_ruleset);

static bool family_wanted(u8 family)
{
	return family == NFPROTO_IPV4 || family == NFPROTO_IPV6;
}
NOKPROBE_SYMBOL(family_wanted);

static void net_reset(struct ipttrace_net *rn)
{
	rn->begun = 0;
	rn->done = 0;
	rn->last = 0;
	rn->pending = 0;
	INIT_LIST_HEAD(&rn->reports);
	smp_wmb();
	WRITE_ONCE(rn->epoch, ruleset.epoch);
}
NOKPROBE_SYMBOL(net_reset);

/* net is NULL if it is unknown.  Returns false if nobody wants the change. */
static bool change_begin(struct ruleset_change *change, const struct net *net,
			 const struct xt_table *table)
{
	struct ipttrace_net *rn = net ? ruleset_net(net) : &ruleset_nowhere;
	unsigned long flags;

	/*
	 * A namespace that is being made may get tables before it is ours, and
	 * nobody has seen it without them.
	 */
	if (!rn)
		return false;
	if (net && ruleset.only && net != ruleset.only)
		return false;
	BUILD_BUG_ON(sizeof(change->what.table) != sizeof(table->name));
	memcpy(change->what.table, table->name, sizeof(change->what.table));
	change->what.family = table->af;
	change->what.netns = net ? net->ns.inum : 0;
	change->rn = rn;
	flags = ipttrace_changes_lock();
	if (rn->epoch != ruleset.epoch)
		net_reset(rn);
	WRITE_ONCE(rn->begun, rn->begun + 1);
	ipttrace_changes_unlock(flags);
	/* A call that meets the new rules sees their change begun. */
	smp_wmb();
	return true;
}
NOKPROBE_SYMBOL(change_begin);

static void change_end(struct ruleset_change *change, bool changed)
{
	struct ipttrace_net *rn = change->rn;
	unsigned long flags = ipttrace_changes_lock();

	if (!changed) {
		WRITE_ONCE(rn->begun, rn->begun - 1);
	} else {
		u32 generation = ruleset.last + 1;

		WRITE_ONCE(ruleset.last, generation);
		WRITE_ONCE(rn->last, generation);
		change->what.last = generation;
		if (rn != &ruleset_nowhere)
			ipttrace_change_note(rn, &change->what);
		else
			ipttrace_change_note_any(generation);
		smp_store_release(&rn->done, rn->done + 1);
	}
	ipttrace_changes_unlock(flags);
	if (changed)
		ipttrace_changes_wake();
}
NOKPROBE_SYMBOL(change_end);

/* xt_replace_table(table, num_counters, newinfo, error) */
static int replace_enter(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	const struct xt_table *table =
		(void *)regs_get_kernel_argument(regs, 0);
	u32 counters = regs_get_kernel_argument(regs, 1);
	const struct net *net = NULL;
	u8 family = table->af;

	/* Without counters it is a new table: see register_enter(). */
	if (!counters || !family_wanted(family))
		return 1;
	if (READ_ONCE(ruleset_found[family].table) == table)
		net = ruleset_found[family].net;
	return !change_begin((struct ruleset_change *)ri->data, net, table);
}
NOKPROBE_SYMBOL(replace_enter);

/* xt_register_table(net, table, …) */
static int register_enter(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	const struct net *net = (void *)regs_get_kernel_argument(regs, 0);
	const struct xt_table *table =
		(void *)regs_get_kernel_argument(regs, 1);

	if (!family_wanted(table->af))
		return 1;
	return !change_begin((struct ruleset_change *)ri->data, net, table);
}
NOKPROBE_SYMBOL(register_enter);

/* Both return NULL or an error if nothing has changed. */
static int change_exit(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	change_end((struct ruleset_change *)ri->data,
		   !IS_ERR_OR_NULL((void *)regs_return_value(regs)));
	return 0;
}
NOKPROBE_SYMBOL(change_exit);

/* xt_request_find_table_lock(net, family, name) */
static int find_enter(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	*(const struct net **)ri->data =
		(void *)regs_get_kernel_argument(regs, 0);
	return 0;
}
NOKPROBE_SYMBOL(find_enter);

static int find_exit(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	const struct xt_table *table = (void *)regs_return_value(regs);

	if (IS_ERR_OR_NULL(table) || !family_wanted(table->af))
		return 0;
	ruleset_found[table->af].table = table;
	ruleset_found[table->af].net = *(const struct net **)ri->data;
	return 0;
}
NOKPROBE_SYMBOL(find_exit);

/* Any may have been missed: that counts as one change of all tables. */
static void changes_missed(void)
{
	unsigned long flags = ipttrace_changes_lock();

	WRITE_ONCE(ruleset.last, ruleset.last + 1);
	smp_store_release(&ruleset.base, ruleset.last);
	ipttrace_change_note_any(ruleset.last);
	ipttrace_changes_unlock(flags);
}

static int probes_register(void)
{
	int err, i;

	for (i = 0; i < RULESET_PROBES; i++) {
		struct kretprobe *rp = &ruleset_probes[i];

		memset(rp, 0, sizeof(*rp));
		rp->kp.symbol_name = ruleset_targets[i].symbol;
		rp->entry_handler = ruleset_targets[i].entry;
		rp->handler = ruleset_targets[i].exit;
		rp->data_size = i == FIND ? sizeof(struct net *) :
					    sizeof(struct ruleset_change);
		rp->maxactive = ruleset_targets[i].active;
		err = register_kretprobe(rp);
		if (err)
			goto unregister;
	}
	return 0;

unregister:
	while (--i >= 0)
		unregister_kretprobe(&ruleset_probes[i]);
	return err;
}

/*
 * If it fails, generations are unknown: ipttrace_ruleset() returns 0.
 * They continue from the last ARM, of which a reader may still have rules.
 * only: the one namespace whose changes are watched, NULL for all.
 */
void ipttrace_ruleset_setup(const struct ipttrace_events *events,
			    const struct net *only)
{
	unsigned long flags;

	ruleset.only = only;
	memset(ruleset_found, 0, sizeof(ruleset_found));
	flags = ipttrace_changes_lock();
	/* Never 0, which a new namespace has. */
	if (!++ruleset.epoch)
		ruleset.epoch = 1;
	net_reset(&ruleset_nowhere);
	ipttrace_changes_unlock(flags);
	/* A namespace that ends leaves the lists of an earlier epoch alone. */
	ipttrace_changes_setup(events);
	changes_missed();
	WRITE_ONCE(ruleset.blind, false);
	WRITE_ONCE(ruleset.watching, !probes_register());
	if (ruleset.watching)
		ipttrace_changes_wake();
}

void ipttrace_ruleset_teardown(void)
{
	struct kretprobe *all[RULESET_PROBES];
	int i;

	if (!ruleset.watching)
		return;
	WRITE_ONCE(ruleset.watching, false);
	for (i = 0; i < RULESET_PROBES; i++)
		all[i] = &ruleset_probes[i];
	unregister_kretprobes(all, RULESET_PROBES);
	ipttrace_changes_teardown();
}

/* Kprobes that were switched off may have been switched on again. */
void ipttrace_ruleset_recover(void)
{
	if (!ruleset.watching)
		return;
	if (!ipttrace_kprobes_hit()) {
		WRITE_ONCE(ruleset.blind, true);
		return;
	}
	if (!READ_ONCE(ruleset.blind))
		return;
	changes_missed();
	smp_store_release(&ruleset.blind, false);
	ipttrace_changes_wake();
}

bool ipttrace_ruleset_watched(void)
{
	return ruleset.watching && !READ_ONCE(ruleset.blind);
}

/* All changes up to this generation are done. */
u32 ipttrace_ruleset_last(void)
{
	return ipttrace_ruleset_watched() ? READ_ONCE(ruleset.last) : 0;
}

/* A namespace ends, with whatever was to be reported of it. */
void ipttrace_ruleset_net_exit(struct net *net)
{
	struct ipttrace_net *rn = ruleset_net(net);
	unsigned long flags = ipttrace_changes_lock();
	int i;

	if (rn->epoch && rn->epoch == ruleset.epoch)
		list_del_init(&rn->reports);
	ipttrace_changes_unlock(flags);
	/* Its tables go after this, and their addresses may be used again. */
	for (i = 0; i < ARRAY_SIZE(ruleset_found); i++)
		if (READ_ONCE(ruleset_found[i].net) == net)
			WRITE_ONCE(ruleset_found[i].table, NULL);
}
