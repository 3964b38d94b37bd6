// SPDX-License-Identifier: GPL-2.0-only
/*
 * Traces nftables without a module: one record for each run of a packet with nf_trace
 * through a base chain.
 *
 * nft_do_chain() runs a base chain.  Its pktinfo is on the caller's stack, so that no other
 * run has the same address at the same time, whatever interrupts, preempts or is called by
 * this one: a run's state is found by it.  nft_trace_notify() is called for each rule that
 * is hit, before it looks whether anybody listens.  A run ends with the call for its verdict
 * or its policy: a program at the end of nft_do_chain() would cost all packets more.
 *
 * Compiled once for all kernels (CO-RE).  Which of the programs for nft_trace_notify() fits
 * is seen from its BTF by who loads them.  Where the kernel refuses fentry, those for kprobes
 * take their place.
 */

#include <linux/bpf.h>
#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

/* linux/netfilter/nf_tables.h */
#define NFT_CONTINUE	     (-1)
#define NFT_JUMP	     (-3)
#define NFT_GOTO	     (-4)
#define NFT_RETURN	     (-5)
#define NFT_TRACETYPE_POLICY 1
#define NFT_TRACETYPE_RULE   3

#include "expr.h"
#include "nest.h"
#include "tables.h"

/* marked: by a rule of this very run, which is not seen from its beginning. */
static __always_inline int enter(const struct nft_pktinfo *pkt,
				 const struct nft_chain *chain,
				 const bool marked, const bool probed)
{
	const struct sk_buff *skb = GET(probed, pkt, skb);
	__u64 key = (unsigned long)pkt, address = (unsigned long)skb;
	const struct nf_hook_state *state;
	struct ipttrace_run *record;
	struct packet_set *packet;
	struct known_name *table;
	struct new_run place;
	struct run *run;
	__u64 time, name;
	__u32 *known, id;
	__u8 cursor;

	if (!is_traced(skb, probed))
		return 0;
	time = bpf_ktime_get_ns();
	state = GET(probed, pkt, state);
	cursor = cursor_of(GET(probed, state, net), probed);
	id = generation(GET(probed, state, net), probed);
	packet = packet_set_of(address);
	if (!packet)
		return 0;
	known = known_packet(packet, address, time);
	table = table_of(chain, id, marked ? NAME_TABLE_LATER : NAME_TABLE,
			 &name);
	if (!table) {
		count(IPTTRACE_COUNT_RUNS, 1);
		count(IPTTRACE_COUNT_LOST_RUNS, 1);
		return 0;
	}
	if (table->own) {
		/* A copy that has not been met stays one: its flip is not the first. */
		if (known && *known != REFUSED)
			*known = (*known & ~CARRIED) == COPIED ?
					 COPIED | CARRIED :
					 CROSSING;
		return 0;
	}
	if (refused(known))
		return 0;
	run = new_run(&place, key);
	if (!run)
		return 0;
	record = &run->record;
	record->entry.head.time = time;
	record->table = name;
	record->generation = id;
	if (marked)
		place.packet = meet_marked(record, address, time);
	else
		place.packet = meet(record, packet, address, known);
	fill_run(record, skb, state, probed);
	record->flags |= cursor;
	record->entry.head.tables = table->family;
	run->place.base = (unsigned long)chain;
	run->place.chain = run->place.base;
	run->place.depth = 0;
	run->place.unknown = marked;
	run->marked = 1;
	run->frame = 0;
	begin_run(run, &place, key, OF_NFT);
	return 0;
}

SEC("fentry/nft_do_chain")
int BPF_PROG(ipttrace_nft_entry, struct nft_pktinfo *pkt,
	     struct nft_chain *chain)
{
	return enter(pkt, chain, false, false);
}

SEC("kprobe/nft_do_chain")
int ipttrace_nft_entry_probe(struct pt_regs *ctx)
{
	return enter((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx),
		     false, true);
}

#define MOST_RULES 512 /* of a chain, that are looked at */

