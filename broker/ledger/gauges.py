"""What metrics ask of the projections: counts, each by an index or of a bounded number of rows."""

from dataclasses import dataclass

from broker.ledger import Reader

_LOOKED_AT = 1_000
_COUNTS = (
    "SELECT (SELECT COUNT(*) FROM holds WHERE lifted_seq IS NULL),"
    " (SELECT COUNT(*) FROM tasks WHERE state = 'active'),"
    " (SELECT COUNT(*) FROM approvals WHERE state = 'pending')"
)
_MISSING = (
    "SELECT COUNT(DISTINCT seq), COUNT(*) FROM kill_expected WHERE acked_ms IS NULL AND seq >= "
    "(SELECT MIN(seq) FROM (SELECT seq, at FROM kills ORDER BY seq DESC LIMIT ?) AS newest WHERE at >= ?)"
)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many of what, in one snapshot. `kills` are those that miss `acknowledgements`."""

    holds: int
    tasks: int
    approvals: int
    kills: int
    acknowledgements: int


def counts(r: Reader, *, kills_since: int) -> Counts:
    """Count; of kills, the newest thousand at most, and none before ledger time `kills_since` (ms)."""
    standing = r.execute(_COUNTS).fetchone()
    missing = r.execute(_MISSING, (_LOOKED_AT, kills_since)).fetchone()
    return Counts(*standing, *missing)
