"""Events as bytes. Pure.

The bytes that were written are what is hashed, so no canonical form is needed, and nothing is ever encoded again. An
event is one JSON object that begins with its position, its ledger time and its type. JSON escapes control characters
(U+0000 to U+001F), so no caller's text can break a line of an export or smuggle an escape sequence into one.
"""

import hashlib
import secrets
from typing import Any, Final

import orjson

from broker.ledger import StoredEvent
from broker.ledger.event_types import EVENT_TYPES

LONGEST_EVENT: Final = 1024 * 1024
"""Room for what a kill must be able to name: every agent of an owner, every open task of an agent. What a request could
fill is bounded where it is read.
"""
_SALT_SIZE: Final = 16
_ENVELOPE: Final = frozenset({"seq", "t", "type"})


class EventMalformed(ValueError):
    """These bytes are not an event that `encode` could have written."""


def encode(seq: int, t: int, type: str, body: dict[str, Any]) -> bytes:  # noqa: A002
    """The bytes of an event. Raises ValueError for a type or field that is not registered, or a body too long."""
    known = EVENT_TYPES.get(type)
    if known is None:
        raise ValueError(f"{type!r} is not a registered event type")
    fields = body.keys()
    if not known.required <= fields <= known.fields:
        missing, foreign = sorted(known.required - fields), sorted(fields - known.fields)
        raise ValueError(f"{type!r} event: missing {missing}, not registered {foreign}")
    data = orjson.dumps({"seq": seq, "t": t, "type": type, **body})
    if len(data) > LONGEST_EVENT:
        raise ValueError(f"{type!r} event of {len(data)} bytes; the most is {LONGEST_EVENT}")
    return data


def parse(data: bytes) -> StoredEvent:
    """Read an event back. Raises EventMalformed.

    Types and fields are not compared with the registry: an old reader must be able to read a newer ledger.
    """
    if len(data) > LONGEST_EVENT:
        raise EventMalformed(f"{len(data)} bytes are too long for an event")
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise EventMalformed("not JSON") from error
    if not isinstance(body, dict) or not body.keys() >= _ENVELOPE:
        raise EventMalformed("not an object with seq, t and type")
    seq, t, type_ = body.pop("seq"), body.pop("t"), body.pop("type")
    # Comparing with what is written first also refuses booleans, a second `seq`, and white space.
    if not (isinstance(type_, str) and data.startswith(orjson.dumps({"seq": seq, "t": t, "type": type_})[:-1])):
        raise EventMalformed("does not begin with seq, t and type")
    if type(seq) is not int or type(t) is not int or seq < 0 or t < 0:
        raise EventMalformed("seq and t are not natural numbers")
    return StoredEvent(seq, t, type_, body, data)


def commitment(text: str) -> tuple[bytes, str]:
    """A fresh salt, and the hex digest that stands for `text` in an event.

    The text itself goes to the `texts` table under that digest, from where it can be erased: without the salt, which
    goes with it, the digest of even a guessable text tells nothing.
    """
    salt = secrets.token_bytes(_SALT_SIZE)
    return salt, commit_to(salt, text)


def commit_to(salt: bytes, text: str) -> str:
    """The hex digest of a text under a known salt."""
    return hashlib.sha256(salt + text.encode()).hexdigest()
