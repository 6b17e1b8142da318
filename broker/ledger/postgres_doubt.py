"""A transaction whose COMMIT was sent and not answered: PostgreSQL remembers what became of it, and is asked."""

from collections.abc import Sequence
from typing import NamedTuple

from broker.ledger import Command
from broker.ledger.heads import Stored, leaf_at
from broker.ledger.postgres_link import Link
from broker.ledger.transaction import Outcome


class Turn(NamedTuple):
    """A write transaction that holds the head row."""

    stored: Stored
    now: int  # the database's clock, ms
    transaction: str  # its id, by which the outcome can be asked for
    backend: int


class Doubt(NamedTuple):
    """A transaction whose COMMIT was sent, and not answered."""

    turn: Turn
    outcome: Outcome
    commands: Sequence[Command]

    def unheard(self) -> list[Command]:
        """What its commands want written if it is committed after all."""
        asked = [
            (getattr(command, "unheard", None), result)
            for command, result in zip(self.commands, self.outcome.results, strict=True)
        ]
        return [due for ask, result in asked if ask is not None and (due := ask(result)) is not None]


def state_of(link: Link, doubt: Doubt) -> str:
    """What became of a transaction: committed, aborted, or in progress; then it is ended, which settles it."""
    turn, staged = doubt.turn, doubt.outcome.staged
    (state,) = link.execute("SELECT pg_xact_status(CAST(? AS xid8))", (turn.transaction,)).fetchone()
    if state == "in progress":
        link.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid = ? AND backend_xid = CAST(CAST(? AS xid8) AS xid)",
            (turn.backend, turn.transaction),
        )
    elif state == "committed" and staged and leaf_at(link, staged[-1][0]) != staged[-1][2]:
        return "aborted"  # another server's transaction of that number: ours was lost with the server that had it
    return str(state)
