/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Names of chains and tables: the ring has each once, and then a number in its place, since
 * every byte of a record costs.
 *
 * Each CPU tells its own, so that none waits for another: a program never nests on a CPU, and
 * each kind of name is told by one program.
 */
#ifndef IPTTRACE_NAMES_H
#define IPTTRACE_NAMES_H

#include "ring.h"

#define NAME_SLOTS     256 /* of a kind */
#define LEGACY_CHAIN   32  /* XT_TABLE_MAXNAMELEN: chains are not longer */
#define NUMBER_OF_CPU  48  /* of a name's number, from which bit on */
#define NUMBER_OF_SLOT 32

/* By whom names are told. */
enum name_kind {
	NAME_TABLE,	  /* at the beginning of a run */
	NAME_TABLE_LATER, /* at its first hit */
	NAME_CHAIN,
	NAME_LEGACY_CHAIN,
	NAME_KINDS,
};

/* What is at an address while a generation of the ruleset lasts. */
struct known_name {
	__u64 object; /* 0: none */
	__u64 generation; /* that of the kernel, 0: unknown, then it is told every time */
	__u32 version; /* of what was told in this slot */
	__u8 own;      /* table: one that flips packets, not told */
	__u8 family;   /* table: NFPROTO_* */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NAME_LEGACY_CHAIN *NAME_SLOTS);
	__type(key, __u32);
	__type(value, struct known_name);
} names SEC(".maps");

/* Memory of rules is used again without a generation: the name itself is compared. */
struct legacy_name {
	__u64 words[LEGACY_CHAIN / 8];
	__u32 version;
	__u32 reserved;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, NAME_SLOTS);
	__type(key, __u32);
	__type(value, struct legacy_name);
} legacy_names SEC(".maps");

/* The slot for what is at this address. */
static __always_inline __u32 name_slot(__u64 object, enum name_kind kind)
{
	__u32 low;

	/* The verifier allows no arithmetic with a pointer. */
	asm volatile("%0 = %1" : "=w"(low) : "w"((__u32)object));
	return kind * NAME_SLOTS + ((low >> 3) * 0x9e3779b1U >> 24);
}

/* Never 0. */
static __always_inline __u64 name_number(__u32 slot, __u32 version)
{
	__u64 cpu = bpf_get_smp_processor_id();

	return cpu << NUMBER_OF_CPU | (__u64)slot << NUMBER_OF_SLOT | version;
}

/* Returns the number of the name, which is new; 0: there is no room in the ring. */
static __always_inline __u64 tell_name(const char *name, __u64 table,
				       __u32 slot, __u32 *version)
{
	struct ipttrace_run_name *told;
	__u64 number;

	told = bpf_ringbuf_reserve(&ring, sizeof(*told), 0);
	if (!told)
		return 0;
	*version += *version == ~0U ? 2 : 1;
	number = name_number(slot, *version);
	told->number = number;
	told->table = table;
	__builtin_memset(told->name, 0, sizeof(told->name));
	bpf_probe_read_kernel_str(told->name, sizeof(told->name), name);
	bpf_ringbuf_submit(told, BPF_RB_NO_WAKEUP);
	return number;
}

/* The number of the name of a legacy table's chain, which is there; 0: no room. */
static __always_inline __u64 legacy_chain_number(const char *name)
{
	__u32 slot = name_slot((unsigned long)name, NAME_TABLE), at;
	__u64 words[LEGACY_CHAIN / 8] = {}, other = 0, number;
	struct legacy_name *known;

	known = bpf_map_lookup_elem(&legacy_names, &slot);
	if (!known)
		return 0;
	/*
	 * With what is behind it, which stays the same as long as the name does: a string would be
	 * read byte by byte.
	 */
	if (bpf_probe_read_kernel(words, sizeof(words), name))
		bpf_probe_read_kernel_str(words, sizeof(words), name);
#pragma unroll
	for (at = 0; at < LEGACY_CHAIN / 8; at++)
		other |= words[at] ^ known->words[at];
	slot += NAME_LEGACY_CHAIN * NAME_SLOTS;
	if (!other && known->version)
		return name_number(slot, known->version);
	number = tell_name(name, 0, slot, &known->version);
	if (!number)
		other = ~0ULL; /* no name: it has to be told */
#pragma unroll
	for (at = 0; at < LEGACY_CHAIN / 8; at++)
		known->words[at] = number ? words[at] : other;
	return number;
}

#endif
