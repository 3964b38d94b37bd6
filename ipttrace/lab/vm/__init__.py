# SPDX-License-Identifier: GPL-2.0-only
"""The throwaway VM: runs one command, as root, on a kernel of the cache.

QEMU boots the kernel with an initramfs; the guest sees the host's root file
system, read-only, with an overlay in memory on top.

On two cores under TCG a command runs about 3 s after the start, 4 to 7 s if
both cores are busy.  The stream carries 110 MB/s.

- ``__main__``: ``python -m ipttrace.lab.vm [--kernel 6.1] -- COMMAND``
- ``machine``: one boot for one command; the only file that starts QEMU
- ``qemu``: QEMU's arguments
- ``tsc``: the frequency of the host's time stamp counter, for the guest's clock
- ``kvm``: decides between KVM and emulation
- ``initramfs``: what the guest boots into, and the job that it runs there
- ``channel``: a virtio-serial port's bytes, with an end of file
- ``terminal``: the user's terminal, connected to the command
- ``guard``: a script that kills QEMU when its starter dies
- ``port``: the guest's end of the stream

Must stay empty: the guest imports ``port`` and should load nothing else.
"""
