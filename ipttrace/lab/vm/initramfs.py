# SPDX-License-Identifier: GPL-2.0-only
"""What the throwaway VM boots into: a small initramfs, and the job to run there.

The initramfs (a static busybox, about seven modules, an init script) is built
once per kernel and cached.  It mounts the host's root file system over 9p,
read-only, with an overlay in memory on top: the guest sees everything on the
host and can change none of it.  The job comes in a second archive and runs on
that root.  No systemd, no udev, no network device.

Must not start a VM.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ipttrace.lab.kernels import Kernel
from ipttrace.lab.kernels.error import KernelError

BOOT_MODULES: Final = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
MSIZE: Final = 512_000

INIT: Final = f"""#!/bin/busybox sh
B=/bin/busybox
die() {{ echo "ipttrace: the guest cannot $1" >/dev/console; $B poweroff -f; $B sleep 60; }}
$B mount -t proc proc /proc
$B mount -t sysfs sysfs /sys
$B mount -t devtmpfs dev /dev || die "mount /dev"
while read -r m; do $B insmod /modules/$m || die "load $m"; done </modules/order
$B mount -t 9p -o trans=virtio,version=9p2000.L,msize={MSIZE},cache=loose,ro root /host \\
    || die "mount the host's root"
$B mount -t tmpfs -o mode=755,size=75% ram /ram
$B mkdir /ram/upper /ram/work /ram/root
$B mount -t overlay -o lowerdir=/host,upperdir=/ram/upper,workdir=/ram/work root /ram/root \\
    || die "mount the overlay"
R=/ram/root
$B mkdir -p $R/proc $R/sys $R/dev $R/run
for i in proc sys dev; do $B mount --move /$i $R/$i; done
$B mount -t tmpfs -o mode=755 run $R/run
$B mkdir -p $R/run/ipttrace/home $R/run/lock
$B cp /bin/busybox /job/* $R/run/ipttrace/ || die "copy the job"
exec $B switch_root $R /run/ipttrace/busybox sh /run/ipttrace/start
"""

START: Final = f"""
B=/run/ipttrace/busybox
cd /run/ipttrace
. ./settings
$B mkdir -p /dev/virtio-ports /dev/pts /dev/shm
for p in /sys/class/virtio-ports/*; do
    read -r n <$p/name && $B ln -s ../${{p##*/}} /dev/virtio-ports/$n
done
P=/dev/virtio-ports/org.ipttrace
$B mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
$B mount -t tmpfs -o mode=1777 shm /dev/shm
$B ln -s /proc/self/fd /dev/fd
$B ln -s /proc/self/fd/0 /dev/stdin
$B ln -s /proc/self/fd/1 /dev/stdout
$B ln -s /proc/self/fd/2 /dev/stderr
$B mount -t bpf -o mode=700 bpf /sys/fs/bpf
$B mount -t debugfs -o mode=700 debugfs /sys/kernel/debug
$B mount -t tracefs -o mode=700 tracefs /sys/kernel/tracing
$B mount -t cgroup2 cgroup2 /sys/fs/cgroup
$B mkdir -p "/lib/modules/$RELEASE" && $B mount --bind "$MODULES" "/lib/modules/$RELEASE"
$B hostname ipttrace-lab
$B ip link set lo up
if [ -n "$SHARE" ]; then
    $B mkdir -p "$SHARE"
    $B mount -t 9p -o trans=virtio,version=9p2000.L,msize={MSIZE},cache=none share "$SHARE" \\
        || echo "ipttrace: the guest cannot mount $SHARE" >/dev/console
fi
# All but the first wait for this where the emulator is unsafe (qemu.py).
for c in /sys/devices/system/cpu/cpu*/online; do
    read -r on <$c && [ "$on" = 1 ] || echo 1 >$c
done
$B mkfifo out err
$B cat <out >$P.stdout & C1=$!
$B cat <err >$P.stderr & C2=$!
echo ready >$P.status
# In the foreground: the shell makes background commands ignore SIGINT.
if [ -n "$TERMINAL" ]; then
    SHELL=/bin/sh /usr/bin/script -qefc "stty $TERMINAL; exec sh ./command" /dev/null \\
        <$P.stdin >out 2>err
else
    $B setsid $B sh ./command </dev/null >out 2>err
