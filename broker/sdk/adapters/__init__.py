"""The verifier in web frameworks. What they share: how a token is read from a request, how a refusal is answered."""

import re
from collections.abc import Iterable

from broker.sdk.errors import BadHeader, FeedStale, Refused, TokenMissing

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")  # RFC 6750 section 2.1


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The token in a request's raw headers (names in lower case). Raises TokenMissing or BadHeader.

    Two `Authorization` headers are refused: a proxy and this service might each look at another one.
    """
    found = [value for name, value in headers if name == b"authorization"]
    if len(found) > 1:
        raise BadHeader("The request has more than one Authorization header.")
    scheme, _, token = (found[0] if found else b"").decode("latin-1").partition(" ")
    if scheme.lower() != "bearer":
        raise TokenMissing("A bearer token is needed.")
    if not _TOKEN.fullmatch(token):
        raise BadHeader("The Authorization header is not `Bearer` and one token.")
    return token


def answer_headers(refused: Refused) -> dict[str, str]:
    """The headers that go with a refusal, in lower case."""
    headers = {"cache-control": "no-store"}
    if refused.www_authenticate is not None:
        headers["www-authenticate"] = refused.www_authenticate
    if isinstance(refused, FeedStale):
        headers["retry-after"] = str(refused.retry_after)
    return headers
