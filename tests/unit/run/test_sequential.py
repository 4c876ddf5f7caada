"""What a block of a text is called."""

from __future__ import annotations

from bitloss.run.sequential import part_label
from bitloss.run.steps import Part


def test_chunks_are_counted_from_1_to_the_last_one() -> None:
    assert part_label("measure a", None) == "measure a"
    assert part_label("measure a", Part(seed=0, first=0, last=16)) == "measure a, first 16 chunks"
    assert part_label("measure a", Part(seed=0, first=32, last=37)) == "measure a, chunks 33..37"
