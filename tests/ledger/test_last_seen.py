"""What a process has seen of its ledger never goes back, whichever of its threads looked last."""

from dataclasses import replace

import pytest

from broker.ledger import Head
from broker.ledger.heads import LastSeen, Seen

HEAD = Head(epoch="00000000", size=600, time=1_000, guard_version=2, floor=500)


@pytest.mark.parametrize(
    "newer", [{"size": 601}, {"time": 1_001}, {"guard_version": 3}, {"floor": 501}, {"archived": 512}]
)
def test_an_older_look_does_not_replace_a_newer_one(newer: dict[str, int]) -> None:
    before, after = (Seen(head, b"", b"") for head in (HEAD, replace(HEAD, **newer)))
    last = LastSeen(before)
    last.remember(after)
    last.remember(before)
    assert last.now is after
