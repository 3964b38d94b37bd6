// SPDX-License-Identifier: GPL-2.0-only
/*
 * Fills in the parts of a record that come from conntrack, the link layer, the
 * devices and the table, read from structs that the kernel's headers define.
 */

#include <linux/if_vlan.h>
#include <linux/kprobes.h>
#include <linux/netfilter/x_tables.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <linux/skbuff.h>
#include <asm/word-at-a-time.h>
#include <net/netfilter/nf_conntrack.h>
#include <net/netfilter/nf_conntrack_zones.h>

#include "compat.h"
#include "ipttrace.h"

static void head_tuple(const struct nf_conntrack_tuple *tuple, u8 *src, u8 *dst,
		       u16 *sport, u16 *dport)
{
	memcpy(src, &tuple->src.u3, 16);
	memcpy(dst, &tuple->dst.u3, 16);
	*sport = (__force u16)tuple->src.u.all;
	*dport = (__force u16)tuple->dst.u.all;
}
NOKPROBE_SYMBOL(head_tuple);

void ipttrace_head_conntrack(struct ipttrace_entry_head *head,
			     const struct sk_buff *skb)
{
	enum ip_conntrack_info info;
	const struct nf_conn *ct = nf_ct_get(skb, &info);
	const struct nf_conntrack_tuple *orig;

	/* The instance still holds an earlier call. */
	head->ct_info = info;
	if (!ct) {
		head->ct = 0;
		head->ct_status = 0;
		head->ct_mark = 0;
		head->ct_zone = 0;
		head->ct_proto = 0;
		head->ct_orig_sport_be16 = 0;
		head->ct_orig_dport_be16 = 0;
		head->ct_reply_sport_be16 = 0;
		head->ct_reply_dport_be16 = 0;
		memset(head->ct_orig_src, 0, 16);
		memset(head->ct_orig_dst, 0, 16);
		memset(head->ct_reply_src, 0, 16);
		memset(head->ct_reply_dst, 0, 16);
		return;
	}
	orig = &ct->tuplehash[IP_CT_DIR_ORIGINAL].tuple;
	head->flags |= IPTTRACE_F_CONNTRACK;
	head->ct = (unsigned long)ct;
	head->ct_status = READ_ONCE(ct->status);
#ifdef CONFIG_NF_CONNTRACK_MARK
	head->ct_mark = READ_ONCE(ct->mark);
#else
	head->ct_mark = 0;
#endif
	head->ct_zone = nf_ct_zone(ct)->id;
	head->ct_proto = orig->dst.protonum;
	head_tuple(orig, head->ct_orig_src, head->ct_orig_dst,
		   &head->ct_orig_sport_be16, &head->ct_orig_dport_be16);
	head_tuple(&ct->tuplehash[IP_CT_DIR_REPLY].tuple, head->ct_reply_src,
		   head->ct_reply_dst, &head->ct_reply_sport_be16,
		   &head->ct_reply_dport_be16);
}
NOKPROBE_SYMBOL(ipttrace_head_conntrack);

static const struct nf_hook_entries *hook_entries(const struct net *net,
						  u8 family, unsigned int hook)
{
	if (family == NFPROTO_IPV6)
		return rcu_dereference_raw(net->nf.hooks_ipv6[hook]);
	return rcu_dereference_raw(net->nf.hooks_ipv4[hook]);
}
NOKPROBE_SYMBOL(hook_entries);

/*
 * A copy of a hook's ops; false if the hook has just been unregistered.  NAT
 * frees its own at once, without waiting for readers under RCU: what was read
 * counts only if they are still in place.
 */
static __always_inline bool hook_read(struct nf_hook_ops **at,
				      struct nf_hook_ops *copy)
{
	struct nf_hook_ops *op = READ_ONCE(*at);

	*copy = *op;
	smp_rmb();
	return READ_ONCE(*at) == op;
}

/*
 * Whether packets of this family go through conntrack in this namespace.  Its
 * hooks are registered all together, as long as a rule or NAT needs them.
 * Other hooks of its priority, nftables' chains and BPF links, have priv set.
 */
static bool conntrack_used(const struct net *net, u8 family)
{
	const struct nf_hook_entries *entries =
		hook_entries(net, family, NF_INET_PRE_ROUTING);
	struct nf_hook_ops **ops, op;
	unsigned int i;

	if (!entries)
		return false;
	ops = nf_hook_entries_get_hook_ops(entries);
	for (i = 0; i < entries->num_hook_entries; i++)
		if (hook_read(&ops[i], &op) &&
		    op.priority == NF_IP_PRI_CONNTRACK && !op.priv)
			return true;
	return false;
}
NOKPROBE_SYMBOL(conntrack_used);

/*
 * A packet without an entry that conntrack has seen, and that nothing has made
 * UNTRACKED, is what "-m conntrack --ctstate INVALID" matches.  That matches the
 * packets that conntrack has not seen yet, in raw, as well: they are not INVALID.
 */
