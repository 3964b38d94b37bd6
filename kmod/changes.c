// SPDX-License-Identifier: GPL-2.0-only
/*
 * Changes of rules, from where they happen to those who want to know.
 *
 * They are noted in the namespace, for each of its tables, by handlers that do
 * not sleep, allocate or print.  A worker reports them, every REPORT_EVERY at
 * most: however often a table is replaced in between, it is one report. Anybody
 * may replace tables, in a user namespace of his own.
 */

#include <linux/irq_work.h>
#include <linux/jiffies.h>
#include <linux/kprobes.h>
#include <linux/list.h>
#include <linux/spinlock.h>
#include <linux/workqueue.h>

#include "ipttrace.h"

#define REPORT_EVERY (HZ / 50)

/* Of struct ipttrace_net; armed.c registers it. */
unsigned int ipttrace_net_id;

static arch_spinlock_t changes_spin = __ARCH_SPIN_LOCK_UNLOCKED;

/* Under the spinlock, like the notes in a struct ipttrace_net. */
static struct {
	u32 newest;		 /* generation */
	u32 any_first, any_last; /* changes of unknown tables; 0: none */
	struct list_head nets;	 /* with changes to report */
	struct list_head batch;	 /* which are being reported */
} changes;

static const struct ipttrace_events *changes_events;

static void changes_woken(struct irq_work *work);
static void changes_report(struct work_struct *work);
static struct irq_work changes_irq_work;
static DECLARE_DELAYED_WORK(changes_work, changes_report);

unsigned long ipttrace_changes_lock(void)
{
	unsigned long flags;

	local_irq_save(flags);
	arch_spin_lock(&changes_spin);
	return flags;
}
NOKPROBE_SYMBOL(ipttrace_changes_lock);

void ipttrace_changes_unlock(unsigned long flags)
{
	arch_spin_unlock(&changes_spin);
	local_irq_restore(flags);
}
NOKPROBE_SYMBOL(ipttrace_changes_unlock);

/* So many tables: the first note stands for any. */
static void notes_join(struct ipttrace_net *rn)
{
	struct ipttrace_change *one = &rn->change[0];
	u32 i;

	one->family = 0;
	memset(one->table, 0, sizeof(one->table));
	for (i = 1; i < rn->pending; i++)
		one->first = min(one->first, rn->change[i].first);
	rn->pending = 1;
}
NOKPROBE_SYMBOL(notes_join);

static struct ipttrace_change *note_of(struct ipttrace_net *rn,
				       const struct ipttrace_change *change)
{
	u32 i;

	for (i = 0; i < rn->pending; i++) {
		struct ipttrace_change *one = &rn->change[i];

		if (!one->family ||
		    (one->family == change->family &&
		     !memcmp(one->table, change->table, sizeof(one->table))))
			return one;
	}
	return NULL;
}
NOKPROBE_SYMBOL(note_of);

/* Under the lock: a table has changed, in change->last. */
void ipttrace_change_note(struct ipttrace_net *rn,
			  const struct ipttrace_change *change)
{
	struct ipttrace_change *one = note_of(rn, change);

	changes.newest = change->last;
	if (list_empty(&rn->reports))
		list_add_tail(&rn->reports, &changes.nets);
	if (one) {
		one->last = change->last;
	} else if (rn->pending < IPTTRACE_PENDING) {
		one = &rn->change[rn->pending++];
		*one = *change;
		one->first = change->last;
	} else {
		notes_join(rn);
		rn->change[0].last = change->last;
	}
}
NOKPROBE_SYMBOL(ipttrace_change_note);

/* Under the lock: any table may have changed, in that generation. */
void ipttrace_change_note_any(u32 generation)
{
	changes.newest = generation;
	if (!changes.any_first)
		changes.any_first = generation;
	changes.any_last = generation;
}
NOKPROBE_SYMBOL(ipttrace_change_note_any);

/* From handlers: there is something to report. */
void ipttrace_changes_wake(void)
{
	irq_work_queue(&changes_irq_work);
}
NOKPROBE_SYMBOL(ipttrace_changes_wake);

/* At once if the last report is long ago. */
static void changes_woken(struct irq_work *work)
{
	static unsigned long next;
	unsigned long now = jiffies, wait = 0;

	if (time_before(now, next) && next - now <= REPORT_EVERY)
		wait = next - now;
	if (schedule_delayed_work(&changes_work, wait))
		next = now + wait + REPORT_EVERY;
}

/* Begins a report of all that has changed up to the generation returned. */
static u32 report_begin(struct ipttrace_change *any)
{
	unsigned long flags = ipttrace_changes_lock();
	u32 upto = changes.newest;

	*any = (struct ipttrace_change){
		.first = changes.any_first,
		.last = changes.any_last,
	};
	changes.any_first = 0;
	list_splice_tail_init(&changes.nets, &changes.batch);
	ipttrace_changes_unlock(flags);
	return upto;
}

/* Takes the changes of one namespace; returns how many, 0: that was all. */
static u32 report_take(struct ipttrace_change *taken)
{
	unsigned long flags = ipttrace_changes_lock();
	struct ipttrace_net *rn;
	u32 count = 0;

	if (!list_empty(&changes.batch)) {
		rn = list_first_entry(&changes.batch, struct ipttrace_net,
				      reports);
		list_del_init(&rn->reports);
		count = rn->pending;
		rn->pending = 0;
		memcpy(taken, rn->change, count * sizeof(*taken));
	}
	ipttrace_changes_unlock(flags);
	return count;
}

/* What could not be reported may be any table. */
static void report_fail(void)
{
	unsigned long flags = ipttrace_changes_lock();

	ipttrace_change_note_any(changes.newest);
	ipttrace_changes_unlock(flags);
	schedule_delayed_work(&changes_work, REPORT_EVERY);
}

static void changes_report(struct work_struct *work)
{
	/* One worker at a time. */
	static struct ipttrace_change taken[IPTTRACE_PENDING];
	struct ipttrace_change any;
	u32 upto = report_begin(&any);
	u32 i, count;

	if (any.first && !changes_events->rules_changed(&any))
		goto fail;
	while ((count = report_take(taken)))
		for (i = 0; i < count; i++)
			if (!changes_events->rules_changed(&taken[i]))
				goto fail;
	changes_events->rules_reported(upto);
	return;

fail:
	report_fail();
}

/* Nothing is to be reported yet. */
void ipttrace_changes_setup(const struct ipttrace_events *events)
{
	unsigned long flags;

	changes_events = events;
	init_irq_work(&changes_irq_work, changes_woken);
	flags = ipttrace_changes_lock();
	INIT_LIST_HEAD(&changes.nets);
	INIT_LIST_HEAD(&changes.batch);
	changes.any_first = 0;
	ipttrace_changes_unlock(flags);
}

/* After the last handler has returned. */
void ipttrace_changes_teardown(void)
{
	irq_work_sync(&changes_irq_work);
	cancel_delayed_work_sync(&changes_work);
}
