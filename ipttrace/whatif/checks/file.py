# SPDX-License-Identifier: GPL-2.0-only
"""The YAML file of tests, checked and bounded; docs/whatif.md describes it.

It is untrusted: only plain values are read, without aliases, and each key once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import yaml

from ipttrace.text import clean
from ipttrace.whatif.errors import PacketError, WhatIfError
from ipttrace.whatif.packet import words
from ipttrace.whatif.packet.spec import Packet
from ipttrace.whatif.packet.words import Place
from ipttrace.whatif.snapshot.files import read_file

_MOST_BYTES: Final = 1 << 20
_MOST_TESTS: Final = 10_000
_KEYS: Final = ("network", "rules", "with", "tests")
_TEST_KEYS: Final = (
    *("name", "packet", "verdict", "by", "rule", "leaves", "delivered", "from", "to"),
)
_VERDICTS: Final = ("accepted", "dropped")
_BY: Final = re.compile(r"(?:(?:ip|ip6|inet|bridge|netdev) )?(\S+) (\S+)(?: (policy|[0-9]{1,9}))?")
_END: Final = re.compile(r"\[([0-9a-fA-F:.]+)\](?::([0-9]{1,5}))?|([0-9.]+)(?::([0-9]{1,5}))?")
_BARE: Final = re.compile(r"[0-9a-fA-F]*:[0-9a-fA-F:.]+")


@dataclass(frozen=True, slots=True)
class By:
    """The rule that decides in a table: `number` is None if any, 0 for the chain's policy."""

    table: str
    chain: str
    number: int | None


@dataclass(frozen=True, slots=True)
class Test:
    """A packet and what is expected; None: anything."""

    name: str
    packet: Packet | Place
    verdict: str | None = None  # accepted, dropped
    by: By | None = None
    rule: str | None = None  # part of the text of the deciding rule
    leaves: str | None = None  # a device
    delivered: bool | None = None
    source: tuple[str, int | None] | None = None  # when it leaves
    target: tuple[str, int | None] | None = None


@dataclass(frozen=True, slots=True)
class Tests:
    """A file: paths are relative to the current folder; None: not given."""

    network: str | None
    rules: tuple[str, ...] | None
    changes: tuple[str, ...]
    tests: tuple[Test, ...]


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Without aliases, whose expansion could be endless, and with each key once."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="an alias", problem_mark=self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = key.value if isinstance(key.value, str) else ""
            if name in seen or not name:
                problem = f"{name} is given twice" if name else "a key that is not a word"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(name)
        return dict(super().construct_mapping(node, deep))


def read(path: str) -> Tests:
    """Returns the tests in a file.  Raises WhatIfError."""
    shown = clean(path, 120)
    text = read_file(path)
    if len(text) > _MOST_BYTES:
        raise WhatIfError(f"{shown}: larger than {_MOST_BYTES >> 20} MB")
    try:
        return parse(text, Path(path).parent)
    except WhatIfError as error:
        raise WhatIfError(f"{shown}: {error}") from None


def parse(text: str, folder: Path = Path()) -> Tests:
    """Returns the tests in a text; files in it are relative to `folder`.  Raises WhatIfError."""
    try:
        # Derived from SafeLoader: only plain values.
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise WhatIfError(f"{line}{clean(str(error.problem), 120)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise WhatIfError(f"not YAML: {clean(reason, 120)}") from None
    whole = _mapping(value, "the file", _KEYS)
    tests = whole.get("tests")
    if not isinstance(tests, list) or not tests or len(tests) > _MOST_TESTS:
        raise WhatIfError(f"tests: a list of 1 to {_MOST_TESTS} belongs here")
    network = whole.get("network")
    rules = whole.get("rules")
    return Tests(
        None if network is None else _path(folder, _text(network, "network")),
        None if rules is None else tuple(_path(folder, one) for one in _texts(rules, "rules")),
        tuple(_texts(whole.get("with", []), "with")),
        tuple(_test(one, number, folder) for number, one in enumerate(tests, 1)),
    )


def _test(value: object, number: int, folder: Path) -> Test:
    what = f"test {number}"
    one = _mapping(value, what, _TEST_KEYS)
    if "packet" not in one:
        raise WhatIfError(f"{what}: packet is missing")
    name = _text(one.get("name", one["packet"]), f"{what}: name")
    what = f"{what} ({clean(name, 60)})"
    packet = _packet(_text(one["packet"], f"{what}: packet"), what)
    if isinstance(packet, Place) and packet.file:
        packet = replace(packet, file=_path(folder, packet.file))
    if not set(one) - {"name", "packet"}:
        raise WhatIfError(f"{what}: nothing is expected; write verdict, by, leaves, from or to")
    delivered = one.get("delivered")
    if delivered not in (None, True, False):
        raise WhatIfError(f"{what}: delivered is yes or no")
    return Test(
        clean(name, 200),
        packet,
        _verdict(one.get("verdict"), what),
        _by(one["by"], what) if "by" in one else None,
        _text(one["rule"], f"{what}: rule") if "rule" in one else None,
        _text(one["leaves"], f"{what}: leaves") if "leaves" in one else None,
        delivered,
        _end(one["from"], f"{what}: from") if "from" in one else None,
        _end(one["to"], f"{what}: to") if "to" in one else None,
    )


def _packet(text: str, what: str) -> Packet | Place:
    try:
        return words.parse(text)
    except PacketError as error:
        raise WhatIfError(f"{what}: packet: {error}") from None


def _verdict(value: object, what: str) -> str | None:
    if value is None or value in _VERDICTS:
        return None if value is None else str(value)
    raise WhatIfError(f"{what}: verdict is accepted or dropped")


def _by(value: object, what: str) -> By:
    found = _BY.fullmatch(_text(value, f"{what}: by"))
    if not found:
        raise WhatIfError(
            f"{what}: by is a table, a chain and perhaps a number or policy: filter FORWARD 3"
        )
    table, chain, number = found.groups()
    return By(table, chain, None if number is None else 0 if number == "policy" else int(number))


def _end(value: object, what: str) -> tuple[str, int | None]:
    text = _text(value, what)
    if _BARE.fullmatch(text):
        return text.lower(), None
    found = _END.fullmatch(text)
    if not found:
        raise WhatIfError(f"{what}: ADDRESS or ADDRESS:PORT belongs here")
    port = found[2] or found[4]
    return (found[1] or found[3]).lower(), int(port) if port else None


def _mapping(value: object, what: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise WhatIfError(f"{what}: keys and values belong here: {', '.join(known)}")
    for key in value:
        if key not in known:
            raise WhatIfError(f"{what}: unknown key {clean(str(key), 40)}: {', '.join(known)}")
    return value


def _text(value: object, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or len(str(value)) > 1 << 18:
        raise WhatIfError(f"{what}: a text belongs here")
    return str(value)


def _texts(value: object, what: str) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    if len(listed) > 256:
        raise WhatIfError(f"{what}: too many")
    return [_text(one, what) for one in listed]


def _path(folder: Path, name: str) -> str:
    return str(folder / name)
