"""Why an operator acts: asked for, one line, and short, because the ledger keeps it."""

from broker.errors import Malformed

MAX_REASON = 500


def checked_reason(reason: str) -> str:
    """The reason as the ledger keeps it. Raises Malformed."""
    text = reason.strip()
    if not text:
        raise Malformed("Say why: a reason is required, and is part of the receipt.")
    if len(text) > MAX_REASON or any(ord(char) < 32 for char in text):
        raise Malformed(f"The reason must be at most {MAX_REASON} characters without control characters.")
    return text
