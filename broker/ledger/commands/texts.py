"""Personal text: the words go to an erasable side table, the event keeps a salted commitment (DESIGN 2, Bytes)."""

from broker.ledger import Tx
from broker.ledger.events import commitment


def keep_text(tx: Tx, text: str | None, ref: str) -> str | None:
    """Store `text` under `ref` and return its commitment; None where there is no text."""
    if text is None:
        return None
    salt, digest = commitment(text)
    tx.execute("INSERT INTO texts (ref, salt, text) VALUES (?, ?, ?)", (ref, salt, text))
    return digest
