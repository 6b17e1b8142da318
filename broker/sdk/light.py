"""The client for tools that run once per request and then exit: the standard library's HTTP, and nothing else.

Start-up is the cost that matters there; importing an HTTP stack takes longer than the exchange itself.

    credential = light.run(protocol.obtain(issuer, Ask.of("https://invoices.example")), identity=identity)
"""

import ssl
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TypeVar
from urllib.parse import urlsplit

from broker.sdk.errors import Unavailable
from broker.sdk.identity import Identity
from broker.sdk.protocol import MAX_ANSWER, TIMEOUT_S, Assertion, Flow, Request, Response, drive

T = TypeVar("T")


def run(flow: Flow[T], *, identity: Identity) -> T:
    """Drive one of `protocol`'s flows to its end. Raises what the flow raises, and Unavailable if nobody answers."""
    return drive(flow, lambda need: identity.assertion(need.audience) if isinstance(need, Assertion) else send(need))


def send(request: Request) -> Response:
    """One exchange on a connection of its own. Redirects are answers, not instructions. Raises Unavailable."""
    url = urlsplit(request.url)
    timeout_s = TIMEOUT_S if request.timeout_s is None else request.timeout_s
    connection: HTTPConnection
    if url.scheme == "https":
        connection = HTTPSConnection(url.netloc, timeout=timeout_s, context=ssl.create_default_context())
    else:
        connection = HTTPConnection(url.netloc, timeout=timeout_s)
    try:
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        connection.request(request.method, target, body=request.body or None, headers=dict(request.headers))
        answer = connection.getresponse()
        body = answer.read(MAX_ANSWER + 1)
        headers = {name.lower(): value for name, value in answer.getheaders()}
    except (OSError, HTTPException) as error:
        raise Unavailable(f"{url.netloc} did not answer: {type(error).__name__}.") from error
    finally:
        connection.close()
    if len(body) > MAX_ANSWER:
        raise Unavailable(f"{url.netloc} sent an answer of more than {MAX_ANSWER} bytes.")
    return Response(answer.status, headers, body)
