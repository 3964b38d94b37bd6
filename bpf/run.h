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
#define IPTTRACE_RUN_HITS	16

struct ipttrace_run_hit {
	__u64	time;
	__u64	handle;		/* of the rule, 0: none; legacy: its number */
	__u64	chain;		/* the number of its name, see ipttrace_run_name */
	__s32	verdict;	/* nftables: NF_*, NFT_* */
	__u8	type;		/* NFT_TRACETYPE_*; legacy: as logged, IPTTRACE_MATCH_* */
	__u8	reserved[3];
};

/* ipttrace_run.flags */
#define IPTTRACE_RUN_FOREIGN	0x01	/* our table has not flipped the packet */
#define IPTTRACE_RUN_NO_CONNTRACK 0x02	/* it has an entry that cannot be read */
#define IPTTRACE_RUN_DOUBTFUL	0x04	/* it has, and EXPR needs more than could be read */
#define IPTTRACE_RUN_CURSOR	0x08	/* nftables' cursor when the run began: see bpf/tables.h */
#define IPTTRACE_RUN_TURNED	0x10	/* it was the other one at the last hit */

/* Which run it is of; before its hits, so that a run's first ones can go ahead of it. */
struct ipttrace_run_piece {
	__u64	run;		/* with began: unique */
	__u64	began;
};

/* What a number in the runs that follow stands for; never 0. */
struct ipttrace_run_name {
	__u64	number;		/* its upper half: where it is in the kernel, until it is used again */
	__u64	table;		/* of a table of nftables its handle, which is not given twice; else 0 */
	char	name[256];	/* NFT_NAME_MAXLEN */
};

/* ipttrace_run_flip.what */
enum ipttrace_run_what {
	IPTTRACE_RUN_FLIPPED,	/* by our table */
	IPTTRACE_RUN_COPIED,	/* of a packet that is traced */
	IPTTRACE_RUN_CARRIED,	/* the same packet goes on, with nf_trace cleared */
	IPTTRACE_RUN_FREED,	/* a carried one, that nobody has flipped again */
};

/* What happened to a packet between its runs. */
struct ipttrace_run_flip {
	__u64	time;
	__u64	skb;
	__u64	original;	/* of a copy: the address of the other, else 0 */
	__u32	what;		/* enum ipttrace_run_what */
	__u32	reserved;
};

struct ipttrace_run {
	struct ipttrace_entry	entry;	/* ruleset: 0; nftables: table too */
	struct ipttrace_exit	exit;	/* rules: all hits, those of pieces too */
	__u32	generation;	/* of the ruleset of nftables, 0: unknown */
	__u16	hit_count;
	__u8	flags;
	__u8	later;		/* how much higher the generation was at the last hit */
	__u64	table;		/* nftables: the number of its name */
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

_Static_assert(sizeof(struct ipttrace_run_hit) == 32, "run_hit size");
_Static_assert(sizeof(struct ipttrace_run_name) == 272, "run_name size");
_Static_assert(sizeof(struct ipttrace_run_flip) == 32, "run_flip size");
_Static_assert(__builtin_offsetof(struct ipttrace_run, hits) == 536,
	       "run.hits has moved");

#endif