u8 ipttrace_ct_flags(const struct ipttrace_entry_head *head,
		     const struct xt_table *table,
		     const struct nf_hook_state *state)
{
	BUILD_BUG_ON((int)NF_IP_PRI_CONNTRACK != (int)NF_IP6_PRI_CONNTRACK);
	if (head->flags & IPTTRACE_F_CONNTRACK ||
	    head->ct_info == IP_CT_UNTRACKED)
		return 0;
	if ((state->hook == NF_INET_PRE_ROUTING ||
	     state->hook == NF_INET_LOCAL_OUT) &&
	    table->priority < NF_IP_PRI_CONNTRACK)
		return 0;
	return conntrack_used(state->net, state->pf) ? IPTTRACE_CT_INVALID : 0;
}
NOKPROBE_SYMBOL(ipttrace_ct_flags);

void ipttrace_head_link(struct ipttrace_entry_head *head,
			const struct sk_buff *skb)
{
	u32 len;

	head->protocol_be16 = (__force u16)skb->protocol;
	/* A tag that was removed leaves its value behind. */
	head->vlan_tci = skb_vlan_tag_present(skb) ? skb_vlan_tag_get(skb) : 0;
	memset(head->mac, 0, sizeof(head->mac));
	head->mac_len = 0;
	/* On output it is not set yet, or set to the network header. */
	if (!skb_mac_header_was_set(skb) ||
	    skb_network_offset(skb) < skb_mac_offset(skb))
		return;
	len = skb_network_offset(skb) - skb_mac_offset(skb);
	if (len > IPTTRACE_MAC_LEN)
		return;
	memcpy(head->mac, skb_mac_header(skb), len);
	head->mac_len = len;
}
NOKPROBE_SYMBOL(ipttrace_head_link);

/*
 * The first bytes from the network header on, which is skb->data in
 * ipt_do_table().  The linear part may hold no more than that header.
 */
void ipttrace_entry_packet(struct ipttrace_entry *entry,
			   const struct sk_buff *skb)
{
	u32 len = min_t(u32, skb->len, IPTTRACE_PACKET_LEN);

	if (skb_headlen(skb) < len) {
		/* It fails on memory of a device, which cannot be read. */
		if (skb_copy_bits(skb, 0, entry->packet, len))
			len = 0;
	} else {
		memcpy(entry->packet, skb->data, len);
	}
	entry->head.caplen = len;
	/* The instance still holds an earlier packet. */
	memset(entry->packet + len, 0, IPTTRACE_PACKET_LEN - len);
}
NOKPROBE_SYMBOL(ipttrace_entry_packet);

/* Both have 16 bytes.  Bytes after the NUL are not copied. */
static void name_copy(char *to, const char *from)
{
	const struct word_at_a_time constants = WORD_AT_A_TIME_CONSTANTS;
	unsigned long word, bits;
	unsigned int at;

	BUILD_BUG_ON(sizeof(word) != 8);
	for (at = 0; at < 16; at += sizeof(word)) {
		memcpy(&word, from + at, sizeof(word));
		if (has_zero(word, &bits, &constants)) {
			bits = prep_zero_mask(word, bits, &constants);
			word &= zero_bytemask(create_zero_mask(bits));
			memcpy(to + at, &word, sizeof(word));
			memset(to + at + sizeof(word), 0,
			       16 - sizeof(word) - at);
			return;
		}
		memcpy(to + at, &word, sizeof(word));
	}
}
NOKPROBE_SYMBOL(name_copy);

void ipttrace_entry_names(struct ipttrace_entry *entry,
			  const struct nf_hook_state *state)
{
	BUILD_BUG_ON(sizeof(entry->comm) != 16 || TASK_COMM_LEN != 16);
	BUILD_BUG_ON(sizeof(entry->in) != 16 || IFNAMSIZ != 16);
	name_copy(entry->comm, current->comm);
	if (state->in)
		name_copy(entry->in, state->in->name);
	else
		memset(entry->in, 0, sizeof(entry->in));
	if (state->out)
		name_copy(entry->out, state->out->name);
	else
		memset(entry->out, 0, sizeof(entry->out));
}
NOKPROBE_SYMBOL(ipttrace_entry_names);

/*
 * Of hooks of one priority, the one registered last comes first.  The table's
 * own hook has its address as priv since ipt_do_table() takes it there; before,
 * none.  NAT calls the table nat, which is not in the list: no chain is beside it.
 */
void ipttrace_entry_beside(struct ipttrace_entry *entry,
			   const struct xt_table *table,
			   const struct nf_hook_state *state)
{
	const void *priv = IPTTRACE_PRIV_FIRST ? table : NULL;
	const struct nf_hook_entries *entries =
		hook_entries(state->net, state->pf, state->hook);
	struct nf_hook_ops **ops, op;
	unsigned int i, chains = 0;
	bool found = false;

	entry->nft_before = 0;
	entry->nft_behind = 0;
	/* Without an address to look for, filter's hook would pass for nat's. */
	if (!entries || (!IPTTRACE_PRIV_FIRST && !strcmp(table->name, "nat")))
		return;
	ops = nf_hook_entries_get_hook_ops(entries);
	for (i = 0; i < entries->num_hook_entries; i++) {
		if (!hook_read(&ops[i], &op) || op.priority != table->priority)
			continue;
		if (ipttrace_op_is_nft(&op)) {
			chains++;
		} else if (op.priv == priv) {
			entry->nft_before = min(chains, 255U);
			chains = 0;
			found = true;
		}
	}
	if (found)
		entry->nft_behind = min(chains, 255U);
}
NOKPROBE_SYMBOL(ipttrace_entry_beside);

