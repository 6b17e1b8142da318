"""The two encodings below every token, in their strict forms: canonical base64url, and JSON objects without surprises.

One text, one meaning: whatever two readers could understand differently is refused here, before anything else looks at
it. That is also what makes it safe to compare, cache and log what comes out.
"""

import json
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import Any, NoReturn

import orjson

from broker.jose.errors import Malformed

MAX_DEPTH = 16
_MAX_DIGITS = 19  # of a 64-bit integer; a longer one would silently become a float

_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/", b"+/!!")  # the plain alphabet's own characters must not pass


def b64encode(raw: bytes) -> bytes:
    """Base64url without padding (RFC 7515 section 2)."""
    return b2a_base64(raw, newline=False).translate(_TO_URL).rstrip(b"=")


def b64decode(text: bytes) -> bytes:
    """The bytes that `text` is the one canonical base64url form of; Malformed for any other text.

    Padding, whitespace, the plain alphabet and stray bits in the last character are all refused: they would give one
    token several spellings.
    """
    try:
        raw = a2b_base64(text.translate(_FROM_URL) + b"=="[: -len(text) % 4])
    except (Base64Error, ValueError):
        raise Malformed("A part of the token is not base64url.", reason="base64url") from None
    if b64encode(raw) != text:
        raise Malformed("A part of the token is not canonical, unpadded base64url.", reason="base64url")
    return raw


def load_object(raw: bytes, *, what: str) -> dict[str, Any]:
    """The JSON object in `raw`, as `load_json` reads it; Malformed for any other value."""
    value = load_json(raw, what=what)
    if type(value) is not dict:
        raise Malformed(f"The {what} is not a JSON object.", reason="json")
    return value


def load_json(raw: bytes, *, what: str) -> Any:  # noqa: ANN401  (a JSON value)
    """The JSON value in `raw`; Malformed, naming `what`, for anything that two parsers could read differently.

    Refused are: other encodings than UTF-8, a byte order mark, NaN and infinities, numbers beyond 64 bits, lone
    surrogates, duplicate members at any depth, and nesting deeper than 16.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise Malformed(f"The {what} is not strict JSON in UTF-8.", reason="json") from None
    if raw.count(b"{") + raw.count(b"[") > MAX_DEPTH:
        _refuse_deep(value, what)
    # What survives a round trip byte for byte has no duplicate members: the output of the serialiser cannot have any.
    # Most tokens do, and skip the slower parse that looks for them.
    if orjson.dumps(value) != raw:
        _refuse_ambiguous(raw, what)
    return value


def printable(value: object, *, limit: int) -> bool:
    """Whether `value` is an identifier: a string of 1 to `limit` characters without control or invisible ones."""
    return type(value) is str and 0 < len(value) <= limit and value.isprintable()


def _refuse_deep(value: object, what: str) -> None:
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if type(node) is dict else node)
            if type(child) in (dict, list)
        ]
        if not level:
            return
    raise Malformed(f"The {what} is nested more than {MAX_DEPTH} deep.", reason="depth")


def _refuse_ambiguous(raw: bytes, what: str) -> None:
    try:
        _STRICT.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        reason = str(error) if str(error) in _AMBIGUITIES else "json"
        raise Malformed(f"The {what} has {_AMBIGUITIES.get(reason, 'invalid JSON')}.", reason=reason) from None


_AMBIGUITIES = {"duplicate_member": "a duplicate member", "number": "a number that does not fit 64 bits"}


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate_member")
    return members


def _bounded_int(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS or not -(2**63) <= int(digits) < 2**63:
        raise ValueError("number")
    return int(digits)


def _no_constant(_: str) -> NoReturn:
    raise ValueError("number")


_STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_int=_bounded_int, parse_constant=_no_constant)
