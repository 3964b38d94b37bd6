# SPDX-License-Identifier: GPL-2.0-only
"""Finds and downloads Debian's kernel packages.

Runs ``apt-cache`` and ``apt-get download``, which need no root, and ``apt-get update``
where that needs no password.  A kernel that this host's package lists do not have is
looked for in those of other suites of Debian, kept in ``<cache>/apt`` and downloaded only
then; the host's own lists stay as they are.  Must not unpack or install anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ipttrace.lab.kernels.error import KernelError

STALL_LIMIT: Final = 120.0
"""Seconds without new bytes after which a download counts as failed."""


@dataclass(frozen=True)
class Package:
    """A package's entry in the package lists; sizes in bytes, of the file and once installed."""

    name: str
    version: str
    size: int
    installed: int
    depends: tuple[str, ...]
    options: tuple[str, ...] = ()  # apt's, to find it


# Where there are kernels that Debian 12 does not have, oldest first.
SUITES: Final = (
    ("debian", "bullseye"),
    ("debian-security", "bullseye-security"),
    ("debian", "trixie"),
    ("debian", "trixie-backports"),
    ("debian", "sid"),
)
_MIRROR: Final = "http://deb.debian.org"
_KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"

# A release of the flavour amd64; with a hyphen in the version, as Debian's were until 6.1.
_RELEASE: Final = re.compile(r"\d[\w.+~]*(?:-\d[\w.+~]*)?(?:-rt)?-amd64")


def packages_of(wanted: str, folder: Path) -> tuple[str, list[Package]]:
    """Returns the release for ``wanted`` (a series or a release), and its packages.

    A series is ``6.1``, or ``6.1-rt`` for its PREEMPT_RT flavour; ``folder`` keeps the
    package lists of other suites.  Raises KernelError if Debian has no such kernel.
    """
    options: tuple[str, ...] = ()
    release = _release_of(wanted)
    if release is None and refresh_lists():
        release = _release_of(wanted)
    if release is None:
        options = other_suites(folder)
        release = _release_of(wanted, options)
    if release is None:
        image = any(matches(name, wanted) for name in _releases("image", wanted, options))
        what = f"Debian has Linux {wanted}, but no headers" if image else f"no kernel {wanted}"
        raise KernelError(f"{what} in the lists of {', '.join(_suites(options))}")
    image_parts = re.compile(rf"linux-(base|binary|modules)-{re.escape(release)}$")
    build_parts = re.compile(r"linux-(headers-.*-common(-rt)?|kbuild-.*)$")
    found = []
    for name, parts in (
        (f"linux-image-{release}", image_parts),
        (f"linux-headers-{release}", build_parts),
    ):
        package = package_named(name, options)
        found.append(package)
        found += [package_named(name, options) for name in package.depends if parts.match(name)]
    return release, found


def libraries(options: tuple[str, ...]) -> list[Package]:
    """Returns the packages of what a newer suite's build tools are linked to."""
    return [package_named(name, options) for name in ("libc6", "libelf1t64", "zlib1g", "libzstd1")]


def _suites(options: tuple[str, ...]) -> list[str]:
    return [name for _, name in SUITES] if options else ["this host"]


def matches(release: str, wanted: str) -> bool:
    """Returns whether ``wanted`` is this release, or its series of the same flavour."""
    if release == wanted:
        return True
    series, rt = wanted.removesuffix("-rt"), wanted.endswith("-rt")
    return (
        _RELEASE.fullmatch(release) is not None
        and release.startswith(series + ".")
        and release.endswith("-rt-amd64") == rt
    )


def version_key(release: str) -> tuple[int, ...]:
    """Sorts releases."""
    return tuple(int(n) for n in re.findall(r"\d+", release))


def _release_of(wanted: str, options: tuple[str, ...] = ()) -> str | None:
    """The newest release with both an image and headers; None if there is none."""
    both = _releases("image", wanted, options) & _releases("headers", wanted, options)
    return max((name for name in both if matches(name, wanted)), key=version_key, default=None)


def _releases(kind: str, wanted: str, options: tuple[str, ...]) -> set[str]:
    pattern = f"^linux-{kind}-{re.escape(wanted.removesuffix('-rt'))}"
    text = _cache(["search", "--names-only", pattern], options)
    names = (line.split(" ", 1)[0] for line in text.splitlines())
    return {name.removeprefix(f"linux-{kind}-") for name in names}


