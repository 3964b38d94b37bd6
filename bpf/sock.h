/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What programs read of the kernel's sockets, requests and processes.
 */
#ifndef IPTTRACE_SOCK_H
#define IPTTRACE_SOCK_H

#include "structs.h"

#define AF_UNSPEC    0
#define AF_INET	     2
#define AF_INET6     10
#define NFPROTO_IPV4 2
#define NFPROTO_IPV6 10
#define IPPROTO_TCP  6
#define IPPROTO_UDP  17

#define TCP_SYN_SENT	 2
#define TCP_TIME_WAIT	 6
#define TCP_CLOSE	 7
#define TCP_LISTEN	 10
#define TCP_NEW_SYN_RECV 12

#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_RST 0x04
#define TCP_FLAG_ACK 0x10
#define TCP_FLAGS    0x17 /* FIN, SYN, RST, ACK */

enum tcp_synack_type {
	TCP_SYNACK_NORMAL,
	TCP_SYNACK_FASTOPEN,
	TCP_SYNACK_COOKIE,
};

struct inode___stage {
	unsigned long i_ino;
} ACCESS;

struct file___stage {
	struct inode___stage *f_inode;
} ACCESS;

struct sock_common___stage {
	__be32 skc_daddr, skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	__u16 skc_family;
	unsigned char skc_state;
	struct possible_net skc_net;
	struct address6 skc_v6_daddr, skc_v6_rcv_saddr;
} ACCESS;

struct sock___stage {
	struct sock_common___stage __sk_common;
	int sk_err;
	__u16 sk_protocol;
	__u32 sk_ack_backlog, sk_max_ack_backlog;
	struct socket___stage *sk_socket;
} ACCESS;

struct socket___stage {
	struct file___stage *file;
	struct sock___stage *sk;
} ACCESS;

/* The second argument of inet_csk_accept(), on kernels that have it. */
struct proto_accept_arg {
	int err;
} ACCESS;

struct inet_sock {
	__be16 inet_sport;
} ACCESS;

struct request_sock___stage {
	struct sock_common___stage __req_common;
} ACCESS;

struct tcp_request_sock {
	__u32 snt_isn; /* sequence number of the SYN-ACK */
} ACCESS;

struct request_sock_queue {
	struct {
		int counter;
	} qlen;
} ACCESS;

struct inet_connection_sock {
	struct request_sock_queue icsk_accept_queue;
} ACCESS;

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	bool is_mptcp;
} ACCESS;

struct sk_buff___stage {
	struct sock *sk;
	struct net_device *dev;
	unsigned long _nfct;
	__be16 protocol;
	__u16 transport_header;
	__u16 network_header;
	unsigned char *head;
} ACCESS;

struct upid {
	int nr;
} ACCESS;

struct pid {
	unsigned int level;
	struct upid numbers[1];
} ACCESS;

struct kernfs_node {
	__u64 id;
	struct kernfs_node *parent;
} ACCESS;

/* Since Linux 6.15. */
struct kernfs_node___new {
	struct kernfs_node *__parent;
} ACCESS;

struct cgroup {
	struct kernfs_node *kn;
} ACCESS;

struct css_set {
	struct cgroup *dfl_cgrp;
} ACCESS;

struct cred___stage {
	struct {
		__u32 val;
	} uid;
} ACCESS;

struct task_struct {
	struct cred___stage *cred;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	struct css_set *cgroups;
} ACCESS;

#endif
