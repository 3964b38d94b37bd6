# SPDX-License-Identifier: GPL-2.0-only
"""The guard while it runs: its rules, what replaces them, and what was denied.

Must not write to stdout.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final

from ipttrace.capture.containers import Cgroups
from ipttrace.capture.errors import CaptureError
from ipttrace.capture.hello import clock
from ipttrace.guard import programs, session, words
from ipttrace.guard.policy import compile_policy
from ipttrace.guard.programs import Programs
from ipttrace.guard.rules import Rule, parse
from ipttrace.guard.sharing import Sharing

_KEPT: Final = 64  # sets of rules whose events may still come
_MOST_HELD: Final = 1 << 16  # events
_CONTAINERS_EVERY: Final = 1.0  # s
_SUBMITTED: Final = 20_000_000  # ns after its time, an event is in the ring


class Refused(Exception):
    """Rules that the guard does not take; the message is for a person."""


class Guard:
    """In force from when it is made until `close`, or until the process ends in any way."""

    def __init__(self, rules: Sequence[Rule], *, dry: bool = False, force: bool = False) -> None:
        """`dry`: nothing is denied; `force`: also rules that cut off this ssh session.

        Raises CaptureError, RuleError, Refused.
        """
        self._dry = dry
        self._session = None if force or dry else session.find()
        self._cgroups = Cgroups()
        self._rules: dict[int, Sequence[Rule]] = {}
        self._version = 0
        self._named: dict[str, list[int]] = {}
        self._due = 0.0
        self._held: deque[Any] = deque()  # events
        self._lost = 0
        self.replaced = -1
        self._check(rules)
        self.limits = ""  # what cannot be denied here, a line
        self._programs = self._start()
        self._sharing = Sharing()
        try:
            self._at_start = self._programs.counts()
            self.replace(rules)
        except BaseException:
            self.close()
            raise

    def _start(self) -> Programs:
        """Programs that the kernel is known to ask: of LSM, or else of the host's cgroup."""
        try:
            if found := _asked(Programs()):
                return found
            why = programs.why_not_asked()
        except CaptureError as failure:
            why = f"programs of BPF LSM cannot be used: {failure}"
        try:
            found = _asked(Programs(of_cgroup=True))
        except CaptureError as failure:
            raise CaptureError(f"{why}; programs of a cgroup cannot be used: {failure}") from None
        if found is None:
            raise CaptureError(why)
        self.limits = (
            "accept() and recvmsg() cannot be denied, so connections and data are dropped as they"
            f" arrive: {why}"
        )
        return found

    def _check(self, rules: Sequence[Rule]) -> None:
        if self._session is None:
            return
        rule = session.cut_off_by(rules, self._session)
        if rule is not None:
            raise Refused(f'"{rule.text}" would cut off this ssh session: --force if you mean it')

    @property
    def rules(self) -> Sequence[Rule]:
        """Those that apply."""
        return self._rules[self._version]

    def replace(self, rules: Sequence[Rule]) -> None:
        """Has these rules apply, all at once.  Raises as `__init__`; then the old ones stay."""
        self._check(rules)
        named = self._find_containers(rules)
        version = self._version + 1
        self._programs.replace(self._compile(rules, named, version))
        self._version, self._named = version, named
        self._rules[version] = rules
        self._rules.pop(version - _KEPT, None)
        self.replaced += 1

    def refresh(self) -> None:
        """Notices containers that have come or gone.  Raises as `replace`."""
        if time.monotonic() < self._due:
            return
        named = self._find_containers(self.rules)
        if named != self._named:
            self._programs.replace(self._compile(self.rules, named, self._version))
            self._named = named

    def _compile(self, rules: Sequence[Rule], named: dict[str, list[int]], version: int) -> bytes:
        return compile_policy(
            rules, named, version=version, dry=self._dry, arriving=self._programs.of_cgroup
        )

    def _find_containers(self, rules: Sequence[Rule]) -> dict[str, list[int]]:
        self._due = time.monotonic() + _CONTAINERS_EVERY
        return self._cgroups.named({one for rule in rules for one in rule.containers or ()})

    def take(self, most: int) -> list[dict[str, Any]]:
        """What was denied, as words.as_json has it: the next `most` at the most."""
        self._sharing.accept()
        upto = time.monotonic_ns() - _SUBMITTED
        read = self._programs.take()
        room = _MOST_HELD - len(self._held)
        self._lost += max(len(read) - room, 0)
        self._held.extend(read[:room])
        events = [self._held.popleft() for _ in range(min(most, len(self._held)))]
        if not events:
            self._sharing.flush(upto)
            return []
        now = clock()
        offset = now["wall"] - now["mono"]
        found = []
        for event in events:
            rules = self._rules.get(int(event["version"]), ())
            number = int(event["rule"])
            rule = rules[number - 1] if 0 < number <= len(rules) else None
            container = self._cgroups.of(int(event["cgroup"]))
            found.append(words.as_json(event, rule, container, offset))
            own = {"mono": int(event["time"]), "cgroup": int(event["cgroup"])}
            self._sharing.send(found[-1] | own)
        self._sharing.flush(int(self._held[0]["time"]) if self._held else upto)
        return found

    def counts(self) -> tuple[int, int]:
        """How many calls were denied, and of how many of them the event was lost."""
        now, before = self._programs.counts(), self._at_start
        return now[0] - before[0], now[1] - before[1] + self._lost

    def stop(self) -> None:
        """Allows everything again; what was denied until now can still be taken."""
        self._programs.detach()

    def close(self) -> None:
        """Allows everything again, and frees all."""
        self._programs.close()
        self._sharing.close()


def _asked(found: Programs) -> Programs | None:
    """These, if they deny what they should; else they are closed."""
    name = programs.unused_name()
    try:
        found.replace(compile_policy(parse(f"deny connect comm {name}"), {}, version=0))
        if programs.denies_thread(name):
            found.take()
            return found
    except BaseException:
        found.close()
        raise
    found.close()
    return None
