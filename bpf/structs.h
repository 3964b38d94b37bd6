/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The kernel's structs and variables, as far as the programs that are attached read them:
 * where their fields are is resolved when an object is loaded (CO-RE).
 */
#ifndef IPTTRACE_STRUCTS_H
#define IPTTRACE_STRUCTS_H

#include <stdbool.h>

#include <linux/types.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "record.h"

#define ACCESS __attribute__((preserve_access_index))

/*
 * A field of a struct.  Programs of fentry read it directly; those of kprobes have an address
 * only, of which the verifier does not know what is there, and `probed` is true in them.
 */
#define GET(probed, from, field) \
	((probed) ? BPF_CORE_READ(from, field) : (from)->field)

/*
 * What is in maps is read again after it.  Of a value that it reads from a map, the verifier does
 * not know by which way it came there: it checks what follows once, and not once for each
 * combination of ways that lead to it.
 */
#define MERGE() asm volatile("" ::: "memory")

/* Does the same for a value that is in no map. */
static __u32 nothing; /* always 0, which the verifier cannot know */

static __always_inline __u32 forget(__u32 value)
{
	return value ^ *(volatile __u32 *)&nothing;
}

struct net_generic;

struct ns_common {
	unsigned int inum;
} ACCESS;

struct netns_nftables {
	unsigned int base_seq;
	__u8 gencursor;
} ACCESS;

struct nf_hook_ops {
	void *priv;
	int priority;
} ACCESS;

struct nf_hook_entry {
	void *priv;
} ACCESS;

struct nf_hook_entries {
	__u16 num_hook_entries;
	struct nf_hook_entry hooks[];
} ACCESS;

struct netns_nf {
	struct nf_hook_entries *hooks_ipv4[1];
	struct nf_hook_entries *hooks_ipv6[1];
} ACCESS;

struct hlist_node {
	struct hlist_node *next;
} ACCESS;

struct hlist_head {
	struct hlist_node *first;
};

struct net {
	struct hlist_head *dev_index_head;
	struct ns_common ns;
	struct net_generic *gen;
	struct netns_nf nf;
	struct netns_nftables nft;
} ACCESS;

struct nftables_pernet {
	unsigned int base_seq;
} ACCESS;

struct possible_net {
	struct net *net;
} ACCESS;

struct address6 {
	__u8 bytes[16];
};

struct net_device {
	char name[IPTTRACE_IF_LEN];
	int ifindex;
	unsigned int flags;
	struct hlist_node index_hlist;
	struct possible_net nd_net;
	const void *rtnl_link_ops;
} ACCESS;

struct sock_common {
	__be32 skc_daddr, skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num; /* the port of this end, not in network order */
	__u16 skc_family;
	struct possible_net skc_net;
	struct address6 skc_v6_daddr, skc_v6_rcv_saddr;
} ACCESS;

struct sock_backlog {
	struct {
		int counter;
	} rmem_alloc;
};

struct socket;

struct sock {
	struct sock_common __sk_common;
	struct sock_backlog sk_backlog;
	int sk_rcvbuf;
	struct socket *sk_socket;
} ACCESS;

struct inode {
	unsigned long i_ino;
} ACCESS;

/* What sk_socket points to is its beginning. */
struct socket_alloc {
	struct inode vfs_inode;
} ACCESS;

struct neighbour {
	__u8 nud_state;
} ACCESS;

struct dst_entry {
	struct net_device *dev;
	unsigned short flags;
} ACCESS;

struct rtable {
	__u16 rt_type;
	__u8 rt_gw_family;
	__be32 rt_gw4;
	struct address6 rt_gw6;
} ACCESS;

struct fib6_table {
	__u32 tb6_id;
} ACCESS;

struct fib6_info {
	struct fib6_table *fib6_table;
	__u8 fib6_type;
} ACCESS;

struct rt6_info {
	struct fib6_info *from;
	struct address6 rt6i_gateway;
	__u32 rt6i_flags;
} ACCESS;

enum skb_ext_id {
	SKB_EXT_BRIDGE_NF,
};

struct skb_ext {
	__u8 offset[1]; /* of each extension, in pieces of 8 bytes */
} ACCESS;

struct nf_bridge_info {
	int physinif;
	struct net_device *physoutdev;
} ACCESS;

/* Before Linux 6.8, and the stable kernels that were given the same. */
struct nf_bridge_info___old {
	struct net_device *physindev;
} ACCESS;

struct sk_buff {
	struct sock *sk;
	struct net_device *dev;
	unsigned long _skb_refdst;
	unsigned long _nfct;
	int skb_iif;
	unsigned int len, data_len;
	__u16 mac_len;
	__u8 cloned : 1;
	__u8 nf_trace : 1;
	__u8 vlan_present : 1;
	__be16 protocol;
	__u32 mark;
	__u32 vlan_all;
	__u16 vlan_tci;
	__u16 network_header;
	__u16 mac_header;
	unsigned char *head, *data;
	__u8 active_extensions;
	struct skb_ext *extensions;
} ACCESS;

struct nf_hook_state {
	__u8 hook;
	__u8 pf;
	struct net_device *in;
	struct net_device *out;
	struct net *net;
} ACCESS;

struct nft_pktinfo {
	struct sk_buff *skb;
	const struct nf_hook_state *state;
} ACCESS;

struct nft_table {
	__u64 handle;
	__u16 family : 6;
	char *name;
} ACCESS;

struct nft_chain {
	struct nft_table *table;
	char *name;
} ACCESS;

struct nft_base_chain {
	struct nf_hook_ops ops;
	__u8 policy;
	struct nft_chain chain;
} ACCESS;

struct nft_verdict {
	__u32 code;
	struct nft_chain *chain;
} ACCESS;

struct nft_rule_dp {
	__u64 is_last : 1;
	__u64 dlen : 12;
	__u64 handle : 42;
} ACCESS;

/* The end of a chain's rules.  Since Linux 6.4 */
struct nft_rule_dp_last {
	struct nft_chain *chain;
} ACCESS;

struct xt_table {
	int priority;
	char name[IPTTRACE_NAME_LEN];
} ACCESS;

struct nft_traceinfo {
	__u32 skbid;
	const struct nft_base_chain *basechain;
} ACCESS;

/* Before Linux 6.4. */
struct nft_traceinfo___old {
	__u32 skbid;
	const struct nft_pktinfo *pkt;
	const struct nft_base_chain *basechain;
	const struct nft_chain *chain;
	const struct nft_rule_dp *rule;
	const struct nft_verdict *verdict;
} ACCESS;

struct nf_conntrack_zone {
	__u16 id;
} ACCESS;

struct nf_conntrack_tuple {
	char src; /* see struct tuple */
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} ACCESS;

struct nf_conn {
	struct nf_conntrack_zone zone;
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	__u32 mark;
} ACCESS;

/* Where preempt_count is on x86: Linux 6.2 to 6.14, and all others. */
struct pcpu_hot {
	int preempt_count;
} ACCESS;

extern const struct pcpu_hot pcpu_hot __ksym __weak;
extern const int __preempt_count __ksym __weak;
extern const void nf_tables_net_id __ksym __weak;

/* The test that comes before all others. */
static __always_inline bool is_traced(const struct sk_buff *skb,
				      const bool probed)
{
	return probed ? BPF_CORE_READ_BITFIELD_PROBED(skb, nf_trace) :
			BPF_CORE_READ_BITFIELD(skb, nf_trace);
}

#endif
