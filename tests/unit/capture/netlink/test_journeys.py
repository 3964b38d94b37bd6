# SPDX-License-Identifier: GPL-2.0-only
"""Packets of legacy tables are recognised by what they look like, and take their own flips."""

from __future__ import annotations

import numpy as np

from ipttrace.capture.netlink.attributes import Array
from ipttrace.capture.netlink.events import EVENT, LEGACY_EVENT, NFT_NET_LEN, UniqueNumbers
from ipttrace.capture.netlink.keys import packet_keys
from ipttrace.capture.netlink.legacy_journeys import LegacyJourneys
from tests.data.records import MONO
from tests.lab.fragments import datagram, piece6

PIECES = [(0, 800), (800, 1600), (1600, 2400)]


def events(dtype: np.dtype[np.void], packets: list[bytes]) -> Array:
    found = np.zeros(len(packets), dtype)
    found["time"] = MONO + np.arange(len(packets))
    for event, packet in zip(found, packets, strict=True):
        packet = packet[: event["packet"].size]
        event["packet"][: len(packet)] = np.frombuffer(packet, np.uint8)
        event["caplen"] = len(packet)
    return found


def test_of_ipv6_fragments_the_first_alone_takes_the_flip_that_names_addresses() -> None:
    whole = datagram(2400)
    for identification in range(16):  # hashes of packets have no order
        fragments = [piece6(identification, whole, *span) for span in PIECES]
        # GIVEN flips: nftables reports the first header of the first fragment, and no other
        flips = events(EVENT, [fragments[0][:NFT_NET_LEN], b"", b""])
        flips["iif"], flips["journey"] = 2, [101, 102, 103]
        seen = events(LEGACY_EVENT, fragments)
        seen["last"] = True
        # WHEN a legacy table saw all of them
        journeys = LegacyJourneys(UniqueNumbers(1000), lambda packets, _: packets[:, 0] > 0)
        found = journeys.assign(
            seen,
            packet_keys(seen["packet"], seen["caplen"]),
            flips,
            packet_keys(flips["packet"], flips["caplen"]),
        )
        # THEN only the first has the flip's journey, and each has one of its own
        numbers = found["journey"][np.argsort(found["time"])].tolist()
        assert numbers[0] == 101
        assert len(set(numbers)) == 3
        assert min(numbers[1:]) >= 1000
