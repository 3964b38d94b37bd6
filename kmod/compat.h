/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Differences between kernels, from 5.10 on, and between architectures.
 *
 * Decided by what the headers declare rather than by LINUX_VERSION_CODE where
 * that is possible: vendors backport.
 */
#ifndef IPTTRACE_COMPAT_H
#define IPTTRACE_COMPAT_H

/* What would build, or fail with a hundred errors, and could not trace. */
#if !IS_ENABLED(CONFIG_IP_NF_IPTABLES) && \
	!IS_ENABLED(CONFIG_IP_NF_IPTABLES_LEGACY)
#error "this kernel has no legacy iptables (CONFIG_IP_NF_IPTABLES)"
#endif
#if !IS_ENABLED(CONFIG_NETFILTER_XT_TARGET_TRACE)
#error "this kernel cannot report rule hits (CONFIG_NETFILTER_XT_TARGET_TRACE)"
#endif
#ifndef CONFIG_KRETPROBES
#error "this kernel has no kretprobes (CONFIG_KRETPROBES)"
#endif
#ifndef CONFIG_BPF_SYSCALL
#error "this kernel runs no BPF programs (CONFIG_BPF_SYSCALL)"
#endif

#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/kprobes.h>
#include <linux/netfilter_bridge.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/version.h>
#include <net/genetlink.h>

/*
 * ipt_do_table(void *priv, skb, state) since 5.16, (skb, state, table) before.
 */
#define IPTTRACE_PRIV_FIRST                                \
	__builtin_types_compatible_p(                      \
		typeof(&ipt_do_table),                     \
		unsigned int (*)(void *, struct sk_buff *, \
				 const struct nf_hook_state *))

#define IPTTRACE_ARG_TABLE (IPTTRACE_PRIV_FIRST ? 0 : 2)
#define IPTTRACE_ARG_SKB   (IPTTRACE_PRIV_FIRST ? 1 : 0)
#define IPTTRACE_ARG_STATE (IPTTRACE_PRIV_FIRST ? 2 : 1)

#ifndef bpf_prog_run
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 15, 0)
#define bpf_prog_run(prog, ctx) BPF_PROG_RUN(prog, ctx)
#endif
#endif

/*
 * Whether a hook is a base chain of nftables.  Before hooks had a type, in 5.14,
 * only those of nftables had priv set at the priorities of legacy tables.
 */
#ifdef IPTTRACE_HOOK_OPS_TYPE
#define ipttrace_op_is_nft(op) ((op)->hook_ops_type == NF_HOOK_OP_NF_TABLES)
#else
#define ipttrace_op_is_nft(op) (!!(op)->priv)
#endif

/*
 * What helpers take from the task that runs a program, since 5.15: kprobes set
 * it around each run, as the kernel does in bpf_prog_run_array().
 */
#ifdef IPTTRACE_RUN_CTX
#define ipttrace_run_ctx_set(ctx)   bpf_set_run_ctx(&(ctx)->run_ctx)
#define ipttrace_run_ctx_reset(old) bpf_reset_run_ctx(old)
#else
struct bpf_trace_run_ctx {};
#define ipttrace_run_ctx_set(ctx)   ((void)(ctx), NULL)
#define ipttrace_run_ctx_reset(old) ((void)(old))
#endif

/* Whether the program may sleep: a flag that moved from aux in 6.9. */
#ifdef IPTTRACE_PROG_SLEEPABLE
#define ipttrace_prog_sleepable(prog) ((prog)->sleepable)
#else
#define ipttrace_prog_sleepable(prog) ((prog)->aux->sleepable)
#endif

/* The value of a program's per-CPU array of values of that size, or NULL. */
static inline void __percpu *ipttrace_prog_value(struct bpf_prog *prog,
						 u32 size)
{
	struct bpf_prog_aux *aux = prog->aux;
	void __percpu *value = NULL;
	u32 i;

	mutex_lock(&aux->used_maps_mutex);
	for (i = 0; i < aux->used_map_cnt && !value; i++) {
		struct bpf_map *map = aux->used_maps[i];

		if (map->map_type == BPF_MAP_TYPE_PERCPU_ARRAY &&
		    map->value_size == size)
			value = container_of(map, struct bpf_array, map)
					->pptrs[0];
	}
	mutex_unlock(&aux->used_maps_mutex);
	return value;
}

/*
 * nf_bridge_get_physindev() needs the namespace since the kernel keeps an index
 * instead of a pointer: 6.8, and the stable kernels that were given the same.
 */
static inline const struct net_device *
ipttrace_physin(const struct sk_buff *skb, struct net *net)
{
#if IS_ENABLED(CONFIG_BRIDGE_NETFILTER)
	typedef struct net_device *(*by_pointer)(const struct sk_buff *);
	typedef struct net_device *(*by_index)(const struct sk_buff *,
					       struct net *);
	void *get = nf_bridge_get_physindev;

	if (!nf_bridge_info_exists(skb))
		return NULL;
	if (__builtin_types_compatible_p(typeof(&nf_bridge_get_physindev),
					 by_pointer))
		return ((by_pointer)get)(skb);
	return ((by_index)get)(skb, net);
#else
	return NULL;
#endif
}

static inline const struct net_device *
ipttrace_physout(const struct sk_buff *skb)
{
#if IS_ENABLED(CONFIG_BRIDGE_NETFILTER)
	return nf_bridge_get_physoutdev(skb);
#else
	return NULL;
#endif
}

/*
 * ftrace that saves only a function's arguments and stack pointer, for a
 * fraction of the price of all registers.  On x86-64 it passes something that
 * begins with a struct pt_regs in which these are filled in, which is all that
 * a kretprobe needs to hook the return.
 */
#if defined(CONFIG_X86_64) && defined(CONFIG_DYNAMIC_FTRACE_WITH_ARGS)
#define IPTTRACE_FTRACE
#define ipttrace_ftrace_args(fregs) ((struct pt_regs *)(fregs))
#endif

/* The last argument of a function that ftrace calls, before and since 5.11. */
#ifdef IPTTRACE_FTRACE_REGS
#define ipttrace_ftrace_regs struct ftrace_regs
#else
#define ipttrace_ftrace_regs struct pt_regs
#endif

/*
 * Arguments of nf_log_trace(net, pf, hook, skb, in, out, loginfo, fmt, table,
 * chain, comment, rulenum).  It is variadic from the ninth on: each of these
 * has a slot of eight bytes on the stack.
 */
#if defined(CONFIG_X86_64)

/* slot 0 is the return address, 1 and 2 are loginfo and fmt */
#define IPTTRACE_LOG_STACK 3

#define IPTTRACE_REG(regs, n)     \
	((n) == 0 ? &(regs)->di : \
	 (n) == 1 ? &(regs)->si : \
	 (n) == 2 ? &(regs)->dx : \
		    &(regs)->cx)

#elif defined(CONFIG_ARM64)

#define IPTTRACE_LOG_STACK 0

#define IPTTRACE_REG(regs, n) ((unsigned long *)&(regs)->regs[n])

#else
#error "ipttrace supports x86-64 and arm64 only"
#endif

/* The n-th variadic argument, at the function's first instruction. */
static inline unsigned long ipttrace_log_arg(struct pt_regs *regs,
					     unsigned int n)
{
	const unsigned long *stack = (void *)kernel_stack_pointer(regs);

	return stack[IPTTRACE_LOG_STACK + n];
}

static inline void ipttrace_set_arg(struct pt_regs *regs, unsigned int n,
				    unsigned long value)
{
	*IPTTRACE_REG(regs, n) = value;
}

#endif
