# SPDX-License-Identifier: GPL-2.0-only
"""What a legacy table's logged event means by the rules: rule, return or policy."""

from __future__ import annotations

import pytest

from ipttrace import rule_words
from ipttrace.capture import xtables
from ipttrace.capture.iptables_save import Chain, parse
from ipttrace.capture.netlink.events import POLICY, RETURN, RULE, VERDICT_CONTINUE
from ipttrace.capture.netlink.legacy.tables import Tables, outcome
from ipttrace.netfilter import ACCEPT, DROP, NFPROTO_IPV4

RULES = """\
*filter
:INPUT ACCEPT [0:0]
:SITE - [0:0]
:LAST - [0:0]
[0:0] -A INPUT -j SITE
[0:0] -A INPUT -j DROP
[0:0] -A SITE -p udp -j RETURN
[0:0] -A SITE -j RETURN
[0:0] -A LAST -p tcp
[0:0] -A LAST -j DROP
COMMIT
"""


class Printed(xtables.Chain):
    """A chain as iptables-save prints it."""

    def __init__(self, printed: Chain) -> None:
        super().__init__(printed.policy, tuple(map(hash, printed.rules)))
        self._rules = printed.rules

    def target(self, number: int) -> rule_words.Target | None:
        return rule_words.target(self._rules[number - 1])


@pytest.mark.parametrize(
    ("chain", "logged", "number", "meant"),
    [
        ("SITE", RULE, 1, (RULE, VERDICT_CONTINUE)),
        ("SITE", RETURN, 2, (RULE, VERDICT_CONTINUE)),  # -j RETURN without conditions
        ("SITE", RETURN, 3, (RETURN, VERDICT_CONTINUE)),
        ("LAST", RETURN, 2, (RULE, DROP)),
        ("LAST", RETURN, 3, (RETURN, VERDICT_CONTINUE)),
        ("INPUT", POLICY, 2, (RULE, DROP)),
        ("INPUT", POLICY, 3, (POLICY, ACCEPT)),
    ],
)
def test_a_rule_that_was_hit_is_a_rule_whatever_its_target(
    chain: str, logged: int, number: int, meant: tuple[int, int]
) -> None:
    tables: Tables = {
        (4, name): {chain: Printed(one) for chain, one in table.items()}
        for name, table in parse(RULES).items()
    }
    found = outcome(tables, NFPROTO_IPV4, "filter", chain, logged, number)
    assert (found.match, found.verdict) == meant
