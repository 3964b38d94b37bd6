/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * EXPR, run on packets: on those that the flip table has flipped, if the table could not be made
 * to match exactly what EXPR does, and on those outside the tables.  It is classic BPF,
 * interpreted: a program for fentry can neither load bytes of a packet as a socket filter does,
 * nor be replaced in part.
 */
#ifndef IPTTRACE_EXPR_H
#define IPTTRACE_EXPR_H

#include <linux/bpf_common.h>
#include <linux/filter.h>
#include <stdbool.h>

#include "structs.h"

#define EXPR_MOST	4096 /* instructions */
#define EXPR_REGISTER_A 0x10 /* of RET: what it returns */

enum expr_result {
	EXPR_FAILS,
	EXPR_MATCHES,
	EXPR_DOUBTFUL, /* needs bytes beyond the linear part of the packet */
};

/*
 * First one instruction that says which program it is: k is its length, 0 if all packets match;
 * code is 0 or 1.  Then two programs: one is in use while the other is written.
 * Mapped by who writes it: see `counters` in state.h.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 + 2 * EXPR_MOST);
	__type(key, __u32);
	__type(value, struct sock_filter);
} expr SEC(".maps");

#define EXPR_COPIED 128 /* bytes of the packet */

struct expr_run {
	unsigned char *start; /* of the network header */
	__u64 len;
	__u64 linear;
	__u64 copied; /* how many of the bytes are valid */
	__u32 at;
	__u32 result;
	__u32 a, x;
	__u32 memory[BPF_MEMWORDS];
	__u8 bytes[EXPR_COPIED]; /* the first ones, since each read of them by a helper costs */
};

#define EXPR_SLOTS 16

/* One for each program that uses it, which never nests on a CPU. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, EXPR_SLOTS);
	__type(key, __u32);
	__type(value, struct expr_run);
} expr_runs SEC(".maps");

/* Bytes of the packet as a number; returns whether the program goes on. */
static __always_inline bool expr_load(struct expr_run *run, __u16 code,
				      __u64 offset, __u32 *value)
{
	__u32 size = BPF_SIZE(code) == BPF_W ? 4 :
		     BPF_SIZE(code) == BPF_H ? 2 :
					       1;
	__u8 beyond[4] = {}, *bytes = beyond;

	if (offset + size > run->len) {
		run->result = EXPR_FAILS;
		return false;
	}
	if (offset + size <= run->copied && offset <= EXPR_COPIED - 4) {
		bytes = run->bytes + offset;
	} else if (offset + size > run->linear ||
		   bpf_probe_read_kernel(beyond, size, run->start + offset)) {
		run->result = EXPR_DOUBTFUL;
		return false;
	}
	*value = bytes[0];
	if (size > 1)
		*value = *value << 8 | bytes[1];
	if (size > 2)
		*value = *value << 16 | bytes[2] << 8 | bytes[3];
	return true;
}

/* Returns whether the program goes on: a division by zero ends it. */
static __always_inline bool expr_compute(struct expr_run *run, __u16 code,
					 __u32 operand)
{
	__u32 a = run->a;

	switch (BPF_OP(code)) {
	case BPF_ADD:
		a += operand;
		break;
	case BPF_SUB:
		a -= operand;
		break;
	case BPF_MUL:
		a *= operand;
		break;
	case BPF_DIV:
	case BPF_MOD:
		if (!operand) {
			run->result = EXPR_FAILS;
			return false;
		}
		a = BPF_OP(code) == BPF_DIV ? a / operand : a % operand;
		break;
	case BPF_OR:
		a |= operand;
		break;
	case BPF_AND:
		a &= operand;
		break;
	case BPF_XOR:
		a ^= operand;
		break;
	case BPF_LSH:
		a = operand < 32 ? a << (operand & 31) : 0;
		break;
	case BPF_RSH:
		a = operand < 32 ? a >> (operand & 31) : 0;
		break;
	case BPF_NEG:
		a = -a;
		break;
	}
	run->a = a;
	return true;
}

