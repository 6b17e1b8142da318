"""The write-ahead log, moved into the database file by one thread of one process, so that no commit has to.

SQLite's own way is that the commit which fills the log to a thousand pages moves them all before it returns, ten times
a second under load, and everybody behind it waits. Writers keep that only as a fallback, far above what is ever
reached while a keeper runs: if the keeper's process is gone, the log still cannot grow without end.
"""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Final

from broker.ledger.sqlite_file import connect
from broker.ledger.turns import Turns, TurnTimeout

_EVERY_S: Final = 0.3
_MOVES: Final = 5  # beside the writers, before one in a turn
_TURN_TIMEOUT_S: Final = 0.2


class WalKeeper:
    """Works until it is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wal-keeper", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop, and wait for that."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        with closing(Turns(self._path, timeout_s=_TURN_TIMEOUT_S)) as turns:
            while not self._closing.wait(_EVERY_S):
                try:
                    with closing(connect(self._path, writing=True)) as connection:
                        self._keep(connection, turns)
                except (sqlite3.Error, OSError, TurnTimeout):
                    continue  # a full disk, a busy or broken store: writers meet it too, and say so

    def _keep(self, connection: sqlite3.Connection, turns: Turns) -> None:
        """Move pages as long as all goes well. Raises sqlite3.Error, TurnTimeout."""
        while True:
            # Most of it beside the writers. What they add meanwhile in a turn, so that the next begins the log anew:
            # all of them wait for that, so it is seldom enough to be none of a hundred requests' business.
            for _ in range(_MOVES):
                _move(connection)
                if self._closing.wait(_EVERY_S):
                    return
            with turns.taken(priority=False):
                _move(connection)


def _move(connection: sqlite3.Connection) -> None:
    # PASSIVE: waits for nobody. A reader of an old snapshot keeps the log from starting over, and nothing else.
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
