// SPDX-License-Identifier: GPL-2.0-only
/*
 * The generation of all rules: a number that rises with every change of a table
 * in any network namespace, so that a record can name the rules its packet met.
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
 * allocate or print: a change goes into a ring, and a worker reports it.  If
 * the ring is full it is dropped; a reader sees that by the missing generation.
 */

#include <linux/irq_work.h>
#include <linux/kprobes.h>
#include <linux/netfilter/x_tables.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>
#include <net/net_namespace.h>

#include "ipttrace.h"

#define RULESET_RING   256 /* changes that wait for the worker; 2^n */
#define RULESET_ACTIVE 256 /* tasks inside a probed function at once */

enum { REPLACE, REGISTER, FIND, RULESET_PROBES };

static int replace_enter(struct kretprobe_instance *ri, struct pt_regs *regs);
static int replace_exit(struct kretprobe_instance *ri, struct pt_regs *regs);
static int register_enter(struct kretprobe_instance *ri, struct pt_regs *regs);
static int register_exit(struct kretprobe_instance *ri, struct pt_regs *regs);
static int find_enter(struct kretprobe_instance *ri, struct pt_regs *regs);
static int find_exit(struct kretprobe_instance *ri, struct pt_regs *regs);

static const struct {
	const char *symbol;
	kretprobe_handler_t entry;
	kretprobe_handler_t exit;
} ruleset_targets[RULESET_PROBES] = {
	[REPLACE] = { "xt_replace_table", replace_enter, replace_exit },
	[REGISTER] = { "xt_register_table", register_enter, register_exit },
	[FIND] = { "xt_request_find_table_lock", find_enter, find_exit },
};

static struct kretprobe ruleset_probes[RULESET_PROBES];

static struct {
	bool watching;
	const struct ipttrace_events *events;
	u32 begun;
	u32 done;
	/* Held to write begun and done, and to use the ring. */
	arch_spinlock_t lock;
	u32 head, tail;
	struct ipttrace_change ring[RULESET_RING];
} ruleset;

/* By family, each under x_tables' mutex of that family. */
static struct {
	const struct xt_table *table;
	u32 netns;
} ruleset_found[NFPROTO_NUMPROTO];

static void ruleset_wake(struct irq_work *work);
static void ruleset_report(struct work_struct *work);
static struct irq_work ruleset_irq_work;
static DECLARE_WORK(ruleset_work, ruleset_report);

/* The current generation; 0: unknown, or a change is under way. */
u32 ipttrace_ruleset(void)
{
	u32 begun, done;
	int i;

	if (!READ_ONCE(ruleset.watching))
		return 0;
	/* At an exit: a call that met new rules must see their change begun. */
	smp_rmb();
	done = smp_load_acquire(&ruleset.done);
	begun = READ_ONCE(ruleset.begun);
	/* At an entry: the call reads the rules after this. */
	smp_rmb();
	if (begun != done)
		return 0;
	for (i = 0; i < RULESET_PROBES; i++)
		if (ruleset_probes[i].nmissed || ruleset_probes[i].kp.nmissed)
			return 0;
	return done + 1;
}
NOKPROBE_SYMBOL(ipttrace_ruleset);

static bool family_wanted(u8 family)
{
	return family == NFPROTO_IPV4 || family == NFPROTO_IPV6;
}
NOKPROBE_SYMBOL(family_wanted);

static unsigned long ruleset_lock(void)
{
	unsigned long flags;

	local_irq_save(flags);
	arch_spin_lock(&ruleset.lock);
	return flags;
}
NOKPROBE_SYMBOL(ruleset_lock);

static void ruleset_unlock(unsigned long flags)
{
	arch_spin_unlock(&ruleset.lock);
	local_irq_restore(flags);
}
NOKPROBE_SYMBOL(ruleset_unlock);

static void change_begin(void)
{
	unsigned long flags = ruleset_lock();

	WRITE_ONCE(ruleset.begun, ruleset.begun + 1);
	ruleset_unlock(flags);
	/* A call that meets the new rules sees their change begun. */
	smp_wmb();
}
NOKPROBE_SYMBOL(change_begin);

static void change_end(const struct ipttrace_change *change, bool changed)
{
	unsigned long flags = ruleset_lock();

	if (!changed) {
		WRITE_ONCE(ruleset.begun, ruleset.begun - 1);
	} else {
		if (ruleset.head - ruleset.tail < RULESET_RING) {
			struct ipttrace_change *slot =
				&ruleset.ring[ruleset.head++ &
					      (RULESET_RING - 1)];

			*slot = *change;
			slot->generation = ruleset.done + 2;
		}
		smp_store_release(&ruleset.done, ruleset.done + 1);
	}
	ruleset_unlock(flags);
	if (changed)
		irq_work_queue(&ruleset_irq_work);
}
NOKPROBE_SYMBOL(change_end);

static void change_name(struct ipttrace_change *change,
			const struct xt_table *table)
{
	BUILD_BUG_ON(sizeof(change->table) != sizeof(table->name));
	change->family = table->af;
	memcpy(change->table, table->name, sizeof(change->table));
}
NOKPROBE_SYMBOL(change_name);

