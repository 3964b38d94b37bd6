# SPDX-License-Identifier: GPL-2.0-only
"""Rules that do not fit into one transaction are loaded in several, with the same effect."""

from __future__ import annotations

from ipttrace.whatif.copy import portions

NFT = """\
table inet fw {
	set hosts {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.1, 10.0.0.2,
			10.0.0.3 }
	}
	chain input {
		type filter hook input priority filter; policy drop;
		tcp dport { 22, 80,
			443 } accept comment "a { brace"
		jump more
	}
	chain more {
		ip saddr @hosts drop
	}
}
"""


def test_chains_and_sets_come_first_then_elements_then_rules_in_order() -> None:
    outline, *rest = portions.nft(NFT, 10)
    assert "policy drop" in outline
    assert "dport" not in outline
    assert "10.0.0.1" not in outline
    lines = "".join(rest).splitlines()
    assert lines == [
        "add element inet fw hosts { 10.0.0.1 }",
        "add element inet fw hosts { 10.0.0.2 }",
        "add element inet fw hosts { 10.0.0.3 }",
        'add rule inet fw input tcp dport { 22, 80, 443 } accept comment "a { brace"',
        "add rule inet fw input jump more",
        "add rule inet fw more ip saddr @hosts drop",
    ]


def test_chains_of_iptables_are_declared_once_and_rules_keep_their_order() -> None:
    rules = [f"-A INPUT -p tcp -m tcp --dport {port} -j ACCEPT" for port in range(1, 30)]
    text = "\n".join(["*filter", ":INPUT DROP [0:0]", *rules, "COMMIT", "*nat", "COMMIT", ""])
    found = list(portions.iptables(text, 200))
    assert len(found) > 5
    assert [one.count(":INPUT") for one in found[:2]] == [1, 0]
    again = [line for one in found for line in one.splitlines() if line.startswith("-A")]
    assert again == rules
    assert found[-1].startswith("*nat\n")
    assert all(one.endswith("COMMIT\n") for one in found)


def test_tables_can_be_removed_before_another_attempt() -> None:
    assert portions.empty(NFT) == "table inet fw {}\ndelete table inet fw\n"
