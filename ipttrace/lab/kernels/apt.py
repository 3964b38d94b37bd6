# SPDX-License-Identifier: GPL-2.0-only
"""Finds and downloads Debian's kernel packages.

Runs ``apt-cache show`` and ``apt-get download``, which need no root, and
``apt-get update`` where that needs no password.  Must not unpack or install
anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


def packages_of(wanted: str) -> tuple[str, list[Package]]:
    """Returns the release for ``wanted`` (a series or a release), and its packages.

    Raises KernelError if Debian's package lists have no such kernel.
    """
    release = _release_of(wanted)
    if release is None and refresh_lists():
        release = _release_of(wanted)
    if release is None:
        raise KernelError(
            f"Debian's package lists have no kernel {wanted}: run `apt-get update` as root,"
            " or use another one (Debian 12 has 6.1 and 6.12)"
        )
    image = _required(f"linux-image-{release}")
    headers = _required(f"linux-headers-{release}")
    build_packages = re.compile(r"linux-(headers-.*-common|kbuild-.*)$")
    dependencies = [name for name in headers.depends if build_packages.match(name)]
    return release, [image, headers, *(_required(name) for name in dependencies)]


def _release_of(wanted: str) -> str | None:
    if show(f"linux-image-{wanted}") and show(f"linux-headers-{wanted}"):
        return wanted
    for meta in (f"linux-image-{wanted}-amd64", "linux-image-amd64"):
        package = show(meta)
        for name in package.depends if package else ():
            release = name.removeprefix("linux-image-")
            if release != name and release.startswith(wanted + "."):
                return release
    return None


def _required(name: str) -> Package:
    package = show(name)
    if package is None:
        raise KernelError(f"Debian's package lists have no {name}: run `apt-get update` as root")
    return package


def show(name: str) -> Package | None:
    """Returns the package ``name`` from the package lists; None if they do not have it."""
    try:
        text = subprocess.run(
            ["apt-cache", "show", "--no-all-versions", name],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout
    except FileNotFoundError:
        raise KernelError(
            "apt-cache is not installed: the lab's kernels need Debian's package lists"
        ) from None
    except subprocess.TimeoutExpired:
        raise KernelError("apt-cache did not answer within 120 s") from None
    # apt-cache treats an unknown name as a regular expression.
    package = parse(text)
    return package if package and package.name == name else None


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

    ``progress`` receives the share done (0 to 1).  Raises KernelError.
    """
    error = _download(packages, folder, progress)
    if error and refresh_lists():
        # Mirrors delete a version as soon as there is a newer one.
        fresh = [_required(package.name) for package in packages]
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
            ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root"]
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