/* xt_replace_table(table, num_counters, newinfo, error) */
static int replace_enter(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	const struct xt_table *table =
		(void *)regs_get_kernel_argument(regs, 0);
	u32 counters = regs_get_kernel_argument(regs, 1);
	struct ipttrace_change *change = (struct ipttrace_change *)ri->data;
	u8 family = table->af;

	/* Without counters it is a new table: see register_enter(). */
	if (!counters || !family_wanted(family))
		return 1;
	change_name(change, table);
	change->netns = ruleset_found[family].table == table ?
				ruleset_found[family].netns :
				0;
	change_begin();
	return 0;
}
NOKPROBE_SYMBOL(replace_enter);

static int replace_exit(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	change_end((struct ipttrace_change *)ri->data,
		   regs_return_value(regs) != 0);
	return 0;
}
NOKPROBE_SYMBOL(replace_exit);

/* xt_register_table(net, table, …) */
static int register_enter(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	const struct net *net = (void *)regs_get_kernel_argument(regs, 0);
	const struct xt_table *table =
		(void *)regs_get_kernel_argument(regs, 1);
	struct ipttrace_change *change = (struct ipttrace_change *)ri->data;

	if (!family_wanted(table->af))
		return 1;
	change_name(change, table);
	change->netns = net->ns.inum;
	change_begin();
	return 0;
}
NOKPROBE_SYMBOL(register_enter);

static int register_exit(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	change_end((struct ipttrace_change *)ri->data,
		   !IS_ERR_OR_NULL((void *)regs_return_value(regs)));
	return 0;
}
NOKPROBE_SYMBOL(register_exit);

/* xt_request_find_table_lock(net, family, name) */
static int find_enter(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	const struct net *net = (void *)regs_get_kernel_argument(regs, 0);

	*(u32 *)ri->data = net->ns.inum;
	return 0;
}
NOKPROBE_SYMBOL(find_enter);

static int find_exit(struct kretprobe_instance *ri, struct pt_regs *regs)
{
	const struct xt_table *table = (void *)regs_return_value(regs);

	if (IS_ERR_OR_NULL(table) || !family_wanted(table->af))
		return 0;
	ruleset_found[table->af].table = table;
	ruleset_found[table->af].netns = *(u32 *)ri->data;
	return 0;
}
NOKPROBE_SYMBOL(find_exit);

static void ruleset_wake(struct irq_work *work)
{
	schedule_work(&ruleset_work);
}

static bool change_pop(struct ipttrace_change *change)
{
	unsigned long flags = ruleset_lock();
	bool any = ruleset.tail != ruleset.head;

	if (any)
		*change = ruleset.ring[ruleset.tail++ & (RULESET_RING - 1)];
	ruleset_unlock(flags);
	return any;
}

static void ruleset_report(struct work_struct *work)
{
	struct ipttrace_change change;

	while (change_pop(&change))
		ruleset.events->rules_changed(&change);
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
		rp->data_size = i == FIND ? sizeof(u32) :
					    sizeof(struct ipttrace_change);
		rp->maxactive = RULESET_ACTIVE;
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

static void probes_unregister(void)
{
	struct kretprobe *all[RULESET_PROBES];
	int i;

	for (i = 0; i < RULESET_PROBES; i++)
		all[i] = &ruleset_probes[i];
	unregister_kretprobes(all, RULESET_PROBES);
}

/*
 * If it fails, generations are unknown: ipttrace_ruleset() returns 0.
 * They continue from the last ARM, of which a reader may still have rules.
 */
void ipttrace_ruleset_setup(const struct ipttrace_events *events)
{
	const struct ipttrace_change any = { .generation = ruleset.done + 1 };

	ruleset.events = events;
	if (ruleset.done)
		events->rules_changed(&any);
	ruleset.lock = (arch_spinlock_t)__ARCH_SPIN_LOCK_UNLOCKED;
	ruleset.begun = ruleset.done;
	ruleset.head = 0;
	ruleset.tail = 0;
	memset(ruleset_found, 0, sizeof(ruleset_found));
	init_irq_work(&ruleset_irq_work, ruleset_wake);
	WRITE_ONCE(ruleset.watching, !probes_register());
}

void ipttrace_ruleset_teardown(void)
{
	if (!ruleset.watching)
		return;
	WRITE_ONCE(ruleset.watching, false);
	probes_unregister();
	irq_work_sync(&ruleset_irq_work);
	cancel_work_sync(&ruleset_work);
	/* Changes from here on are not seen: all of them count as one. */
	ruleset.done++;
}

/* x_tables may be unloaded, and loaded again, while armed. */
void ipttrace_ruleset_rescan(void)
{
	int i;

	if (ruleset.watching) {
		for (i = 0; i < RULESET_PROBES; i++)
			if (kprobe_gone(&ruleset_probes[i].kp))
				break;
		if (i == RULESET_PROBES)
			return;
		ipttrace_ruleset_teardown();
	}
	ipttrace_ruleset_setup(ruleset.events);
}

bool ipttrace_ruleset_watched(void)
{
	return ruleset.watching;
}
