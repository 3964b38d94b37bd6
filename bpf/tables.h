/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tables and chains of nftables: their ruleset's generation and the numbers of their names.
 */
#ifndef IPTTRACE_TABLES_H
#define IPTTRACE_TABLES_H

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "names.h"

/* nf_tables' own part of a namespace; it stays the same while the module is loaded. */
static __u32 pernet_id;

/* The number of the generation of the ruleset of nftables, 0: unknown. */
static __always_inline __u32 generation(const struct net *net,
					const bool probed)
{
	struct nftables_pernet *own = NULL;
	struct net_generic *all;
	__u32 found = 0;

	if (bpf_core_field_exists(((struct net *)0)->nft.base_seq))
		return GET(probed, net, nft.base_seq);
	if (!&nf_tables_net_id ||
	    !bpf_core_field_exists(((struct nftables_pernet *)0)->base_seq))
		return 0;
	if (!pernet_id)
		bpf_probe_read_kernel(&pernet_id, sizeof(pernet_id),
				      &nf_tables_net_id);
	all = GET(probed, net, gen);
	bpf_probe_read_kernel(&own, sizeof(own),
			      (void *)all + 8 * (__u64)pernet_id);
	bpf_core_read(&found, sizeof(found), &own->base_seq);
	return found;
}

/*
 * By the cursor, which a run reads as it begins, it takes its rules.  A change of the rules counts
 * the generation's number first, and turns the cursor then: in between, packets still meet the
 * rules of the generation before.  To be read before the number.
 */
static __always_inline __u8 cursor_of(const struct net *net, const bool probed)
{
	__u8 cursor = GET(probed, net, nft.gencursor) & 1;

	MERGE();
	return cursor ? IPTTRACE_RUN_CURSOR : 0;
}

/* Rules do not change twice in this time, ns. */
#define ONE_CHANGE 100000

/* Notes, at a hit, whether rules have changed since the run began `since` ns ago. */
static __always_inline void note_change(struct ipttrace_run *record,
					const struct net *net, __u64 since,
					const bool probed)
{
	__u8 turned = cursor_of(net, probed) ^
		      (record->flags & IPTTRACE_RUN_CURSOR);
	__u32 later;

	if (!turned && since < ONE_CHANGE)
		return;
	later = generation(net, probed) - record->generation;
	record->later = later < 255 ? later : 255;
	record->flags &= ~IPTTRACE_RUN_TURNED;
	if (turned)
		record->flags |= IPTTRACE_RUN_TURNED;
}

/* How the name of a table begins. */
union table_name {
	char text[16];
	__u64 word;
};

/* Is it the table of an ipttrace?  Its chains flip packets, and are of no interest. */
static __always_inline bool is_own(const union table_name *name)
{
	return name->word == *(const __u64 *)IPTTRACE_OWN_TABLE &&
	       name->text[8] == IPTTRACE_OWN_TABLE[8];
}

/*
 * What is known of a base chain's table, whose name is told if it is not one that flips packets;
 * NULL: there is no room for that.
 */
static __always_inline struct known_name *
table_of(const struct nft_chain *chain, __u32 generation, enum name_kind kind,
	 __u64 *number)
{
	__u64 object = (unsigned long)chain;
	__u32 slot = name_slot(object, kind);
	struct known_name *known = bpf_map_lookup_elem(&names, &slot);
	const struct nft_table *table;
	union table_name begin;
	const char *name;

	if (!known)
		return NULL;
	if (known->object == object && known->generation == generation &&
	    generation) {
		*number = name_number(slot, known->version);
		return known;
	}
	/* Of the chain the verifier knows the address only. */
	table = BPF_CORE_READ(chain, table);
	name = BPF_CORE_READ(table, name);
	__builtin_memset(&begin, 0, sizeof(begin));
	bpf_probe_read_kernel_str(begin.text, sizeof(begin.text), name);
	known->object = 0;
	known->generation = generation;
	known->own = is_own(&begin);
	known->family = BPF_CORE_READ_BITFIELD_PROBED(table, family);
	*number = 0;
	if (!known->own) {
		*number = tell_name(name, BPF_CORE_READ(table, handle), slot,
				    &known->version);
		if (!*number)
			return NULL;
	}
	known->object = object;
	return known;
}

/* The number of a chain's name, 0: no room. */
static __always_inline __u64 chain_number(const struct nft_chain *chain,
					  __u32 generation)
{
	__u64 object = (unsigned long)chain, number;
	__u32 slot = name_slot(object, NAME_CHAIN);
	struct known_name *known = bpf_map_lookup_elem(&names, &slot);

	if (!known)
		return 0;
	if (known->object == object && known->generation == generation &&
	    generation)
		return name_number(slot, known->version);
	known->object = 0;
	number =
		tell_name(BPF_CORE_READ(chain, name), 0, slot, &known->version);
	known->generation = generation;
	if (number)
		known->object = object;
	return number;
}

#endif
