# SPDX-License-Identifier: GPL-2.0-only
"""Tests of a firewall: packets, and what is to become of them.

    file      the YAML file: rules, network, tests
    check     an answer against what a test expects
    words     lines for people
    junit     JUnit XML

Must not make a copy.
"""
