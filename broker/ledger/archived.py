"""Archived events, as an audit comes by them: their bytes from the archive, or only the hashes that stayed."""

from typing import Any, Protocol

from broker.errors import Conflict, NotFound
from broker.ledger import Cursor
from broker.ledger.archive import Archive
from broker.ledger.merkle import TILE_WIDTH, split


class _Queries(Protocol):
    def execute(self, sql: str, params: Any = ...) -> Cursor:  # noqa: ANN401  (as a snapshot has it)
        ...


class ArchivedEvents:
    """What is known of the events below the archive's boundary. Asked in order of positions."""

    def __init__(self, queries: _Queries, archive: Archive | None) -> None:
        self._queries, self._archive = queries, archive
        self._index = -1
        self._hashes: list[bytes] = []
        self._events: list[bytes] | None = None
        self._problem = ""

    def before(self) -> int:
        """The boundary, as the head has it."""
        row = self._queries.execute("SELECT archived FROM head").fetchone()
        return int(row[0]) if row else 0

    def at(self, seq: int) -> tuple[bytes, bytes | None] | str:
        """The stored hash, and the bytes if there is an archive to read; or what is wrong."""
        index, place = divmod(seq, TILE_WIDTH)
        if index != self._index:
            self._index = index
            self._load(index)
        if self._problem:
            return self._problem
        return self._hashes[place], None if self._events is None else self._events[place]

    def _load(self, index: int) -> None:
        self._problem, self._events = "", None
        row = self._queries.execute("SELECT hashes FROM tiles WHERE level = 0 AND idx = ?", (index,)).fetchone()
        self._hashes = split(bytes(row[0])) if row and len(row[0]) % 32 == 0 else []
        if len(self._hashes) != TILE_WIDTH:
            self._problem = "archived, and its hash did not stay"
        elif self._archive is not None:
            try:
                self._events = self._archive.events(index)
            except (NotFound, Conflict) as error:
                self._problem = error.sentence
