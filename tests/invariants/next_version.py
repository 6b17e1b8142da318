"""The version after this one, as far as its neighbours on a ledger can tell: one migration more, an event type that
nobody has heard of, and fields that no event had. Beside it, this program is the version before.

`python -m tests.invariants.next_version ...` is its `taskpass`; `child` installs it in a broker where the environment
says so.
"""

import os
from typing import Any

from broker.cli import main
from broker.ledger import events, postgres_schema
from broker.ledger.event_types import EVENT_TYPES, EventType
from broker.ledger.transaction import Transaction

NEXT = "INVARIANTS_NEXT_VERSION"
NOTED = "later.noted"
"""What follows every kill by this version."""
LATER = "later"
"""A field of its kills and its credentials; a table, and a column of the head."""
MIGRATION = (
    "ALTER TABLE head ADD COLUMN later TEXT NOT NULL DEFAULT 'x';\n"
    "CREATE TABLE later (seq INTEGER PRIMARY KEY, what TEXT NOT NULL) STRICT;\n"
    "CREATE INDEX later_what ON later (what);\n"
)


def version() -> int:
    """The schema's, of this program; the next version has the one after it."""
    return migrations()[-1][0]


migrations = postgres_schema.migrations  # as they are now


def install() -> None:
    """Make this process the next version's, if the environment says so."""
    if NEXT in os.environ:
        become()


def become() -> None:
    """Make this process the next version's."""
    postgres_schema.migrations = lambda: [*migrations(), (version() + 1, MIGRATION)]
    known = {
        name: EventType(name, each.meaning, each.required, each.fields | {LATER}) for name, each in EVENT_TYPES.items()
    }
    noted = EventType(NOTED, "", frozenset({"about"}), frozenset({"about"}))
    events.EVENT_TYPES = known | {NOTED: noted}  # type: ignore[assignment]
    append = Transaction.append

    def appending(self: Transaction, type: str, body: dict[str, Any]) -> int:  # noqa: A002
        if type not in ("issued", "killed"):
            return append(self, type, body)
        seq = append(self, type, {**body, LATER: ["anything"]})
        if type == "killed":
            noted = append(self, NOTED, {"about": seq})
            self.execute("INSERT INTO later (seq, what) VALUES (?, ?)", (noted, NOTED))
        return seq

    Transaction.append = appending  # type: ignore[method-assign]


if __name__ == "__main__":
    become()
    main()