def other_suites(folder: Path) -> tuple[str, ...]:
    """Downloads the package lists of other suites; returns apt's options to use them.

    Raises KernelError if they cannot be had.
    """
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = "".join(
        f"deb [signed-by={_KEYS}] {_MIRROR}/{archive} {suite} main\n" for archive, suite in SUITES
    )
    (folder / "sources.list").write_text(sources)
    options = (
        *("-o", f"Dir::Etc::sourcelist={folder}/sources.list", "-o", "Dir::Etc::sourceparts=-"),
        *("-o", f"Dir::State::lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache"),
        *("-o", "Acquire::Languages=none", "-o", "APT::Sandbox::User=root"),
    )
    try:
        done = subprocess.run(
            ["apt-get", *options, "update", "-q"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=STALL_LIMIT * 5,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelError(f"cannot download the lists of other suites: {error}") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line[:2] == "E:"]
        reason = lines[0][2:].strip() if lines else f"apt-get exited with {done.returncode}"
        raise KernelError(f"cannot download the package lists of Debian's other suites: {reason}")
    return options


def package_named(name: str, options: tuple[str, ...] = ()) -> Package:
    """Returns the package ``name``; raises KernelError if the package lists do not have it."""
    package = show(name, options)
    if package is None:
        raise KernelError(f"Debian's package lists have no {name}: run `apt-get update` as root")
    return package


def show(name: str, options: tuple[str, ...] = ()) -> Package | None:
    """Returns the package ``name`` from the package lists; None if they do not have it."""
    # apt-cache treats an unknown name as a regular expression.
    package = parse(_cache(["show", "--no-all-versions", name], options))
    return replace(package, options=options) if package and package.name == name else None


def _cache(arguments: Sequence[str], options: tuple[str, ...]) -> str:
    """The output of apt-cache, empty if it finds nothing.  Raises KernelError."""
    try:
        return subprocess.run(
            ["apt-cache", *options, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
        ).stdout
    except FileNotFoundError:
        raise KernelError(
            "apt-cache is not installed: the lab's kernels need Debian's package lists"
        ) from None
    except subprocess.TimeoutExpired:
        raise KernelError("apt-cache did not answer within 120 s") from None


def parse(text: str) -> Package | None:
    """Returns the first stanza of ``apt-cache show``'s output; None if it is incomplete."""
    fields: dict[str, str] = {}
    for line in text.split("\n\n", 1)[0].splitlines():
        key, colon, value = line.partition(": ")
        if colon and not line.startswith(" "):
            fields.setdefault(key, value.strip())
    if not {"Package", "Version", "Size"} <= fields.keys():
        return None
    depends = re.split(r"\s*[,|]\s*", fields.get("Depends", ""))
    return Package(
        name=fields["Package"],
        version=fields["Version"],
        size=int(fields["Size"]) if fields["Size"].isdecimal() else 0,
        installed=int(re.sub(r"\D", "", fields.get("Installed-Size", "")) or 0) * 1024,
        depends=tuple(depend.split()[0] for depend in depends if depend),
    )


def refresh_lists() -> bool:
    """Runs ``apt-get update`` if that needs no password; returns whether it succeeded."""
    command = ["apt-get", "update", "-q"]
    if os.geteuid() != 0:
        if not shutil.which("sudo"):
            return False
        command = ["sudo", "-n", *command]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=STALL_LIMIT * 5
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def download(
    packages: Sequence[Package], folder: Path, progress: Callable[[float], None]
) -> list[Path]:
    """Downloads into ``folder``; returns the files in the order of ``packages``.

    All are found by the same options of apt; ``progress`` receives the share done (0 to 1).
    Raises KernelError.
    """
    error = _download(packages, folder, progress)
    if error and refresh_lists():
        # Mirrors delete a version as soon as there is a newer one.
        fresh = [package_named(package.name, package.options) for package in packages]
        error = _download(fresh, folder, progress)
    if error:
        raise KernelError(f"cannot download {packages[0].name}: {error}")
    files = []
    for package in packages:
        found = sorted(folder.glob(f"{package.name}_*.deb"))
        if not found:
            raise KernelError(f"cannot download {package.name}: apt-get left no file")
        files.append(found[-1])
    return files


def _download(
    packages: Sequence[Package], folder: Path, progress: Callable[[float], None]
) -> str | None:
    """Returns None on success, else apt's error message."""
    total = sum(package.size for package in packages) or 1
    log = folder / "apt.log"
    with log.open("w") as output:
        # As root: apt's sandbox user cannot write to the cache.
        process = subprocess.Popen(
            ["apt-get", *packages[0].options, "download", "-q", "-o", "APT::Sandbox::User=root"]
            + [f"{package.name}={package.version}" for package in packages],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        size, since = 0, time.monotonic()
        while True:
            try:
                process.wait(0.5)
                break
            except subprocess.TimeoutExpired:
                current = sum(file.stat().st_size for file in folder.glob("*.deb"))
                if current != size:
                    size, since = current, time.monotonic()
                    progress(min(size / total, 0.99))
                elif time.monotonic() - since > STALL_LIMIT:
                    return f"no data for {STALL_LIMIT:.0f} s"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if process.returncode == 0:
        progress(0.99)
        return None
    lines = [line for line in log.read_text(errors="replace").splitlines() if line[:2] == "E:"]
    return lines[0][2:].strip() if lines else f"apt-get exited with status {process.returncode}"
