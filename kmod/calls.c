// SPDX-License-Identifier: GPL-2.0-only
/*
 * The index of running calls: finds, from inside a call, the kretprobe instance
 * that holds its state.
 *
 * The key is the task whose stack the call is on, and the skb; newest first.
 * That covers calls inside calls (a REJECT sends a packet), and softirqs on top
 * of them.
 *
 * Handlers do not run inside one another on a CPU, and preemption is off in
 * them: raw spinlocks without lockdep are enough.
 */

#include <linux/hash.h>
#include <linux/kprobes.h>
#include <linux/netfilter/x_tables.h>
#include <linux/sched.h>
#include <linux/spinlock.h>

#include "ipttrace.h"

#define CALL_INDEX_BITS 8

struct call_bucket {
	arch_spinlock_t lock;
	struct hlist_head calls;
};

static struct call_bucket call_index[1 << CALL_INDEX_BITS];

static struct call_bucket *call_bucket(const struct task_struct *task)
{
	return &call_index[hash_ptr(task, CALL_INDEX_BITS)];
}

/* Adds it to the index, and sets its parent: the call inside which it runs. */
void ipttrace_call_link(struct ipttrace_call *call)
{
	struct call_bucket *bucket = call_bucket(call->task);
	struct ipttrace_call *other;

	call->parent = NULL;
	call->inner = NULL;
	arch_spin_lock(&bucket->lock);
	hlist_for_each_entry(other, &bucket->calls, node) {
		/* A softirq that interrupted a call was not caused by it. */
		if (other->task == call->task &&
		    other->softirq == call->softirq) {
			call->parent = other;
			break;
		}
	}
	hlist_add_head(&call->node, &bucket->calls);
	arch_spin_unlock(&bucket->lock);
	call->depth = call->parent ? call->parent->depth + 1 : 1;
}
NOKPROBE_SYMBOL(ipttrace_call_link);

/*
 * Whether the call is the first of a packet that a target sends inside the call
 * around it.  nf_trace does not show that: a copy (TEE) has its original's, and
 * perhaps the address of an earlier copy, which was further on its way.
 */
bool ipttrace_call_copied(struct ipttrace_call *call)
{
	struct ipttrace_call *parent = call->parent;
	bool first;

	if (!parent || parent->skb == call->skb)
		return false;
	first = parent->inner != call->skb || call->hook < parent->inner_hook ||
		(call->hook == parent->inner_hook &&
		 (call->table == parent->inner_table ||
		  call->table->priority < parent->inner_priority));
	parent->inner = call->skb;
	parent->inner_table = call->table;
	parent->inner_priority = call->table->priority;
	parent->inner_hook = call->hook;
	return first;
}
NOKPROBE_SYMBOL(ipttrace_call_copied);

void ipttrace_call_unlink(struct ipttrace_call *call)
{
	struct call_bucket *bucket = call_bucket(call->task);

	arch_spin_lock(&bucket->lock);
	hlist_del(&call->node);
	arch_spin_unlock(&bucket->lock);
}
NOKPROBE_SYMBOL(ipttrace_call_unlink);

/* The call that is running on skb in this task; valid until that returns. */
struct ipttrace_call *ipttrace_call_find(const struct sk_buff *skb)
{
	struct call_bucket *bucket = call_bucket(current);
	struct ipttrace_call *call, *found = NULL;

	arch_spin_lock(&bucket->lock);
	hlist_for_each_entry(call, &bucket->calls, node) {
		if (call->task == current && call->skb == skb) {
			found = call;
			break;
		}
	}
	arch_spin_unlock(&bucket->lock);
	return found;
}
NOKPROBE_SYMBOL(ipttrace_call_find);

void ipttrace_calls_clear(void)
{
	int i;

	for (i = 0; i < ARRAY_SIZE(call_index); i++) {
		call_index[i].lock = (arch_spinlock_t)__ARCH_SPIN_LOCK_UNLOCKED;
		INIT_HLIST_HEAD(&call_index[i].calls);
	}
}
