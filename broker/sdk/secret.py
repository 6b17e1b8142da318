"""Secrets: credentials that live at a backend, such as a database login, a lease or a cloud key (`/v1/credentials`).

A secret belongs to whoever asked for it and is never kept here: ask once, use it, give it back. Imports nothing heavy.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

from broker.sdk.protocol import Flow, Session, call, garbled

TIMEOUT_S = 40.0
"""How long making one may take: the broker waits for the backend, and commits before and after."""


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret and what the broker says about it. `values` are its members by name; `handle` finds it at its backend.

    `ending` is `revocable` or `expires-only`; `expires` is in seconds since the epoch, `expires_at` the same as text.
    """

    id: str
    resource: str
    actions: tuple[str, ...]
    parameters: Mapping[str, Any]
    task: str | None
    issuer: str | None
    ending: str | None
    values: Mapping[str, str] = field(repr=False)
    handle: Mapping[str, str]
    expires: int
    expires_at: str
    issued_at: str | None
    decision_id: str | None
    seq: int | None
    note: str | None
    renewable: bool = False  # whether `renew_secret` can have it live longer

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> "Secret":
        """From the broker's answer. Raises Unavailable when it is none."""
        values, handle, expires_at = body.get("values"), body.get("handle", {}), body.get("expires_at")
        texts = [body.get("id"), body.get("resource"), expires_at]
        if not isinstance(values, dict) or not values or not all(isinstance(text, str) for text in texts):
            raise garbled()
        if not isinstance(handle, dict) or not all(isinstance(value, str) for value in values.values()):
            raise garbled()
        actions, parameters, seq = body.get("actions"), body.get("parameters"), body.get("seq")
        return cls(
            id=str(body["id"]),
            resource=str(body["resource"]),
            actions=tuple(str(action) for action in actions) if isinstance(actions, list) else (),
            parameters=parameters if isinstance(parameters, dict) else {},
            task=body.get("task"),
            issuer=body.get("issuer"),
            ending=body.get("ending"),
            values=values,
            handle=handle,
            expires=_seconds(str(expires_at)),
            expires_at=str(expires_at),
            issued_at=body.get("issued_at"),
            decision_id=body.get("decision_id"),
            seq=seq if isinstance(seq, int) else None,
            note=body.get("note"),
            renewable=body.get("renewable") is True,
        )


def wish(
    resource: str,
    *,
    actions: Iterable[str] = (),
    parameters: Mapping[str, Any] | None = None,
    task: str | None = None,
    ttl_s: int | None = None,
) -> dict[str, Any]:
    """The request's body. `resource` is an audience, or the resource's id."""
    asked = {"parameters": dict(parameters) if parameters else None, "task": task, "ttl_seconds": ttl_s}
    body: dict[str, Any] = {"resource": resource, "actions": list(actions)}
    return body | {name: value for name, value in asked.items() if value is not None}


def obtain_secret(issuer: str, session: Session, body: Mapping[str, Any]) -> Flow[Secret]:
    """One secret for a `wish`. Never repeated by itself: a repeat would make a second one."""
    return Secret.of((yield from call(issuer, session, "POST", "/v1/credentials", body, timeout_s=TIMEOUT_S)))


def secret_state(issuer: str, session: Session, secret_id: str) -> Flow[dict[str, Any]]:
    """What the broker knows of a secret, its values excepted: `state` is `live`, `revoking`, `revoked`, and so on."""
    return (yield from call(issuer, session, "GET", f"/v1/credentials/{quote(secret_id, safe='')}", None))


def renew_secret(issuer: str, session: Session, secret_id: str, ttl_s: int | None) -> Flow[dict[str, Any]]:
    """Have a secret live longer, within its task: `expires_at` says until when. A repeat does no harm."""
    path, body = f"/v1/credentials/{quote(secret_id, safe='')}/renew", {} if ttl_s is None else {"ttl_seconds": ttl_s}
    return (yield from call(issuer, session, "POST", path, body, timeout_s=TIMEOUT_S))


def revoke_secret(issuer: str, session: Session, secret_id: str) -> Flow[dict[str, Any]]:
    """Give a secret back early. Its state then says how far that is: `revoked` only once the backend confirmed it."""
    return (yield from call(issuer, session, "POST", f"/v1/credentials/{quote(secret_id, safe='')}/revoke", {}))


def _seconds(text: str) -> int:
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise garbled() from None
