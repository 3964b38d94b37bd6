# SPDX-License-Identifier: GPL-2.0-only
"""The kernel cache: finds kernels, holds only complete ones, and has one-line errors."""

from __future__ import annotations

import gzip
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from ipttrace.lab import kernels
from ipttrace.lab.kernels import KernelError
from ipttrace.lab.kernels import apt as kernels_apt
from ipttrace.lab.kernels import cache as cache_module
from ipttrace.lab.kernels.apt import Package
from ipttrace.lab.kernels.image import extract_vmlinux, has_pvh_entry

RELEASE = "6.1.0-9-amd64"

STANZA = """Package: linux-headers-6.12.9+deb12-amd64
Version: 6.12.9-1~deb12u1
Installed-Size: 10
Depends: linux-headers-6.12.9+deb12-common (= 6.12.9-1), linux-image-6.12.9+deb12-amd64 (= 6) |\
 linux-image-6.12.9+deb12-amd64-unsigned (= 6), linux-kbuild-6.12.9+deb12, gcc-12
Size: 1234
Description: headers
 Size: 99

Package: other
Version: 0
Size: 1
"""


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("IPTTRACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def add_kernel(cache: Path, release: str, complete: bool = True) -> None:
    folder = cache / "kernels" / release
    folder.mkdir(parents=True)
    if complete:
        (folder / "complete.json").write_text("{}")


def test_the_newest_kernel_of_a_series_is_found(cache: Path) -> None:
    # GIVEN kernels whose names do not sort like their versions, and an incomplete one
    for release in ("6.1.0-9-amd64", "6.1.0-56-amd64", "6.12.117+deb12-amd64"):
        add_kernel(cache, release)
    add_kernel(cache, "6.1.0-99-amd64", complete=False)
    # WHEN they are looked up by series or release
    found = [kernels.find(name) for name in ("6.1", "6.12", "6.1.0-9-amd64", "5.10", "6")]
    # THEN 6.1 does not match 6.12, and the incomplete one is not found
    assert [kernel and kernel.release for kernel in found] == [
        "6.1.0-56-amd64",
        "6.12.117+deb12-amd64",
        "6.1.0-9-amd64",
        None,
        "6.12.117+deb12-amd64",
    ]


def test_the_cache_folder_follows_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("IPTTRACE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert kernels.cache_dir() == tmp_path / "ipttrace"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kernels.cache_dir() == tmp_path / ".cache" / "ipttrace"


def test_a_stanza_of_the_package_lists_is_parsed() -> None:
    package = kernels_apt.parse(STANZA)
    assert package is not None
    assert (package.name, package.size, package.installed) == (
        "linux-headers-6.12.9+deb12-amd64",
        1234,
        10240,
    )
    assert "linux-kbuild-6.12.9+deb12" in package.depends
    assert kernels_apt.parse("N: no packages found\n") is None


@pytest.mark.parametrize("wanted", ["", "../6.1", "6.1; rm", "-amd64", "six"])
def test_an_invalid_release_is_rejected_before_any_command_runs(cache: Path, wanted: str) -> None:
    with pytest.raises(KernelError, match="not a kernel release"):
        kernels.ensure(wanted)
    assert not cache.exists()


def fake_packages(monkeypatch: pytest.MonkeyPatch, size: int = 1) -> None:
    names = [f"linux-image-{RELEASE}", f"linux-headers-{RELEASE}", "linux-kbuild-6.1"]
    found = [Package(name, "1", size, size, ()) for name in names]
    monkeypatch.setattr(cache_module, "packages_of", lambda wanted, folder: (RELEASE, found))


def test_too_little_disk_space_is_reported_before_the_download(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_packages(monkeypatch, size=1 << 60)
    with pytest.raises(KernelError, match=r"needs \d+ MB in .*, \d+ MB are free: free some space"):
        kernels.ensure("6.1")
    assert kernels.available() == []


def test_an_unknown_kernel_is_a_one_line_error(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels_apt, "_cache", lambda arguments, options: "")
    monkeypatch.setattr(kernels_apt, "refresh_lists", lambda: False)
    monkeypatch.setattr(kernels_apt, "other_suites", lambda folder: ("-o", "x"))
    with pytest.raises(KernelError, match=r"^no kernel 9\.9 in the lists of .* sid$") as error:
        kernels.ensure("9.9")
    assert "\n" not in str(error.value)


LISTS = {
    "linux-image-6.18.9+deb13-amd64": "",
    "linux-image-7.2.13+deb14-amd64": "",
    "linux-headers-7.2.13+deb14-amd64": "linux-kbuild-7.2.13+deb14",
    "linux-image-7.3.4+deb13-amd64": (
        "dracut | initramfs-tools, linux-base-7.3.4+deb13-amd64 (= 1),"
        " linux-binary-7.3.4+deb13-amd64 (= 1), linux-modules-7.3.4+deb13-amd64 (= 1)"
    ),
    "linux-headers-7.3.4+deb13-amd64": (
        "gcc-14-for-host, linux-base (>= 4.12~), linux-base-7.3.4+deb13-amd64 (= 1),"
        " linux-headers-7.3.4+deb13-common (= 1), linux-kbuild-7.3.4+deb13"
    ),
    "linux-image-7.3.4+deb13-cloud-amd64": "",
    "linux-headers-7.3.4+deb13-cloud-amd64": "",
    "linux-image-6.1.0-56-rt-amd64": "kmod",
    "linux-headers-6.1.0-56-rt-amd64": (
        "linux-headers-6.1.0-56-common-rt (= 1), linux-kbuild-6.1 (>= 1), gcc-12"
    ),
}


@pytest.fixture
def lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Package lists of which all but Linux 6.18's headers can be had."""

    def answer(arguments: Sequence[str], options: tuple[str, ...]) -> str:
        last = arguments[-1]
        if arguments[0] == "search":
            return "".join(f"{name} - Linux\n" for name in LISTS if re.search(last, name))
        depends = LISTS.get(last, "")
        return f"Package: {last}\nVersion: 1\nSize: 1\nDepends: {depends}\n"

    monkeypatch.setattr(kernels_apt, "_cache", answer)
    monkeypatch.setattr(kernels_apt, "refresh_lists", lambda: False)
    monkeypatch.setattr(kernels_apt, "other_suites", lambda folder: ())


@pytest.mark.usefixtures("lists")
@pytest.mark.parametrize(
    ("wanted", "release", "parts"),
    [
        (
            "7.3",
            "7.3.4+deb13-amd64",
            "image base binary modules headers headers-common kbuild",
        ),
        ("6.1-rt", "6.1.0-56-rt-amd64", "image headers headers-common-rt kbuild"),
        ("7.2.13+deb14-amd64", "7.2.13+deb14-amd64", "image headers kbuild"),
    ],
)
def test_all_parts_of_a_kernel_are_found(
    tmp_path: Path, wanted: str, release: str, parts: str
) -> None:
    found, packages = kernels_apt.packages_of(wanted, tmp_path)
    assert found == release
    version = r"-\d[\w.+]*(-56)?"
    names = [
        re.sub(version, "", package.name).removeprefix("linux-").removesuffix("-amd64")
        for package in packages
    ]
    assert [name.removesuffix("-rt") if "common" not in name else name for name in names] == (
        parts.split()
    )


@pytest.mark.usefixtures("lists")
def test_an_image_without_headers_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"^Debian has Linux 6\.18, but no headers in"):
        kernels_apt.packages_of("6.18", tmp_path)


def test_a_series_is_of_one_flavour(cache: Path) -> None:
    for release in ("6.1.0-56-amd64", "6.1.0-57-rt-amd64", "6.1.0-58-cloud-amd64"):
        add_kernel(cache, release)
    found = [kernels.find(name) for name in ("6.1", "6.1-rt", "6.1.0-58-cloud-amd64")]
    assert [kernel and kernel.release for kernel in found] == [
        "6.1.0-56-amd64",
        "6.1.0-57-rt-amd64",
        "6.1.0-58-cloud-amd64",
    ]


def make_deb(folder: Path, package: Package, files: dict[str, str]) -> Path:
    tree = folder / f"{package.name}.tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(
        f"Package: {package.name}\nVersion: {package.version}\nArchitecture: all\n"
        "Maintainer: nobody <nobody@example.org>\nDescription: test\n"
    )
    for name, text in files.items():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("-> "):
            file.symlink_to(text[3:])
        else:
            file.write_text(text)
    deb = folder / f"{package.name}_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", str(tree), str(deb)], check=True, capture_output=True)
    shutil.rmtree(tree)
    return deb


