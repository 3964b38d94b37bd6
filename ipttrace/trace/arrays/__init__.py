# SPDX-License-Identifier: GPL-2.0-only
"""What numpy lacks, for many rows at once.

hashing   keyed hashes
recent    a bounded map of integers
picking   joining and indexing arrays of records
"""
