// SPDX-License-Identifier: GPL-2.0-only
/*
 * Traces nftables without a module: one record for each run of a packet with nf_trace
 * through a base chain.
 *
 * nft_do_chain() runs a base chain.  Its pktinfo is on the caller's stack, so that no other
 * run has the same address at the same time, whatever interrupts, preempts or is called by
 * this one: a run's state is found by it.  nft_trace_notify() is called for each rule that
 * is hit, before it looks whether anybody listens.
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

#include "expr.h"
#include "nest.h"

static __always_inline __u32 generation(const struct net *net,
					const bool probed)
{
	struct nftables_pernet *own = NULL;
	struct net_generic *all;
	__u32 id = 0, found = 0;

	if (bpf_core_field_exists(((struct net *)0)->nft.base_seq))
		return GET(probed, net, nft.base_seq);
	if (!&nf_tables_net_id ||
	    !bpf_core_field_exists(((struct nftables_pernet *)0)->base_seq))
		return 0;
	bpf_probe_read_kernel(&id, sizeof(id), &nf_tables_net_id);
	all = GET(probed, net, gen);
	bpf_probe_read_kernel(&own, sizeof(own), (void *)all + 8 * (__u64)id);
	bpf_core_read(&found, sizeof(found), &own->base_seq);
	return found;
}

/* Is it the table of an ipttrace?  Its chains flip packets, and are of no interest. */
static __always_inline bool is_own(const char *table)
{
	return table[0] == 'i' && table[1] == 'p' && table[2] == 't' &&
	       table[3] == 't' && table[4] == 'r' && table[5] == 'a' &&
	       table[6] == 'c' && table[7] == 'e' && table[8] == '-';
}

/* Reads a name into the 64 bytes that a run has for it; a longer one goes ahead of the run. */
static __always_inline void fill_name(char *to, const char *name, __u64 key,
				      __u64 began, __u64 time)
{
	struct ipttrace_run_name *whole;

	if (bpf_probe_read_kernel_str(to, IPTTRACE_RUN_NAME_LEN, name) <
	    IPTTRACE_RUN_NAME_LEN)
		return;
	whole = bpf_ringbuf_reserve(&ring, sizeof(*whole), 0);
	if (!whole)
		return;
	whole->piece.run = key;
	whole->piece.began = began;
	whole->time = time;
	__builtin_memset(whole->name, 0, sizeof(whole->name));
	bpf_probe_read_kernel_str(whole->name, sizeof(whole->name), name);
	bpf_ringbuf_submit(whole, BPF_RB_NO_WAKEUP);
}

/* Of the base chain whose inner chain is at this address. */
static __always_inline int priority(__u64 chain)
{
	const struct nft_base_chain *base =
		(void *)(chain -
			 bpf_core_field_offset(struct nft_base_chain, chain));

	return BPF_CORE_READ(base, ops.priority);
}

static __always_inline int enter(const struct nft_pktinfo *pkt,
				 const struct nft_chain *chain, __u64 frame,
				 const bool probed)
{
	struct sk_buff *skb = GET(probed, pkt, skb);
	const struct nf_hook_state *state;
	__u64 key = (unsigned long)pkt, address = (unsigned long)skb;
	struct ipttrace_run *record;
	struct nft_table *table;
	struct run *run;
	__u32 *known;
	__u64 base;

	run = new_run(skb);
	if (!run)
		return 0;
	record = &run->record;
	table = BPF_CORE_READ(chain, table);
	bpf_probe_read_kernel_str(record->table, sizeof(IPTTRACE_OWN_TABLE),
				  BPF_CORE_READ(table, name));
	if (is_own(record->table)) {
		known = bpf_map_lookup_elem(&packets, &address);
		if (known && *known != REFUSED)
			*known = CROSSING;
		return 0;
	}
	if (refused(address))
		return 0;
	record->entry.head.time = bpf_ktime_get_ns();
	fill_name(record->table, BPF_CORE_READ(table, name), key,
		  record->entry.head.time, 0);
	meet(record, address);
	state = GET(probed, pkt, state);
	record->generation = generation(GET(probed, state, net), probed);
	fill_run(record, skb, state, probed);
	record->entry.head.tables =
		BPF_CORE_READ_BITFIELD_PROBED(table, family);
	run->place.base = (unsigned long)chain;
	run->place.chain = run->place.base;
	run->place.depth = 0;
	run->frame = frame;
	/* As a number, see begin_run(). */
	base = *(volatile __u64 *)&run->place.base;
	begin_run(run, key, base, priority(base), OF_NFT);
	return 0;
}

SEC("fentry/nft_do_chain")
int BPF_PROG(ipttrace_nft_entry, struct nft_pktinfo *pkt,
	     struct nft_chain *chain)
{
	return enter(pkt, chain, 0, false);
}

SEC("kprobe/nft_do_chain")
int ipttrace_nft_entry_probe(struct pt_regs *ctx)
{
	return enter((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx),
		     PT_REGS_SP(ctx), true);
}

/*
 * Set by who loads it: the ring also has the flips.  Beside another engine they show which of
 * both engines' records is a packet's first.
 */
const volatile __u8 report_flips;

