// SPDX-License-Identifier: GPL-2.0-only
/*
 * What an ARM asks for, taken from its attributes: references to pinned BPF
 * programs and a namespace, a filter, and limits.
 */

#include <linux/bpf.h>
#include <linux/filter.h>
#include <net/genetlink.h>
#include <net/net_namespace.h>
#include <net/netns/generic.h>

#include "compat.h"
#include "ipttrace.h"

static int prog_get(struct bpf_prog **prog, struct genl_info *info,
		    enum ipttrace_attr attr, enum ipttrace_prog which)
{
	const struct nlattr *path = info->attrs[attr];

	if (!path) {
		GENL_SET_ERR_MSG(info,
				 "ARM needs the pins of two BPF programs");
		return -EINVAL;
	}
	*prog = bpf_prog_get_type_path(nla_data(path), BPF_PROG_TYPE_KPROBE);
	if (!IS_ERR(*prog))
		return ipttrace_program_check(*prog, path, which, info->extack);

	switch (PTR_ERR(*prog)) {
	case -ENOENT:
		NL_SET_ERR_MSG_ATTR(info->extack, path,
				    "no BPF program is pinned at this path");
		break;
	case -EINVAL:
		NL_SET_ERR_MSG_ATTR(
			info->extack, path,
			"the pin at this path is not a BPF program of type kprobe");
		break;
	default:
		NL_SET_ERR_MSG_ATTR(info->extack, path,
				    "this path is not a pin of a BPF program");
	}
	return PTR_ERR(*prog);
}

/* *filter is NULL if there is no such attribute, which is not an error. */
int ipttrace_filter_get(struct bpf_prog **filter, struct genl_info *info)
{
	const struct nlattr *attr = info->attrs[IPTTRACE_A_FILTER];
	struct sock_fprog_kern code;
	int err;

	*filter = NULL;
	if (!attr)
		return 0;
	if (!nla_len(attr) || nla_len(attr) % sizeof(struct sock_filter)) {
		NL_SET_ERR_MSG_ATTR(
			info->extack, attr,
			"the filter's length is not a multiple of a BPF instruction's");
		return -EINVAL;
	}
	code.len = nla_len(attr) / sizeof(struct sock_filter);
	code.filter = nla_data(attr);
	err = bpf_prog_create(filter, &code);
	if (err)
		NL_SET_ERR_MSG_ATTR(
			info->extack, attr,
			"the filter is not a valid classic BPF program");
	return err;
}

void ipttrace_filter_put(struct bpf_prog *filter)
{
	if (filter)
		bpf_prog_destroy(filter);
}

/*
 * A reference to the namespace whose descriptor is in the message; NULL if there
 * is none, which is not an error.
 */
struct net *ipttrace_net_get(struct genl_info *info)
{
	const struct nlattr *attr = info->attrs[IPTTRACE_A_NETNS_FD];
	struct net *net;

	if (!attr)
		return NULL;
	net = get_net_ns_by_fd(nla_get_u32(attr));
	if (IS_ERR(net))
		NL_SET_ERR_MSG_ATTR(
			info->extack, attr,
			"NETNS_FD is not a descriptor of a network namespace");
	return net;
}

static int setup_net_get(struct ipttrace_setup *setup, struct genl_info *info)
{
	const struct nlattr *id = info->attrs[IPTTRACE_A_NETNS_ID];
	struct net *net = ipttrace_net_get(info);
	struct ipttrace_net *rn;

	if (IS_ERR(net))
		return PTR_ERR(net);
	setup->net = net;
	if (net) {
		rn = net_generic(net, ipttrace_net_id);
		setup->net_id = rn->id;
	}
	if (!id || nla_get_u64(id) == setup->net_id)
		return 0;
	NL_SET_ERR_MSG_ATTR(info->extack, id,
			    "this is another network namespace than before");
	return -ESRCH;
}

/* setup is all zero. */
int ipttrace_setup_get(struct ipttrace_setup *setup, struct genl_info *info)
{
	static const enum ipttrace_attr attrs[IPTTRACE_PROGS] = {
		[IPTTRACE_PROG_CALL] = IPTTRACE_A_PROG_CALL,
		[IPTTRACE_PROG_RULE] = IPTTRACE_A_PROG_RULE,
	};
	int err, i;

	for (i = 0; i < IPTTRACE_PROGS; i++) {
		err = prog_get(&setup->progs[i], info, attrs[i], i);
		if (err)
			goto put;
	}
	setup->finished =
		ipttrace_prog_value(setup->progs[IPTTRACE_PROG_CALL],
				    sizeof(struct ipttrace_call_record));
	if (!setup->finished) {
		NL_SET_ERR_MSG_ATTR(
			info->extack, info->attrs[IPTTRACE_A_PROG_CALL],
			"the BPF program for calls lacks a per-CPU array of this version's call records");
		err = -EINVAL;
		goto put;
	}
	err = ipttrace_filter_get(&setup->filter, info);
	if (err)
		goto put;
	err = setup_net_get(setup, info);
	if (err)
		goto put;
	if (info->attrs[IPTTRACE_A_MAXACTIVE])
		setup->maxactive =
			nla_get_u32(info->attrs[IPTTRACE_A_MAXACTIVE]);
	setup->from_rules = info->attrs[IPTTRACE_A_FROM_RULES];
	if (setup->from_rules && setup->filter) {
		GENL_SET_ERR_MSG(info,
				 "FILTER and FROM_RULES exclude each other");
		err = -EINVAL;
		goto put;
	}
	if (setup->maxactive > 65536) {
		NL_SET_ERR_MSG_ATTR(info->extack,
				    info->attrs[IPTTRACE_A_MAXACTIVE],
				    "MAXACTIVE is over 65536 calls");
		err = -EINVAL;
		goto put;
	}
	return 0;

put:
	ipttrace_setup_put(setup);
	return err;
}

void ipttrace_setup_put(struct ipttrace_setup *setup)
{
	int i;

	ipttrace_filter_put(setup->filter);
	if (setup->net)
		put_net(setup->net);
	for (i = 0; i < IPTTRACE_PROGS; i++)
		if (!IS_ERR_OR_NULL(setup->progs[i]))
			bpf_prog_put(setup->progs[i]);
	memset(setup, 0, sizeof(*setup));
}