static __always_inline bool expr_compare(__u16 code, __u32 a, __u32 operand)
{
	switch (BPF_OP(code)) {
	case BPF_JEQ:
		return a == operand;
	case BPF_JGT:
		return a > operand;
	case BPF_JGE:
		return a >= operand;
	default: /* BPF_JSET */
		return a & operand;
	}
}

/* One instruction; returns 1 at the end of the program. */
static long expr_step(__u32 number, struct expr_run **of)
{
	struct expr_run *run = *of;
	struct sock_filter *instruction;
	__u32 at, k, operand, value = 0;
	__u16 code;

	at = run->at;
	instruction = bpf_map_lookup_elem(&expr, &at);
	if (!instruction)
		return 1;
	code = instruction->code;
	k = instruction->k;
	run->at = at + 1;
	operand = BPF_SRC(code) == BPF_X ? run->x : k;
	switch (BPF_CLASS(code)) {
	case BPF_LD:
	case BPF_LDX:
		switch (BPF_MODE(code)) {
		case BPF_ABS:
		case BPF_IND:
			if (!expr_load(run, code,
				       BPF_MODE(code) == BPF_IND ?
					       (__u64)run->x + k :
					       k,
				       &value))
				return 1;
			break;
		case BPF_MSH:
			if (!expr_load(run, BPF_B, k, &value))
				return 1;
			value = (value & 15) << 2;
			break;
		case BPF_MEM:
			value = run->memory[k & (BPF_MEMWORDS - 1)];
			break;
		case BPF_LEN:
			value = run->len;
			break;
		default:
			value = k;
		}
		if (BPF_CLASS(code) == BPF_LD)
			run->a = value;
		else
			run->x = value;
		return 0;
	case BPF_ST:
		run->memory[k & (BPF_MEMWORDS - 1)] = run->a;
		return 0;
	case BPF_STX:
		run->memory[k & (BPF_MEMWORDS - 1)] = run->x;
		return 0;
	case BPF_ALU:
		return !expr_compute(run, code, operand);
	case BPF_JMP:
		if (BPF_OP(code) == BPF_JA)
			run->at += k;
		else if (expr_compare(code, run->a, operand))
			run->at += instruction->jt;
		else
			run->at += instruction->jf;
		return 0;
	case BPF_RET:
		value = code & EXPR_REGISTER_A ? run->a : k;
		run->result = value ? EXPR_MATCHES : EXPR_FAILS;
		return 1;
	default: /* BPF_MISC */
		if (BPF_MISCOP(code) == BPF_TAX)
			run->x = run->a;
		else
			run->a = run->x;
		return 0;
	}
}

/*
 * Whether EXPR matches, enum expr_result.  `network`: where the network header is, from
 * skb->head on; `slot`: the program's own.
 */
static __always_inline __u32 expr_result(const struct sk_buff *skb,
					 __u32 network, __u32 slot,
					 const bool probed)
{
	struct sock_filter *first;
	struct expr_run *run;
	unsigned char *head;
	__u32 zero = 0;
	__u32 copied;
	long len;

	first = bpf_map_lookup_elem(&expr, &zero);
	if (!first || !first->k)
		return EXPR_MATCHES;
	run = bpf_map_lookup_elem(&expr_runs, &slot);
	if (!run ||
	    !bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_loop))
		return EXPR_DOUBTFUL;
	head = GET(probed, skb, head);
	len = GET(probed, skb, data) - head - network;
	len += GET(probed, skb, len);
	if (len < 0)
		return EXPR_FAILS;
	__builtin_memset(run, 0, __builtin_offsetof(struct expr_run, bytes));
	run->start = head + network;
	run->len = len;
	len -= GET(probed, skb, data_len);
	run->linear = len > 0 ? len : 0;
	copied = len <= 0 ? 0 : len < EXPR_COPIED ? len : EXPR_COPIED;
	/* Never more; the verifier wants to see that where it is used. */
	asm volatile("" : "+r"(copied));
	if (copied &&
	    !bpf_probe_read_kernel(run->bytes, copied & 0xff, run->start))
		run->copied = copied;
	run->at = 1 + (first->code ? EXPR_MOST : 0);
	run->result = EXPR_DOUBTFUL;
	bpf_loop(first->k, expr_step, &run, 0);
	return run->result;
}

#endif
