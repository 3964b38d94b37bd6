// SPDX-License-Identifier: GPL-2.0-only
/*
 * The target IPTTRACE of ipttrace.ko for iptables, ip6tables and iptables-nft:
 * parses, lists and saves "-j IPTTRACE --note NOTE".
 */

#include <ctype.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <xtables.h>

#include "xt_IPTTRACE.h"

enum { O_NOTE };

static const struct xt_option_entry options[] = {
	{
		.name = "note",
		.id = O_NOTE,
		.type = XTTYPE_STRING,
		.max = IPTTRACE_NOTE_LEN - 1,
		.flags = XTOPT_PUT,
		XTOPT_POINTER(struct xt_ipttrace_info, note),
	},
	XTOPT_TABLEEND,
};

static void help(void)
{
	printf("IPTTRACE target options:\n"
	       "  --note NOTE    a word about the rule, up to %d bytes\n"
	       "\n"
	       "A packet that hits the rule is traced from there on, as long as\n"
	       "ipttrace --from-rules runs; else the rule does nothing.\n",
	       IPTTRACE_NOTE_LEN - 1);
}

static void parse(struct xt_option_call *call)
{
	const char *at;

	xtables_option_parse(call);
	for (at = call->arg; at && *at; at++)
		if (iscntrl((unsigned char)*at))
			xtables_error(PARAMETER_PROBLEM,
				      "IPTTRACE: --note must not contain"
				      " control characters");
}

static void print_note(const char *word, const struct xt_entry_target *target)
{
	const struct xt_ipttrace_info *info = (const void *)target->data;
	char note[IPTTRACE_NOTE_LEN];

	if (!info->note[0])
		return;
	memcpy(note, info->note, sizeof(note));
	note[sizeof(note) - 1] = '\0';
	printf(" %s", word);
	xtables_save_string(note);
}

static void save(const void *entry, const struct xt_entry_target *target)
{
	(void)entry;
	print_note("--note", target);
}

static void print(const void *entry, const struct xt_entry_target *target,
		  int numeric)
{
	(void)entry;
	(void)numeric;
	print_note("note", target);
}

static struct xtables_target target = {
	.name = "IPTTRACE",
	.version = XTABLES_VERSION,
	.family = NFPROTO_UNSPEC,
	.size = XT_ALIGN(sizeof(struct xt_ipttrace_info)),
	.userspacesize = offsetof(struct xt_ipttrace_info, table),
	.help = help,
	.print = print,
	.save = save,
	.x6_parse = parse,
	.x6_options = options,
};

__attribute__((constructor)) static void setup(void)
{
	xtables_register_target(&target);
}