/* The ports of the bridge that br_netfilter keeps, as -m physdev sees them. */
void ipttrace_entry_phys(struct ipttrace_entry *entry,
			 const struct sk_buff *skb, struct net *net)
{
	const struct net_device *in = ipttrace_physin(skb, net);
	const struct net_device *out = ipttrace_physout(skb);

	entry->physin_ifindex = in ? in->ifindex : 0;
	entry->physout_ifindex = out ? out->ifindex : 0;
	if (in)
		name_copy(entry->physin, in->name);
	else
		memset(entry->physin, 0, sizeof(entry->physin));
	if (out)
		name_copy(entry->physout, out->name);
	else
		memset(entry->physout, 0, sizeof(entry->physout));
}
NOKPROBE_SYMBOL(ipttrace_entry_phys);

static __always_inline unsigned int next_offset(const void *entry, u8 family)
{
	if (family == NFPROTO_IPV6)
		return ((const struct ip6t_entry *)entry)->next_offset;
	return ((const struct ipt_entry *)entry)->next_offset;
}

/*
 * The kernel calls every unconditional verdict in a built-in chain "policy",
 * `-A INPUT -j DROP` too.  The policy itself is the entry at the underflow.
 *
 * The call is inside the table's read section, which keeps private alive.
 */
static bool policy_reached(const struct ipttrace_call *call, u32 rulenum)
{
	const struct xt_table_info *private =
		(__force void *)READ_ONCE(call->table->private);
	unsigned int at = private->hook_entry[call->hook];
	unsigned int policy = private->underflow[call->hook];
	u32 n;

	for (n = 1; n < rulenum && at < policy; n++) {
		const void *entry = private->entries + at;
		unsigned int next = next_offset(entry, call->family);

		if (!next)
			break;
		at += next;
	}
	return n == rulenum && at == policy;
}
NOKPROBE_SYMBOL(policy_reached);

/* Chains' heads and the end of a table have this target. */
static bool is_error(const void *entry, u8 family)
{
	const struct ip6t_entry *six = entry;
	const struct ipt_entry *four = entry;
	const struct xt_entry_target *target;

	target = entry + (family == NFPROTO_IPV6 ? six->target_offset :
						   four->target_offset);
	return !strcmp(target->u.kernel.target->name, XT_ERROR_TARGET);
}
NOKPROBE_SYMBOL(is_error);

/*
 * The kernel calls every unconditional verdict in a user-defined chain
 * "return", `-A LOGDROP -j DROP` and `-A SITE -j RETURN` too.  The end of the
 * chain is its last entry; the next one is another chain's head, or the end of
 * the table.
 *
 * chain is the name in the chain's head (get_chainname_rulenum()).  If the rules
 * were replaced during the call, it is not in this table: then the kernel's word holds.
 */
static bool chain_end(const struct ipttrace_call *call, const char *chain,
		      u32 rulenum)
{
	const struct xt_table_info *private =
		(__force void *)READ_ONCE(call->table->private);
	size_t name = offsetof(struct xt_error_target, errorname);
	unsigned long start = (unsigned long)private->entries;
	unsigned long at = (unsigned long)chain - start;
	u32 n;

	name += call->family == NFPROTO_IPV6 ? sizeof(struct ip6t_entry) :
					       sizeof(struct ipt_entry);
	if ((unsigned long)chain < start + name || at >= private->size)
		return true;
	at -= name;
	for (n = 0; n <= rulenum; n++) {
		unsigned int next =
			next_offset(private->entries + at, call->family);

		if (!next || next >= private->size - at)
			return true;
		at += next;
	}
	return is_error(private->entries + at, call->family);
}
NOKPROBE_SYMBOL(chain_end);

enum ipttrace_match ipttrace_match_of(const struct ipttrace_call *call,
				      const char *chain, const char *comment,
				      u32 rulenum)
{
	/* "rule", "return" or "policy" */
	if (comment[0] == 'p')
		return policy_reached(call, rulenum) ? IPTTRACE_MATCH_POLICY :
						       IPTTRACE_MATCH_RULE;
	if (comment[0] == 'r' && comment[1] == 'e')
		return chain_end(call, chain, rulenum) ? IPTTRACE_MATCH_RETURN :
							 IPTTRACE_MATCH_RULE;
	return IPTTRACE_MATCH_RULE;
}
NOKPROBE_SYMBOL(ipttrace_match_of);
