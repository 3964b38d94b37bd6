/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What bpf/nft.bpf.c and bpf/legacy.bpf.c write to their ring: one record for each run of a
 * packet through a base chain of nftables, or through a legacy table.  The agent makes an
 * entry, rules and an exit of it.
 *
 * Checked by a test against ipttrace/capture/bpf/runs.py.
 */
#ifndef IPTTRACE_RUN_H
#define IPTTRACE_RUN_H

#include "record.h"

#define IPTTRACE_OWN_TABLE	"ipttrace-"	/* how the names of tables that flip begin */
#define IPTTRACE_RUN_NAME_LEN	64		/* longer ones: ipttrace_run_name */
#define IPTTRACE_RUN_HITS	16

struct ipttrace_run_hit {
	__u64	time;
	__u64	handle;		/* of the rule, 0: none; legacy: its number */
	__s32	verdict;	/* nftables: NF_*, NFT_* */
	__u8	type;		/* NFT_TRACETYPE_*; legacy: as logged, IPTTRACE_MATCH_* */
	__u8	reserved[3];
	char	chain[IPTTRACE_RUN_NAME_LEN];
};

/* ipttrace_run.flags */
#define IPTTRACE_RUN_FOREIGN	0x01	/* our table has not flipped the packet */
#define IPTTRACE_RUN_NO_CONNTRACK 0x02	/* it has an entry that cannot be read */
#define IPTTRACE_RUN_DOUBTFUL	0x04	/* it has, and EXPR needs more than could be read */

/* Which run it is of; before its hits, so that a run's first ones can go ahead of it. */
struct ipttrace_run_piece {
	__u64	run;		/* with began: unique */
	__u64	began;
};

/* A name that is cut in a run, which it goes ahead of. */
struct ipttrace_run_name {
	struct ipttrace_run_piece piece;
	__u64	time;		/* of the hit whose chain it is; 0: the table */
	char	name[256];	/* NFT_NAME_MAXLEN */
};

/* A packet that our table has flipped. */
struct ipttrace_run_flip {
	__u64	time;
	__u64	skb;
};

struct ipttrace_run {
	struct ipttrace_entry	entry;	/* ruleset: 0; nftables: table too */
	struct ipttrace_exit	exit;	/* rules: all hits, those of pieces too */
	__u32	generation;	/* of the ruleset of nftables, 0: unknown */
	__u16	hit_count;
	__u8	flags;
	__u8	reserved;
	char	table[IPTTRACE_RUN_NAME_LEN];
	__u64	reserved1;
	struct ipttrace_run_piece piece;
	struct ipttrace_run_hit	hits[IPTTRACE_RUN_HITS];	/* as many as hit_count */
};

/* The counters; each CPU has IPTTRACE_COUNTERS_EACH of them, a cache line. */
enum ipttrace_counter {
	IPTTRACE_COUNT_RUNS,		/* records to be written */
	IPTTRACE_COUNT_RULES,
	IPTTRACE_COUNT_LOST_RUNS,		/* for which the ring had no room */
	IPTTRACE_COUNT_LOST_RULES,
	IPTTRACE_COUNT_MISSED,		/* no state was free; legacy: no hit was seen */
	IPTTRACE_COUNT_REFUSED,		/* runs of packets that EXPR does not match */
};

#define IPTTRACE_COUNTERS_EACH	8

_Static_assert(sizeof(struct ipttrace_run_hit) == 88, "run_hit size");
_Static_assert(sizeof(struct ipttrace_run_name) == 280, "run_name size");
_Static_assert(sizeof(struct ipttrace_run_flip) == 16, "run_flip size");
_Static_assert(__builtin_offsetof(struct ipttrace_run, hits) == 600,
	       "run.hits has moved");

#endif
