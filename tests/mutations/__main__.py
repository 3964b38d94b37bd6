# SPDX-License-Identifier: GPL-2.0-only
"""``python -m tests.mutations [NAME ...]``: a line for each fault, whether its tests notice it.

Without names: every fault of a kernel that is in the cache.  What a guest printed is in
build/mutations.  Exit status 0: all were noticed.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.mutations import guest
from tests.mutations.checkout import CheckoutError, copy_of, copy_project, prepare
from tests.mutations.fault import CannotApply, Fault, put_back
from tests.mutations.faults import FAULTS
from tests.mutations.verdict import Verdict
from tests.paths import PROJECT

LOGS: Final = PROJECT / "build" / "mutations"
WIDTH: Final = max(len(fault.name) for fault in FAULTS)


def report(what: str, name: str, why: str = "") -> None:
    print(f"{what:17}  {name:{WIDTH}}  {why}".rstrip(), flush=True)


def chosen(names: Sequence[str]) -> Iterator[Fault]:
    """The faults of these names, or those of the kernels that are there; reports the others."""
    for fault in FAULTS:
        if names:
            if fault.name in names:
                yield fault
        elif guest.present(fault.kernel):
            yield fault
        else:
            report("left out", fault.name, absent(fault.kernel))


def absent(series: str) -> str:
    return f"Linux {series} is not in the cache: python -m ipttrace.lab.setup {series}"


def baseline(faults: Iterable[Fault], base: Path, cache: Path) -> bool:
    """Whether the tests of these faults pass without any."""
    guests: dict[tuple[str, bool], dict[str, None]] = {}
    for fault in faults:
        for test in fault.tests:
            guests.setdefault((fault.kernel, guest.alone(test)), {})[test] = None
    sound = True
    for (series, alone), tests in guests.items():
        kernel = guest.present(series)
        if kernel is None:
            continue
        log = LOGS / f"baseline-{series}{'-alone' if alone else ''}.log"
        for test, verdict in zip(tests, guest.run(kernel, base, cache, [*tests], log), strict=True):
            if verdict.failed is not False:
                sound = False
                report("fails without any", test, verdict.why)
    return sound


def noticed(fault: Fault, base: Path, cache: Path) -> bool:
    """Puts the fault back in a copy of `base`, runs its tests there, and reports the result."""
    kernel = guest.present(fault.kernel)
    if kernel is None:
        report("could not run", fault.name, absent(fault.kernel))
        return False
    begun = time.monotonic()
    verdicts: dict[str, Verdict] = {}
    with copy_of(base) as copy:
        try:
            put_back(fault, copy)
        except CannotApply as error:
            report("cannot be applied", fault.name, str(error))
            return False
        for number, test in enumerate(fault.tests):
            log = LOGS / f"{fault.name}-{number}.log"
            (verdicts[test],) = guest.run(kernel, copy, cache, [test], log, kills=fault.kills)
    seconds = f"{time.monotonic() - begun:.0f} s"
    for what, failed in (("could not run", None), ("NOT NOTICED", False)):
        found = [
            f"{test.rpartition('::')[2]} {verdict.why or 'passed'}"
            for test, verdict in verdicts.items()
            if verdict.failed is failed
        ]
        if found:
            report(what, fault.name, f"{seconds}: {'; '.join(found)}")
            return False
    report("noticed", fault.name, f"{seconds}: {'; '.join(one.why for one in verdicts.values())}")
    return True


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="a fault of docs/kernel-tests.md")
    parser.add_argument(
        "--baseline", action="store_true", help="first run the same tests without any fault"
    )
    parsed = parser.parse_args(arguments)
    if unknown := set(parsed.names) - {fault.name for fault in FAULTS}:
        parser.error(f"unknown fault: {', '.join(sorted(unknown))}; see docs/kernel-tests.md")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    faults = list(chosen(parsed.names))
    try:
        with tempfile.TemporaryDirectory(prefix="ipttrace-mutations-") as folder:
            base, cache = Path(folder) / "base", Path(folder) / "cache"
            copy_project(base)
            prepare(base, sorted({*itertools.chain(*(fault.tests for fault in faults))}))
            LOGS.mkdir(parents=True, exist_ok=True)
            if parsed.baseline and not baseline(faults, base, cache):
                return 1
            results = [noticed(fault, base, cache) for fault in faults]
    except CheckoutError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0 if all(results) and results else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