fi
s=$?
# A process that the command left behind would keep its output open for ever.
for p in /proc/[0-9]*; do
    case ${{p#/proc/}} in 1|$C1|$C2) ;; *) kill -9 ${{p#/proc/}} 2>/dev/null ;; esac
done
wait $C1 $C2
$B sync
for n in stdout stderr stream; do
    [ -e $P.$n ] && printf '\\036%s' "$TOKEN" >$P.$n
done
echo "exit $s" >$P.status
while :; do $B sleep 1000; done
"""

PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def end_token(token: str) -> bytes:
    """Returns the bytes that the guest's init writes after the last byte of a port."""
    return b"\x1e" + token.encode()


def cpio(files: Mapping[str, bytes], folders: Sequence[str] = ()) -> bytes:
    """Returns a "newc" archive (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    parts: list[bytes] = []
    entries = [(name, 0o40755, b"") for name in folders]
    entries += [(name, 0o100755, content) for name, content in files.items()]
    entries.append(("TRAILER!!!", 0, b""))
    for number, (name, mode, content) in enumerate(entries, 1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        parts += [head, b"\0" * (-len(head) % 4), content, b"\0" * (-len(content) % 4)]
    return b"".join(parts)


def base_archive(kernel: Kernel) -> bytes:
    """Returns the archive that every job of ``kernel`` shares, from the cache if it is there.

    Raises KernelError without busybox, or if the cache cannot be written.
    """
    busybox = _busybox()
    status = busybox.stat()
    digest = hashlib.sha256(f"{INIT}|{BOOT_MODULES}|{status.st_size}|{status.st_mtime_ns}".encode())
    cached = kernel.root / f"vm-{digest.hexdigest()[:16]}.cpio"
    try:
        return cached.read_bytes()
    except FileNotFoundError:
        pass
    modules = _boot_modules(kernel)
    files = {"init": INIT.encode(), "bin/busybox": busybox.read_bytes()}
    files["modules/order"] = "".join(f"{name}\n" for name in modules).encode()
    files.update({f"modules/{name}": content for name, content in modules.items()})
    folders = ("bin", "modules", "job", "proc", "sys", "dev", "host", "ram")
    archive = cpio(files, folders)
    try:
        for old in kernel.root.glob("vm-*.cpio"):
            old.unlink()
        fresh = cached.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(archive)
        fresh.rename(cached)
    except OSError as error:
        raise KernelError(f"cannot write the initramfs {cached}: {error}") from error
    return archive


def _busybox() -> Path:
    for path in (shutil.which("busybox"), "/bin/busybox", "/usr/bin/busybox"):
        if path and Path(path).exists():
            return Path(path)
    raise KernelError("the VM needs busybox: apt-get install busybox-static")


def _boot_modules(kernel: Kernel) -> dict[str, bytes]:
    """Returns file name → content in load order, without modules built into the kernel."""
    depends: dict[str, list[str]] = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        module, _, needs = line.partition(":")
        depends[module] = needs.split()
    by_name = {Path(file).name.split(".")[0].replace("-", "_"): file for file in depends}
    modules: dict[str, bytes] = {}
    for name in BOOT_MODULES:
        path = by_name.get(name)
        if path is None:
            continue
        # modules.dep lists all dependencies, the nearest first.
        for needed in [*reversed(depends[path]), path]:
            short = Path(needed).name.split(".ko")[0] + ".ko"
            if short not in modules:
                modules[short] = _read_module(kernel.modules / needed)
    return modules


def _read_module(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".zst":
        return subprocess.run(
            ["zstd", "-dcq"], input=content, capture_output=True, check=True
        ).stdout
    return content


def job_archive(
    kernel: Kernel,
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    share: Path | None,
    token: str,
    terminal: tuple[int, int] | None,
) -> bytes:
    """Returns the archive of one VM's job: the command, its settings and start script.

    ``terminal`` is the size (rows, columns) of the command's terminal; without
    one its stdin is ``/dev/null``.
    """
    settings = {
        "RELEASE": kernel.release,
        "MODULES": str(kernel.modules),
        "SHARE": str(share) if share else "",
        "TOKEN": token,
        "TERMINAL": "rows {} cols {}".format(*terminal) if terminal else "",
    }
    variables = {"PATH": PATH, "HOME": "/run/ipttrace/home", "USER": "root", **environment}
    assignments = " ".join(shlex.quote(f"{key}={value}") for key, value in variables.items())
    run = f"cd {shlex.quote(str(cwd))} || exit 126\nulimit -n 65536\n"
    # By path: busybox's shell prefers its own applets to programs of the same name.
    run += f"exec /usr/bin/env -i {assignments} {shlex.join(command)}\n"
    files = {
        "job/settings": "".join(f"{key}={shlex.quote(text)}\n" for key, text in settings.items()),
        "job/start": START,
        "job/command": run,
    }
    return cpio({name: os.fsencode(text) for name, text in files.items()}, ("job",))