/* The packet hits a rule of a table that flips packets, or its chain's policy. */
static __always_inline void flipped(const struct nft_base_chain *base,
				    const struct sk_buff *skb, __u32 type)
{
	char name[sizeof(IPTTRACE_OWN_TABLE)] = {};
	struct ipttrace_run_flip flip;
	__u64 address = (unsigned long)skb;
	__u32 state, result, *known;

	bpf_probe_read_kernel_str(name, sizeof(name),
				  BPF_CORE_READ(base, chain.table, name));
	if (!is_own(name))
		return;
	known = bpf_map_lookup_elem(&packets, &address);
	if (known && *known == CROSSING) {
		*known = FOLLOWED;
		return;
	}
	if (type == NFT_TRACETYPE_POLICY)
		return;
	result = expr_result(skb);
	state = result == EXPR_MATCHES ? FLIPPED :
		result == EXPR_FAILS   ? REFUSED :
					 DOUBTFUL;
	bpf_map_update_elem(&packets, &address, &state, BPF_ANY);
	if (!report_flips)
		return;
	flip.time = bpf_ktime_get_ns();
	flip.skb = address;
	/* If there is no room, the packet's runs are lost as well. */
	bpf_ringbuf_output(&ring, &flip, sizeof(flip), BPF_RB_NO_WAKEUP);
}

static __always_inline int notify(const struct nft_pktinfo *pkt,
				  const struct nft_verdict *verdict,
				  const struct nft_rule_dp *rule,
				  const struct nft_base_chain *base, __u32 type,
				  __u32 id)
{
	__u64 began = bpf_ktime_get_ns(), key = (unsigned long)pkt;
	const struct sk_buff *skb = BPF_CORE_READ(pkt, skb);
	struct ipttrace_run_hit *hit;
	struct nft_chain *chain;
	struct run *run;
	bool end;
	__u32 at;
	int code;

	run = bpf_map_lookup_elem(&runs, &key);
	if (!run || run->skb != (unsigned long)skb) {
		flipped(base, skb, type);
		return 0;
	}
	hit = next_hit(run, key, began);
	if (!hit)
		return 0;
	run->record.entry.head.trace_id = id;
	/* A chain that a GOTO led to ends with the base chain's policy. */
	chain = (void *)(type == NFT_TRACETYPE_POLICY ? run->place.base :
							run->place.chain);
	code = BPF_CORE_READ(verdict, code);
	hit->handle = 0;
	hit->verdict = code;
	hit->type = type;
	/*
	 * By the rule and the verdict: the type of a return is RETURN on some kernels,
	 * RULE on those whose __nft_trace_verdict() masks the verdict (6.12 does).
	 */
	end = !rule || BPF_CORE_READ_BITFIELD_PROBED(rule, is_last);
	if (!end && type != NFT_TRACETYPE_POLICY)
		hit->handle = BPF_CORE_READ_BITFIELD_PROBED(rule, handle);
	fill_name(hit->chain, BPF_CORE_READ(chain, name), key,
		  run->record.entry.head.time, began);
	if (type == NFT_TRACETYPE_POLICY)
		goto out;
	if (code == NFT_RETURN || (end && code == NFT_CONTINUE)) {
		if (run->place.depth) {
			at = --run->place.depth;
			if (at < STACK)
				run->place.chain = run->place.stack[at];
		}
	} else if (code == NFT_JUMP || code == NFT_GOTO) {
		at = run->place.depth;
		if (code == NFT_JUMP && at < STACK) {
			run->place.stack[at] = run->place.chain;
			run->place.depth = at + 1;
		}
		run->place.chain = (unsigned long)BPF_CORE_READ(verdict, chain);
	}
out:
	run->others += bpf_ktime_get_ns() - began;
	return 0;
}

/* From Linux 6.4 on. */
SEC("fentry/nft_trace_notify")
int BPF_PROG(ipttrace_nft_notify, const struct nft_pktinfo *pkt,
	     const struct nft_verdict *verdict, const struct nft_rule_dp *rule,
	     struct nft_traceinfo *info)
{
	return notify(pkt, verdict, rule, info->basechain,
		      BPF_CORE_READ_BITFIELD_PROBED(info, type), info->skbid);
}

SEC("kprobe/nft_trace_notify")
int ipttrace_nft_notify_probe(struct pt_regs *ctx)
{
	struct nft_traceinfo *info = (void *)PT_REGS_PARM4(ctx);

	return notify((void *)PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx),
		      (void *)PT_REGS_PARM3(ctx),
		      BPF_CORE_READ(info, basechain),
		      BPF_CORE_READ_BITFIELD_PROBED(info, type),
		      BPF_CORE_READ(info, skbid));
}

static __always_inline int notify_old(const struct nft_traceinfo___old *info)
{
	__u32 id = 0;

	if (bpf_core_field_exists(info->skbid))
		id = BPF_CORE_READ(info, skbid);
	return notify(BPF_CORE_READ(info, pkt), BPF_CORE_READ(info, verdict),
		      BPF_CORE_READ(info, rule), BPF_CORE_READ(info, basechain),
		      BPF_CORE_READ_BITFIELD_PROBED(info, type), id);
}

SEC("fentry/nft_trace_notify")
int BPF_PROG(ipttrace_nft_notify_old, struct nft_traceinfo___old *info)
{
	return notify_old(info);
}

SEC("kprobe/nft_trace_notify")
int ipttrace_nft_notify_old_probe(struct pt_regs *ctx)
{
	return notify_old((void *)PT_REGS_PARM1(ctx));
}

SEC("fexit/nft_do_chain")
int BPF_PROG(ipttrace_nft_exit, struct nft_pktinfo *pkt, void *chain,
	     unsigned int verdict)
{
	__u64 now = bpf_ktime_get_ns(), key = (unsigned long)pkt;
	struct run *run = bpf_map_lookup_elem(&runs, &key);

	if (!run)
		return 0;
	end_run(run, key, pkt->skb, verdict, now, false);
	return 0;
}

SEC("kretprobe/nft_do_chain")
int ipttrace_nft_exit_probe(struct pt_regs *ctx)
{
	end_probed(ctx);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
