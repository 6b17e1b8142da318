"""Identifiers are ledger addresses: what a thing is, in which epoch of the ledger, at which position it began."""

import re
from dataclasses import dataclass

_ID = re.compile(r"([a-z]{3})_([0-9a-f]{8})_(0|[1-9][0-9]{0,17})")
_LONGEST = 3 + 1 + 8 + 1 + 18


@dataclass(frozen=True, slots=True)
class Address:
    """Where an identifier points: the event at `seq`, if `epoch` is this ledger's."""

    kind: str
    epoch: str
    seq: int


def make_id(kind: str, epoch: str, seq: int) -> str:
    """The identifier of the `kind` (three letters: tsk, grt, dec, kil, hld, apr, ...) that began at `seq`."""
    return f"{kind}_{epoch}_{seq}"


def parse_id(text: str, *, kind: str | None = None) -> Address:
    """Read an identifier, of this `kind` if one is named. Raises ValueError for anything that `make_id` cannot make."""
    match = _ID.fullmatch(text) if len(text) <= _LONGEST else None
    if match is None or (kind is not None and match[1] != kind):
        raise ValueError(f"not {'an' if kind is None else 'a ' + kind} identifier: {text[:_LONGEST]!r}")
    return Address(match[1], match[2], int(match[3]))
