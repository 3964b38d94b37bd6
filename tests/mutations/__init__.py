# SPDX-License-Identifier: GPL-2.0-only
"""Puts faults back into the sources, and reports which of them the VM tests notice.

``python -m tests.mutations [NAME ...]``, for docs/kernel-tests.md, where the names are.

- ``__main__``: the command; a line for each fault
- ``fault``: what a fault is, and how it is put back
- ``faults``: the table of all faults
- ``checkout``: temporary copies of the project, never the checkout itself, get the faults
- ``guest``: builds the module of such a copy, and runs one of its tests in the lab VM
- ``outcomes``: in the guest: a plugin of pytest that writes down what each test does
- ``verdict``: whether a test failed, judged by what was written down
"""
