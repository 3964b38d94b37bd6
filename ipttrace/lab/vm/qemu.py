# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's arguments for the throwaway VM.

Must not start anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ipttrace.lab.kernels import Kernel

QEMU: Final = "qemu-system-x86_64"

# tsc=reliable: the emulated counters agree, but the kernel may judge that they do
# not and read the time from an emulated HPET, which takes microseconds.
# clearcpuid=112 (rep_good): the emulator is slow at string instructions; the
# kernel's other memcpy traces a sixth more packets.
# loglevel=4: errors reach the console, floods of TRACE lines do not; dmesg has
# everything.  oops=panic: otherwise a test would wait for ever.
KERNEL_ARGUMENTS: Final = (
    *("console=ttyS0", "loglevel=4", "panic=-1", "oops=panic", "log_buf_len=8M"),
    *("mitigations=off", "nowatchdog", "rcupdate.rcu_cpu_stall_timeout=120"),
    *("audit=0", "apparmor=0", "net.ifnames=0", "tsc=reliable", "clearcpuid=112"),
)

CPU: Final = {
    "kvm": "host",
    # Five-level page tables lengthen every page walk of the emulator.  AVX it gets wrong: with
    # QEMU 7.2's AVX2, numpy's argsort returns wrong orders (tests/vm/test_emulator.py).  And it
    # is slow at it: numpy sorts five times as fast without.
    "tcg": "max,la57=off,erms=off,fsrm=off,avx=off,avx2=off",
}


def qemu_arguments(
    kernel: Kernel,
    *,
    accel: str,
    cpus: int,
    memory: str,
    append: Sequence[str],
    share: Path | None,
    initramfs: int,
    ports: Mapping[str, int],
    one_thread: bool = False,
    counted: bool = False,
    tsc_khz: int | None = None,
) -> list[str]:
    """Returns QEMU's arguments; ``initramfs`` and ``ports``' values are inherited descriptors.

    A port appears as ``org.ipttrace.<name>`` in the guest, except ``console``,
    which is the serial line.

    ``one_thread``: emulates all CPUs in one thread.  With a thread per CPU, QEMU
    before 8.1 misses writes to code that another CPU is translating: a guest
    that patches its code under load may run an int3 already removed.  So that it
    does not die while it boots, its init starts all CPUs but the first.

    ``counted``: a nanosecond in the guest is one instruction, so that
    measurements do not depend on the host's load.  Raises ValueError unless
    there is one emulated CPU.

    ``tsc_khz``: of the host's time stamp counter, if the guest should not measure it itself.
    """
    if counted and (accel != "tcg" or cpus != 1):
        raise ValueError("counting instructions needs accel='tcg' and cpus=1")
    threads = "single" if one_thread or counted else "multi"
    clock = [f"tsc_early_khz={tsc_khz}"] if tsc_khz is not None else []
    # Removing probes, programs and namespaces waits for RCU, at a quarter of a second otherwise.
    rcu = ["rcupdate.rcu_expedited=1"] if threads == "multi" else []
    # A kernel that boots on one CPU expects no second, unless it may not replace its locks.
    late = ["maxcpus=1", "noreplace-smp"] if accel == "tcg" and threads == "multi" else []
    if late and tsc_khz is not None:
        # Else each CPU measures its loops per tick (of Debian's 250 a second) for a second.
        late.append(f"lpj={tsc_khz * 1000 // 250}")
    words = [*KERNEL_ARGUMENTS, *rcu, *late, *clock, *kernel.arguments, *append]
    arguments = [
        *("-name", "ipttrace", "-no-user-config", "-nodefaults", "-display", "none"),
        *("-no-reboot", "-machine", "pc", "-cpu", CPU[accel]),
        *("-accel", "tcg,thread=" + threads if accel == "tcg" else accel),
        *(("-icount", "shift=0,sleep=off") if counted else ()),
        # Each in a socket of its own: a kernel without ACPI finds no others.
        *("-smp", f"{cpus},sockets={cpus}", "-m", memory),
        *("-kernel", str(kernel.image), "-initrd", f"/proc/self/fd/{initramfs}"),
        *("-append", " ".join(words)),
        *_file_system("root", Path("/"), "readonly=on,multidevs=remap"),
        *("-device", "virtio-serial-pci,max_ports=8"),
    ]
    if share:
        arguments += _file_system("share", share, "readonly=off,multidevs=remap")
    for name, number in ports.items():
        arguments += ["-chardev", f"socket,id={name},fd={number}"]
        if name == "console":
            arguments += ["-serial", f"chardev:{name}"]
        else:
            port = f"virtserialport,chardev={name},name=org.ipttrace.{name}"
            arguments += ["-device", port]
    return arguments


def _file_system(tag: str, path: Path, options: str) -> list[str]:
    # QEMU's escape for a comma in an option is a second comma.
    quoted = str(path).replace(",", ",,")
    return [
        *("-fsdev", f"local,id={tag},path={quoted},security_model=none,{options}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]
