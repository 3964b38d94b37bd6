# SPDX-License-Identifier: GPL-2.0-only
"""A rule has the text that nft printed for it, or none, whatever comments look like."""

from __future__ import annotations

import random

import pytest

from ipttrace.capture.netlink.nft.dump import ChainInfo, Snapshot, TableInfo
from ipttrace.capture.rules.nft_listing import parse

Rule = tuple[int, str]


class Listed:
    """Tables of the family inet, as the kernel lists them and as nft prints them."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, tuple[bool, str | None, list[Rule]]]] = {}
        self.extra = ""  # in each table

    def chain(
        self, table: str, name: str, *rules: Rule, base: bool = False, comment: str | None = None
    ) -> Listed:
        self.tables.setdefault(table, {})[name] = (base, comment, list(rules))
        return self

    def snapshot(self) -> Snapshot:
        snapshot = Snapshot(1, {}, {})
        for number, (table, chains) in enumerate(self.tables.items(), 1):
            snapshot.tables[1, table] = TableInfo(number, 0, None)
            for name, (base, comment, rules) in chains.items():
                handles = [handle for handle, _ in rules]
                if base:
                    chain = ChainInfo(1, 0, "filter", 1, (), handles, comment)
                else:
                    chain = ChainInfo(None, None, "", None, (), handles, comment)
                snapshot.chains[1, table, name] = chain
        return snapshot

    def text(self) -> str:
        printed = ""
        for number, (table, chains) in enumerate(self.tables.items(), 1):
            printed += f"table inet {table} {{ # handle {number}\n{self.extra}"
            for at, (name, (base, comment, rules)) in enumerate(chains.items()):
                printed += ("\n" if at else "") + f"\tchain {name} {{ # handle {at + 1}\n"
                if comment is not None:
                    printed += f'\t\tcomment "{comment}"\n'
                if base:
                    printed += "\t\ttype filter hook input priority filter; policy accept;\n"
                printed += "".join(f"\t\t{text} # handle {handle}\n" for handle, text in rules)
                printed += "\t}\n"
            printed += "}\n"
        return printed

    def parsed(self) -> dict[tuple[int, str, str], list[str | None]]:
        return parse(self.text(), self.snapshot())


def test_rules_have_the_text_that_nft_prints() -> None:
    listed = Listed().chain(
        "t", "in", (5, "accept"), (3, 'drop comment "x } # handle 9"'), base=True
    )
    listed.chain("t", "my chain", (7, "jump in")).chain("u", "in", comment="two\nlines")
    listed.chain("u", "next", (3, "ip saddr {\n\t\t\t     1.1.1.1,\n\t\t\t     2.2.2.2 } drop"))
    listed.extra = '\tcomment "a { # handle 3"\n\tset s { # handle 9\n\t\ttype ipv4_addr\n\t}\n\n'
    assert listed.parsed() == {
        (1, "t", "in"): ["accept", 'drop comment "x } # handle 9"'],
        (1, "t", "my chain"): ["jump in"],
        (1, "u", "in"): [],
        (1, "u", "next"): ["ip saddr { 1.1.1.1, 2.2.2.2 } drop"],
    }


def test_quoted_names_and_owners_are_parsed() -> None:
    listed = Listed().chain("t", "in", (5, "accept"))
    text = listed.text().replace("chain in {", 'chain "in" {')
    for owner in ("# handle 1 progname python", "# progname x # handle 1", "# handle 1 progname {"):
        owned = text.replace("# handle 1", owner, 1)
        assert parse(owned, listed.snapshot()) == {(1, "t", "in"): ["accept"]}


def test_a_recreated_or_unknown_table_has_no_texts() -> None:
    listed = Listed().chain("t", "in", (5, "accept"))
    assert parse(listed.text().replace("t { # handle 1", "t { # handle 2"), listed.snapshot()) == {}
    assert parse("", listed.snapshot()) == {}
    assert parse("table inet t { # handle 1", listed.snapshot()) == {}


EVIL = [
    'x" # handle 3\n\t\taccept',
    'x" # handle 3\n\t\taccept # handle 4',
    'x" # handle 3\n\t\taccept # handle 4\n\t\tlog prefix "',
    "x\n\t}\n",
    'x" # handle 3\n\t\taccept # handle 4\n\t}\n',
    'x" # handle 3\n\t\tfake # handle 4\n\t}\n\tset y',
    'x" # handle 3\n\t}\n\tchain other { # handle 2\n\t\tfake # handle 8',
    'x" # handle 3\n\t}\n\n\tchain other { # handle 2\n\t\tfake # handle 8\n\t}\n}\n',
    'x" # handle 3\n\t}\n}\ntable inet u { # handle 2\n\tchain in { # handle 1\n\t\tx # handle 3',
    'x" # handle 3\n\t}\n}\n\tchain other { # handle 2\n\t\tfake # handle 8\n\t}\n',
    "x\n\tchain other { # handle 2\n\t\tfake # handle 8\n\t}\n}\n",
    "x\n}\n",
    "\n# handle 4\n",
    "x\n # handle 3",
    "x\n # handle 4",
]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("where", ["rule", "chain", "table", "both"])
def test_a_comment_that_looks_like_rules_never_causes_a_wrong_text(evil: str, where: str) -> None:
    # GIVEN such a comment
    first = f'drop comment "{evil}"' if where in ("rule", "both") else "drop"
    second = f'return comment "{evil}"' if where == "both" else "return"
    comment = evil if where == "chain" else None
    listed = Listed().chain("t", "in", (2, "accept"), (3, first), (4, second), comment=comment)
    listed.chain("t", "other", (8, "jump in")).chain("u", "in", (3, "goto next"))
    if where == "table":
        listed.extra = f'\tcomment "{evil}"\n'
    # THEN each rule has its own text or none
    for key, texts in listed.parsed().items():
        rules = listed.tables[key[1]][key[2]][2]
        assert len(texts) == len(rules)
        for text, (_, right) in zip(texts, rules, strict=True):
            assert text is None or text.split() == right.split()
    # AND if nothing is ambiguous, each has its text
    if evil == "x\n # handle 4" and where == "rule":
        assert listed.parsed()[1, "u", "in"] == ["goto next"]


def test_no_mixture_of_lines_causes_a_wrong_text() -> None:
    rng = random.Random(3)
    pieces = ['x" # handle 3', "\n", "\n\t\t", "\n\t}", "\n}", "\n\tchain other { # handle 2", '"',
              "\n\t\tfake # handle 4", "\n\t\tfake # handle 8", "\n\t\tfake # handle 2",
              "\ntable inet u { # handle 2", "\n\tchain in { # handle 1", "\n\tset y {",
              "\n\t\ttype filter hook input priority filter; policy accept;", " "]  # fmt: skip
    known = 0
    for _ in range(20_000):
        evil = ["".join(rng.choices(pieces, k=rng.randrange(9))) for _ in range(3)]
        listed = Listed()
        listed.chain("t", "in", (2, f'accept comment "{evil[0]}"'), (3, "drop"),
                     (4, f'return comment "{evil[1]}"'), base=True,
                     comment=rng.choice([None, evil[2]]))  # fmt: skip
        listed.chain("t", "other", (8, "jump in")).chain("u", "in", (3, "goto next"))
        for key, texts in listed.parsed().items():
            for text, (_, right) in zip(texts, listed.tables[key[1]][key[2]][2], strict=True):
                known += text is not None
                assert text is None or text.split() == right.split(), evil
    assert known > 20_000
