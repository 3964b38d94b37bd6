/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Rules with the target IPTTRACE, for the files that know of them.
 */
#ifndef IPTTRACE_BREAKS_H
#define IPTTRACE_BREAKS_H

#include <linux/list.h>
#include <linux/types.h>

#include "record.h"

struct net;
struct xt_table;

/* A table with rules that have the target IPTTRACE.  breaks.c owns it. */
struct ipttrace_break_table {
	struct list_head list;
	struct rcu_head rcu;
	const struct net *net;	      /* compared, never dereferenced */
	const struct xt_table *table; /* legacy only; NULL: not found */
	u32 netns;
	u32 rules;
	u8 family;
	bool nft; /* a table of nftables, by nft_compat */
	char name[IPTTRACE_NAME_LEN];
};

/* target.c */
int ipttrace_target_setup(void);
void ipttrace_target_teardown(void);

/* breaks.c: a socket's and a namespace's end without waiting */
int ipttrace_breaks_add(const struct net *owner, u32 portid,
			const struct net *only);
void ipttrace_breaks_socket_gone(const struct net *owner, u32 portid);
void ipttrace_breaks_net_exit(const struct net *net);
bool ipttrace_breaks_socket_wants(const struct net *net);
bool ipttrace_breaks_in(const struct xt_table *table);
bool ipttrace_breaks_get(unsigned long n, struct ipttrace_break_table *copy);
struct ipttrace_break_table *ipttrace_break_table_get(struct net *net,
						      u8 family,
						      const char *name,
						      bool nft);
void ipttrace_break_table_put(struct ipttrace_break_table *one);

#endif
