# SPDX-License-Identifier: GPL-2.0-only
"""How QEMU is called for the throwaway VM.

Must not start anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ipttrace.lab.kernels import Kernel

QEMU: Final = "qemu-system-x86_64"

# tsc=reliable: the emulator's counters agree, but look as if they did not; without
# it the kernel may read the time from an emulated HPET, at microseconds a read.
# clearcpuid=112 (rep_good): the emulator is slow at string instructions; with the
# kernel's other memcpy it traced a sixth more packets.
# loglevel=4: errors and worse reach the console, a flood of TRACE lines does not;
# dmesg has everything.  An oops ends the machine, else a test would wait for ever.
KERNEL_ARGUMENTS: Final = (
    *("console=ttyS0", "loglevel=4", "panic=-1", "oops=panic", "log_buf_len=8M"),
    *("mitigations=off", "nowatchdog", "rcupdate.rcu_cpu_stall_timeout=120"),
    *("audit=0", "apparmor=0", "net.ifnames=0", "tsc=reliable", "clearcpuid=112"),
)

CPU: Final = {
    "kvm": "host",
    # Five-level page tables make every page walk of the emulator longer.
    "tcg": "max,la57=off,erms=off,fsrm=off",
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
) -> list[str]:
    """QEMU's arguments; ``initramfs`` and the values of ``ports`` are descriptors it inherits.

    A port becomes ``org.ipttrace.<name>`` in the guest, but ``console``, which
    is the serial line.

    ``one_thread``: emulate all CPUs in one thread.  With a thread for each, QEMU
    before 8.1 misses writes to code that another CPU is just translating: a
    guest that patches its code under load may run an int3 that is gone again.

    ``counted``: a nanosecond of the guest is one instruction, so that what is
    measured there is the same however busy the host is; one emulated CPU only.
    """
    if counted and (accel != "tcg" or cpus != 1):
        raise ValueError("instructions are counted with one emulated CPU only")
    threads = "single" if one_thread or counted else "multi"
    arguments = [
        *("-name", "ipttrace", "-no-user-config", "-nodefaults", "-display", "none"),
        *("-no-reboot", "-machine", "pc", "-cpu", CPU[accel]),
        *("-accel", "tcg,thread=" + threads if accel == "tcg" else accel),
        *(("-icount", "shift=0,sleep=off") if counted else ()),
        *("-smp", str(cpus), "-m", memory),
        *("-kernel", str(kernel.image), "-initrd", f"/proc/self/fd/{initramfs}"),
        *("-append", " ".join([*KERNEL_ARGUMENTS, *append])),
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
    # A comma in a QEMU option is written twice.
    quoted = str(path).replace(",", ",,")
    return [
        *("-fsdev", f"local,id={tag},path={quoted},security_model=none,{options}"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]