/* The chain that a rule is in, from its end; 0: unknown. */
static __always_inline __u64 chain_of(const struct nft_rule_dp *rule)
{
	const struct nft_rule_dp_last *last;
	int i;

	if (!bpf_core_type_exists(struct nft_rule_dp_last))
		return 0;
	for (i = 0; i < MOST_RULES && rule; i++) {
		if (BPF_CORE_READ_BITFIELD_PROBED(rule, is_last)) {
			last = (void *)rule;
			return (unsigned long)BPF_CORE_READ(last, chain);
		}
		rule = (void *)rule + sizeof(__u64) +
		       BPF_CORE_READ_BITFIELD_PROBED(rule, dlen);
	}
	return 0;
}

static __always_inline const char *
base_table_name(const struct nft_base_chain *base, const bool probed)
{
	return probed ? BPF_CORE_READ(base, chain.table, name) :
			base->chain.table->name;
}

/* A bit field of struct nft_rule_dp, whose bit fields are together in this word. */
#define RULE_BITS(word, rule, field)                       \
	((word) << __CORE_RELO(rule, field, LSHIFT_U64) >> \
	 __CORE_RELO(rule, field, RSHIFT_U64))

/*
 * Set by who loads it: the ring also has the flips.  Beside another engine they show which of
 * both engines' records is a packet's first.
 */
const volatile __u8 report_flips;

/* What is hit is of no run: the packet may have hit a rule of a table that flips packets. */
static __always_inline void flipped(const struct sk_buff *skb,
				    const struct nft_base_chain *base,
				    bool policy, __u64 now, const bool probed)
{
	__u64 address = (unsigned long)skb;
	struct packet_set *packet;
	__u32 state, result, *known;
	union table_name table;
	bool carried = false;

	packet = packet_set_of(address);
	if (!packet)
		return;
	known = known_packet(packet, address, now);
	/* In such a table, as its beginning has noted. */
	if (known) {
		carried = *known & CARRIED;
		*known &= ~CARRIED;
		if (*known == CROSSING) {
			*known = FOLLOWED;
			return;
		}
		if (carried && *known != COPIED)
			return;
	}
	if (policy)
		return;
	__builtin_memset(&table, 0, sizeof(table));
	bpf_probe_read_kernel_str(table.text, sizeof(IPTTRACE_OWN_TABLE),
				  base_table_name(base, probed));
	if (!is_own(&table))
		return;
	if (!carried) {
		result = expr_result(skb, GET(probed, skb, network_header), 0,
				     probed);
		state = result == EXPR_MATCHES ? FLIPPED :
			result == EXPR_FAILS   ? REFUSED :
						 DOUBTFUL;
		if (known) {
			*known = state;
			keep_number(known, BESIDE(origin), 0);
		} else {
			remember_packet(packet, address, state, now);
		}
	}
	if (!report_flips)
		return;
	/* If there is no room, the packet's runs are lost as well. */
	report_flip(address, 0, IPTTRACE_RUN_FLIPPED, now);
}

/*
 * One hit, of a rule or, if that is NULL, of the policy; the verdict of a run ends it.  in: the
 * chain of the rule, NULL if that has to be found.
 */
