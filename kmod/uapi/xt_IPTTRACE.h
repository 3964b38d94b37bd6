/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * ipttrace: what a rule with the target IPTTRACE has in the table, revision 0.
 *
 * Shared by the module and by the extension of iptables (xtables/).
 */
#ifndef _UAPI_XT_IPTTRACE_H
#define _UAPI_XT_IPTTRACE_H

#include <linux/types.h>

#define IPTTRACE_NOTE_LEN 32

struct ipttrace_break_table;

struct xt_ipttrace_info {
	/* printable; from its end on NULs, of which there is at least one */
	char	note[IPTTRACE_NOTE_LEN];
	__u32	reserved[2]; /* 0 */
	/* the kernel's own, which user space neither sets nor sees */
	struct ipttrace_break_table *table __attribute__((aligned(8)));
};

#endif
