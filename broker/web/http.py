"""What every route shares: bounded strict bodies, and errors rendered in one place.

RFC 6749 section 5.2 at the OAuth endpoints, RFC 9457 problem details elsewhere; anything unforeseen is a 500 that says
nothing, with its cause in the log under the same request id.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import unquote_plus

import orjson
import structlog
from fastapi import Request
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.responses import Response
from starlette.types import Message, Send

from broker import jose
from broker.errors import Malformed, NotAuthenticated, TaskpassError, Unavailable
from broker.telemetry.tracing import entered

log = structlog.get_logger(__name__)

_MAX_FIELDS = 32
_REPEATED = 100
NO_STORE = {"cache-control": "no-store"}
REQUEST_ID = b"x-request-id"

Model = TypeVar("Model", bound=BaseModel)


class Body(BaseModel):
    """A JSON request body: every member named, nothing else accepted, no conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def json_answer(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:  # noqa: ANN401  (JSON)
    """A JSON answer that no cache keeps."""
    return Response(orjson.dumps(body), status, {**NO_STORE, **(headers or {})}, "application/json")


def takes(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI part of a route that reads its body with `read_json`."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


async def read_body(request: Request) -> bytes:
    """The body, refused as soon as it is too long, whatever its headers promise."""
    limit: int = request.app.state.settings.max_body
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise Malformed(f"The request body is longer than {limit} bytes.")
        parts.append(part)
    return b"".join(parts)


async def read_json(request: Request, model: type[Model]) -> Model:
    """The JSON body as `model`, strictly. An empty body is an empty object. Raises Malformed, naming the member."""
    raw = await read_body(request)
    try:
        value = jose.load_json(raw, what="request body") if raw.strip() else {}
        return model.model_validate(value)
    except jose.JoseError as error:
        raise Malformed(str(error)) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part)[:60] for part in first["loc"]) or "the body"
        raise Malformed(f"{where}: {first['msg']}.") from None


async def read_form(request: Request) -> list[tuple[str, str]]:
    """The form of an OAuth endpoint, as sent. Raises Malformed."""
    if len(request.headers.getlist("content-type")) > 1:
        raise Malformed("Content-Type is repeated.")
    return parse_form(request.headers.get("content-type"), await read_body(request))


def parse_form(content_type: str | None, body: bytes) -> list[tuple[str, str]]:
    """Pairs of an `application/x-www-form-urlencoded` body in UTF-8. Raises Malformed."""
    if (content_type or "").partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Malformed("Send the parameters as application/x-www-form-urlencoded.")
    try:
        fields = [field.partition("=") for field in body.decode("ascii").split("&")] if body else []
        if len(fields) > _MAX_FIELDS or not all(equals for _, equals, _ in fields):
            raise ValueError
        return [(_decoded(name), _decoded(value)) for name, _, value in fields]
    except ValueError:
        raise Malformed(
            "The form body cannot be read: it must be percent-encoded UTF-8 with at most 32 fields."
        ) from None


def _decoded(text: str) -> str:
    """Most of a token request is base64url: only what is encoded pays for decoding, and what is short is remembered,
    because it is the same in most requests.
    """
    if "%" not in text and "+" not in text:
        return text
    return _decoded_before(text) if len(text) <= _REPEATED else unquote_plus(text, errors="strict")


@lru_cache(maxsize=1024)
def _decoded_before(text: str) -> str:
    return unquote_plus(text, errors="strict")


def naming(request_id: str, send: Send) -> Send:
    """`send`, with the request's id in the head of its answer."""

    async def send_named(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (REQUEST_ID, request_id.encode())]}
        await send(message)

    return send_named


def oauth_error(error: TaskpassError, reference: str, *, challenge: bool = False) -> Response:
    """An error at an OAuth endpoint (RFC 6749 section 5.2). A policy's refusal is a 400 here. `reference` is the
    request's id; `challenge`: the caller tried to authenticate with a header.
    """
    _log(error, reference)
    status = 400 if error.status == 403 else error.status
    body = {"error": error.code, "error_description": _ascii(error.sentence), **error.body(), "request_id": reference}
    headers = {"pragma": "no-cache", **_headers(error)}
    if challenge and status == 401:
        headers["www-authenticate"] = "Bearer"
    return json_answer(body, status, headers)


def problem(error: TaskpassError, status: int | None = None) -> Response:
    """An error anywhere else (RFC 9457), under another status than its own if one is given."""
    reference, status = entered(), status or error.status
    _log(error, reference)
    body = {
        "type": f"urn:taskpass:error:{error.code}",
        "title": type(error).__name__,
        "status": status,
        "detail": _printable(error.sentence),
        "code": error.code,
        **error.body(),
        "request_id": reference,
    }
    headers = _headers(error)
    if isinstance(error, NotAuthenticated):
        headers["www-authenticate"] = "Bearer"
    return Response(orjson.dumps(body), status, {**NO_STORE, **headers}, "application/problem+json")


def unforeseen(exception: Exception) -> TaskpassError:
    """What a caller learns of a bug: that there was one, and its id."""
    return TaskpassError("Something went wrong in the broker. Nothing was issued.", internal=repr(exception))


def _headers(error: TaskpassError) -> dict[str, str]:
    return {"retry-after": str(error.retry_after)} if isinstance(error, Unavailable) else {}


def _log(error: TaskpassError, reference: str) -> None:
    """Log a refusal under its request's id."""
    write = log.error if error.status >= 500 else log.info
    write("refused", request_id=reference, code=error.code, decision_id=error.decision_id, internal=error.internal)


def _printable(text: str) -> str:
    """A sentence may repeat what a caller sent: nothing that steers a terminal or hides leaves with it."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _ascii(text: str) -> str:
    """`error_description` may hold printable ASCII without quotes and backslashes only (RFC 6749 section 5.2)."""
    return "".join(
        char if 32 <= ord(char) < 127 and char not in '"\\' else "'" if char == '"' else "?" for char in text
    )


def listing(items: Sequence[Any]) -> Response:
    """A list answers as a bare array: empty is `[]`."""
    return json_answer(list(items))