static __always_inline int
notify(const struct nft_pktinfo *pkt, const struct nft_verdict *verdict,
       const struct nft_rule_dp *rule, const struct nft_base_chain *base,
       const struct nft_chain *in, __u32 id, const bool probed)
{
	__u64 began = bpf_ktime_get_ns(), key = (unsigned long)pkt;
	const struct sk_buff *skb = GET(probed, pkt, skb);
	__u64 context = current_context();
	struct ipttrace_run_hit *hit;
	struct bucket *bucket;
	struct run *run = NULL;
	struct nft_chain *chain;
	__u32 number, at, depth;
	const struct nf_hook_state *state;
	const bool policy = !rule;
	__u64 bits = 0;
	bool end;
	int code;

	bucket = bucket_of(context, &number);
	if (!bucket)
		return 0;
	at = place_of(bucket, context, key);
	if (at < BUCKET_RUNS)
		run = run_at(number, at);
	if ((!run || run->skb != (unsigned long)skb) && from_rules && !probed) {
		enter(pkt,
		      (void *)((unsigned long)base +
			       bpf_core_field_offset(struct nft_base_chain,
						     chain)),
		      true, true);
		at = place_of(bucket, context, key);
		run = at < BUCKET_RUNS ? run_at(number, at) : NULL;
	}
	if (!run || run->skb != (unsigned long)skb) {
		flipped(skb, base, policy, began, probed);
		return 0;
	}
	run->record.entry.head.trace_id = id;
	state = GET(probed, pkt, state);
	note_change(&run->record, GET(probed, state, net),
		    began - run->record.entry.head.time, probed);
	/* A chain that a GOTO led to ends with the base chain's policy. */
	if (!policy && run->place.unknown)
		run->place.chain = in ? (unsigned long)in : chain_of(rule);
	chain = (void *)(policy ? run->place.base : run->place.chain);
	code = GET(probed, verdict, code);
	hit = next_hit(run, key, began,
		       chain_number(chain, run->record.generation));
	/* Lost: its verdict still counts. */
	if (hit) {
		hit->handle = 0;
		hit->verdict = code;
		hit->type = policy ? NFT_TRACETYPE_POLICY : NFT_TRACETYPE_RULE;
	}
	/*
	 * By the rule and the verdict: the type of a return is RETURN on some kernels,
	 * RULE on those whose __nft_trace_verdict() masks the verdict (6.12 does).
	 */
	if (rule && probed)
		bpf_core_read(&bits, sizeof(bits), rule);
	else if (rule)
		bits = *(const __u64 *)rule;
	end = policy || RULE_BITS(bits, rule, is_last);
	if (hit && !end)
		hit->handle = RULE_BITS(bits, rule, handle);
	if (policy) {
		code = GET(probed, base, policy);
	} else if (run->place.unknown) {
		/* The chain of the next hit is looked up as well. */
	} else if (code == NFT_RETURN || (end && code == NFT_CONTINUE)) {
		if (run->place.depth) {
			depth = --run->place.depth;
			if (depth < STACK)
				run->place.chain = run->place.stack[depth];
		}
	} else if (code == NFT_JUMP || code == NFT_GOTO) {
		depth = run->place.depth;
		if (code == NFT_JUMP && depth < STACK) {
			run->place.stack[depth] = run->place.chain;
			run->place.depth = depth + 1;
		}
		run->place.chain = (unsigned long)GET(probed, verdict, chain);
	}
	if (code >= 0)
		end_run(run, bucket, at, context, key, skb, code, began,
			probed);
	else
		run->others += bpf_ktime_get_ns() - began;
	return 0;
}

/* From Linux 6.4 on. */
SEC("fentry/nft_trace_notify")
int BPF_PROG(ipttrace_nft_notify, const struct nft_pktinfo *pkt,
	     const struct nft_verdict *verdict, const struct nft_rule_dp *rule,
	     struct nft_traceinfo *info)
{
	return notify(pkt, verdict, rule, info->basechain, NULL, info->skbid,
		      false);
}

SEC("kprobe/nft_trace_notify")
int ipttrace_nft_notify_probe(struct pt_regs *ctx)
{
	struct nft_traceinfo *info = (void *)PT_REGS_PARM4(ctx);

	return notify((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx),
		      (void *)PT_REGS_PARM3(ctx),
		      BPF_CORE_READ(info, basechain), NULL,
		      BPF_CORE_READ(info, skbid), true);
}

static __always_inline int notify_old(const struct nft_traceinfo___old *info,
				      const bool probed)
{
	__u32 id = 0;

	if (bpf_core_field_exists(info->skbid))
		id = GET(probed, info, skbid);
	return notify(GET(probed, info, pkt), GET(probed, info, verdict),
		      GET(probed, info, rule), GET(probed, info, basechain),
		      GET(probed, info, chain), id, probed);
}

SEC("fentry/nft_trace_notify")
int BPF_PROG(ipttrace_nft_notify_old, struct nft_traceinfo___old *info)
{
	return notify_old(info, false);
}

SEC("kprobe/nft_trace_notify")
int ipttrace_nft_notify_old_probe(struct pt_regs *ctx)
{
	return notify_old((void *)PT_REGS_PARM1(ctx), true);
}

char LICENSE[] SEC("license") = "GPL";
