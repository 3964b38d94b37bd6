// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which BPF programs the module runs, and how: those of this project, from pins
 * that only root can have made.
 *
 * A kprobe program of anybody else is harmless where the kernel attaches it; the
 * module runs it elsewhere, and so refuses what relies on a place of its own: a
 * program that sleeps, that overrides the return of the probed function, or that
 * expects the context of another kind of attachment.
 *
 * Their names tell that they are ours.  Their tags would not: they depend on how
 * the object was compiled, which is not when the module is, and on the kernel's
 * hash.  A program that lies about its name can do no more than any other kprobe
 * program, as it has a context to run in.
 */

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/kprobes.h>
#include <linux/namei.h>
#include <linux/netlink.h>
#include <linux/rcupdate.h>
#include <linux/string.h>
#include <linux/uidgid.h>
#include <net/netlink.h>

#include "compat.h"
#include "ipttrace.h"

static const char *const program_names[IPTTRACE_PROGS] = {
	[IPTTRACE_PROG_CALL] = "ipttrace_call",
	[IPTTRACE_PROG_RULE] = "ipttrace_rule",
};

static bool inode_roots(const struct inode *inode)
{
	return uid_eq(inode->i_uid, GLOBAL_ROOT_UID) &&
	       !(inode->i_mode & (S_IWGRP | S_IWOTH));
}

/* Whether only root can have put it there: folder and pin are root's. */
static int pin_check(const char *pin, bool *roots)
{
	struct dentry *folder;
	struct path path;
	int err;

	err = kern_path(pin, LOOKUP_FOLLOW, &path);
	if (err)
		return err;
	folder = dget_parent(path.dentry);
	*roots = inode_roots(d_inode(folder)) &&
		 inode_roots(d_inode(path.dentry));
	dput(folder);
	path_put(&path);
	return 0;
}

/* Whether to run the program that was found at the path in this attribute. */
int ipttrace_program_check(const struct bpf_prog *prog,
			   const struct nlattr *path, enum ipttrace_prog which,
			   struct netlink_ext_ack *extack)
{
	bool roots;
	int err;

	err = pin_check(nla_data(path), &roots);
	if (err) {
		NL_SET_ERR_MSG_ATTR(extack, path,
				    "no BPF program is pinned at this path");
		return err;
	}
	if (!roots) {
		NL_SET_ERR_MSG_ATTR(
			extack, path,
			"others than root can replace the BPF program at this path");
		return -EPERM;
	}
	if (ipttrace_prog_sleepable(prog) || prog->kprobe_override ||
	    prog->expected_attach_type || prog->aux->attach_btf_id ||
	    strcmp(prog->aux->name, program_names[which])) {
		NL_SET_ERR_MSG_ATTR(
			extack, path,
			"the BPF program at this path is not the one of ipttrace");
		return -EINVAL;
	}
	return 0;
}

/*
 * As the kernel runs the programs of its own kprobes, but for bpf_prog_active:
 * that keeps programs from maps which the interrupted code has locked, and ours
 * use none that has a lock.
 */
void ipttrace_program_run(const struct bpf_prog *prog, void *context)
{
	struct bpf_trace_run_ctx run_ctx = {};
	struct bpf_run_ctx *old;

	rcu_read_lock();
	old = ipttrace_run_ctx_set(&run_ctx);
	bpf_prog_run(prog, context);
	ipttrace_run_ctx_reset(old);
	rcu_read_unlock();
}
NOKPROBE_SYMBOL(ipttrace_program_run);