CONTENT = [
    {
        f"boot/vmlinuz-{RELEASE}": "no image",
        f"lib/modules/{RELEASE}/modules.order": "",
        f"lib/modules/{RELEASE}/build": f"-> /usr/src/linux-headers-{RELEASE}",
    },
    {
        f"usr/src/linux-headers-{RELEASE}/Makefile": (
            "include /usr/src/linux-headers-6.1.0-9-common/Makefile\n"
        ),
        "usr/src/linux-headers-6.1.0-9-common/Makefile": "all:\n\t@echo the common Makefile\n",
    },
    {"usr/lib/linux-kbuild-6.1/scripts/x": ""},
]


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_headers_in_the_cache_need_nothing_in_usr_src(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # GIVEN Debian's packages, whose Makefile and link refer to /usr/src
    fake_packages(monkeypatch)

    def download(packages: Sequence[Package], folder: Path, progress: object) -> list[Path]:
        pairs = zip(packages, CONTENT, strict=True)
        return [make_deb(folder, package, files) for package, files in pairs]

    monkeypatch.setattr(cache_module, "download", download)
    # WHEN the kernel is downloaded, and the cache then moved
    kernel = kernels.ensure("6.1")
    moved = cache.rename(tmp_path / "elsewhere")
    headers = moved / kernel.headers.relative_to(cache)
    build = moved / kernel.modules.relative_to(cache) / "build"
    # THEN make works in it, and the modules' link points there
    assert build.resolve() == headers.resolve()
    done = subprocess.run(["make", "-s", "-C", headers], capture_output=True, text=True)
    assert done.stdout == "the common Makefile\n"
    assert not list((moved / "kernels").glob(".new-*"))
    assert kernel.image.name == f"vmlinuz-{RELEASE}"


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_a_broken_download_leaves_no_incomplete_kernel(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # GIVEN a truncated package
    fake_packages(monkeypatch)

    def download(packages: Sequence[Package], folder: Path, progress: object) -> list[Path]:
        file = make_deb(folder, packages[0], CONTENT[0])
        file.write_bytes(file.read_bytes()[:200])
        return [file]

    monkeypatch.setattr(cache_module, "download", download)
    # WHEN it is unpacked THEN the error is one line, and nothing is left
    with pytest.raises(KernelError, match="cannot unpack") as error:
        kernels.ensure("6.1")
    assert "\n" not in str(error.value)
    assert [path.name for path in (cache / "kernels").iterdir()] == [".lock"]


def elf(notes: bytes) -> bytes:
    head = b"\x7fELF\x02\x01" + bytes(26) + struct.pack("<Q", 64) + bytes(14)
    head += struct.pack("<HH", 56, 1)
    head = head.ljust(64, b"\0")
    return head + struct.pack("<IIQQQQQQ", 4, 0, 120, 0, 0, len(notes), 0, 4) + notes


PVH = struct.pack("<III", 4, 4, 18) + b"Xen\0" + bytes(4)
OTHER = struct.pack("<III", 4, 8, 5) + b"GNU\0" + bytes(8)


def bzimage(payload: bytes) -> bytes:
    setup = bytearray(512 * 2)
    setup[0x1F1] = 1
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, 0x20F)
    struct.pack_into("<II", setup, 0x248, 16, len(payload))
    return bytes(setup) + bytes(16) + payload


def test_the_elf_image_is_extracted_from_a_bzimage(tmp_path: Path) -> None:
    image = elf(OTHER + PVH)
    (tmp_path / "bz").write_bytes(bzimage(gzip.compress(image)))
    assert extract_vmlinux(tmp_path / "bz", tmp_path / "elf")
    assert (tmp_path / "elf").read_bytes() == image


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"no kernel at all",
        bzimage(b"unknown compression"),
        bzimage(gzip.compress(b"no ELF")),
        bzimage(gzip.compress(elf(OTHER))),
        bzimage(gzip.compress(elf(PVH)))[:-40],
    ],
    ids=["empty", "text", "compression", "payload", "no entry", "truncated"],
)
def test_an_image_that_cannot_be_unpacked_is_left_as_it_is(tmp_path: Path, image: bytes) -> None:
    (tmp_path / "bz").write_bytes(image)
    assert not extract_vmlinux(tmp_path / "bz", tmp_path / "elf")
    assert not (tmp_path / "elf").exists()


def test_an_elf_with_wrong_lengths_has_no_pvh_entry() -> None:
    image = elf(PVH)
    for at in range(len(image)):
        has_pvh_entry(image[:at])
    assert has_pvh_entry(image)
    assert not has_pvh_entry(image[:120] + b"\xff" * 60)
