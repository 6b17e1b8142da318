"""`FakeBroker`: mints what it is asked for, kills what it is told to, and remembers what it saw."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import httpx2
from cryptography.hazmat.primitives.asymmetric import ec

from broker.jose import Signer
from broker.sdk.client import AsyncClient, Client
from broker.sdk.clock import Now, wall_ms
from broker.sdk.identity import CallableIdentity, Identity
from broker.sdk.protocol import Request, Response
from broker.sdk.testkit.feed import FakeFeed
from broker.sdk.testkit.http import InProcess, asgi_app, on_loopback
from broker.sdk.verifier import Verifier
from broker.wire import FeedKill, Match

ISSUER = "https://taskpass.test"


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that the fake broker answered. `body` is the form or the JSON object."""

    method: str
    path: str
    bearer: str | None
    body: dict[str, Any]


class FakeBroker:
    """A broker under the test's control. Its one agent is called "agent" unless a token is minted for another."""

    def __init__(
        self, *, issuer: str = ISSUER, lifetime_s: int = 300, heartbeat_s: float | None = 1.0, now: Now = wall_ms
    ) -> None:
        """`heartbeat_s` None leaves all heartbeats but a connection's first to the test."""
        self.issuer = issuer
        self.lifetime_s = lifetime_s
        self._now = now
        self.feed = FakeFeed(now=now, heartbeat_s=heartbeat_s)
        self.signer = _new_signer()
        self._published = [self.signer.jwk]
        self._standing: dict[str, Response] = {}
        self._sessions: set[str] = set()
        self.tasks: dict[str, dict[str, Any]] = {}
        self.secrets: dict[str, dict[str, Any]] = {}
        self.secret_values: dict[str, dict[str, str]] = {}
        """Resource -> the members of its secrets. Others have a `username` and a new `password` each time."""
        self.requests: list[Seen] = []
        """Everything that was asked, oldest first, but the stream."""

    # --- Tokens and keys ---

    def token(
        self, *, audience: str, agent: str = "agent", task: str | None = None, scope: str = "", **claims: object
    ) -> str:
        """An access token as the broker would mint it now. `claims` add to it, replace, or with None take away."""
        seq = self.feed.next_position()
        issued = self._now() // 1000
        body = {
            "iss": self.issuer,
            "sub": agent,
            "client_id": agent,
            "aud": audience,
            "iat": issued,
            "exp": issued + self.lifetime_s,
            "jti": f"grt_{self.feed.epoch}_{seq}",
            "scope": scope,
            "task": task or f"tsk_{self.feed.epoch}_{seq}",
            "seq": seq,
        } | claims
        return self.signer.sign("at+jwt", {name: value for name, value in body.items() if value is not None})

    def rotate(self, *, withdraw: bool = False) -> None:
        """Sign with a new key from now on. The old one stays published unless `withdraw`."""
        self.signer = _new_signer()
        self._published = [self.signer.jwk] if withdraw else [*self._published, self.signer.jwk]

    # --- Kills and the feed ---

    def kill(self, *, provisional: bool = False, **selector: str) -> FeedKill:
        """Kill by `agent`, `task`, `grant`, `resource` (an audience), `key` (a kid), or `all=""`."""
        return self.feed.announce([(Match(kind), value) for kind, value in selector.items()], provisional=provisional)

    def restore(self) -> None:
        """As after restoring a backup: a new epoch, new keys, and nobody connected."""
        self.rotate(withdraw=True)
        self.feed.restore()

    async def acknowledged(self, kill: FeedKill) -> None:
        """Wait until every instance that is connected reports this kill in force. Raises TimeoutError."""
        await self.until(lambda: self._all_at(kill.seq))

    async def settled(self) -> None:
        """Wait until every instance that is connected has taken in all that was sent to it so far.

        Streams are in order, so a kill of nothing, once acknowledged, vouches for all before it.
        """
        await self.acknowledged(self.feed.announce([]))

    async def beat(self) -> None:
        """Send one heartbeat and wait until every instance that is connected has taken it in."""
        self.feed.heartbeat()
        await self.settled()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait, without polling, until something that the broker sees has come about."""
        await asyncio.to_thread(self.feed.until, condition)

    def _all_at(self, position: int) -> bool:
        cursors = (self.feed.acknowledged.get(instance) for instance in self.feed.listening)
        return all(cursor is not None and cursor.position >= position for cursor in cursors)

    # --- Answers ---

    def refuse(self, path: str, status: int, **body: Any) -> None:  # noqa: ANN401
        """Answer this path like that from now on, whatever is asked. `accept` ends it."""
        self._standing[path] = _json(status, body)

    def accept(self, path: str) -> None:
        """Answer this path normally again."""
        self._standing.pop(path, None)

    def answer(self, request: Request) -> Response:
        """Answer one request other than for the stream."""
        path = urlsplit(request.url).path
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ") or None
        body = _body(request)
        try:
            if path in self._standing:
                return self._standing[path]
            return self._route(request.method, path, bearer, body)
        finally:
            self.requests.append(Seen(request.method, path, bearer, body))
            self.feed.touch()

    def _route(self, method: str, path: str, bearer: str | None, body: dict[str, Any]) -> Response:
        match method, path.strip("/").split("/"):
            case "GET", [".well-known", *_]:
                document = {"issuer": self.issuer, "jwks_uri": f"{self.issuer}/oauth2/jwks"}
                return _json(200, document | {"taskpass_control": self.issuer})
            case "GET", ["oauth2", "jwks"]:
                return _json(200, {"keys": self._published})
            case "POST", ["oauth2", "token"]:
                return self._issue(body)
            case "GET", ["v1", "revocations"]:
                return _json(200, self.feed.snapshot())
            case "POST", ["v1", "revocations", "ack"]:
                return Response(204, {}, b"") if self.feed.acknowledge(bearer or "", body) else _problem(401, "session")
            case "POST", ["v1", "sessions"]:
                opened = self.feed.open_session()
                self._sessions.add(opened["session_token"])
                return _json(201, opened)
            case _, ["v1", "revocations", "stream"]:
                return _problem(503, "temporarily_unavailable")
        if bearer not in self._sessions and (bearer or "").count(".") != 2:  # a JWT proves the identity anew
            return _problem(401, "invalid_client")
        if path.startswith("/v1/credentials"):
            return self._credentials(method, path.strip("/").split("/"), body)
        return self._tasks(method, path.strip("/").split("/"), body)

    def _credentials(self, method: str, path: list[str], body: dict[str, Any]) -> Response:
        match method, path:
            case "POST", ["v1", "credentials"]:
                return _json(201, self._secret(body))
            case _, ["v1", "credentials", id_, *_] if id_ not in self.secrets:
                return _problem(404, "not_found")
            case "GET", ["v1", "credentials", id_]:
                return _json(200, self.secrets[id_])
            case "POST", ["v1", "credentials", id_, "renew"] if self.secrets[id_]["state"] != "live":
                return _problem(409, "conflict")
            case "POST", ["v1", "credentials", id_, "renew"]:
                lives = body.get("ttl_seconds", self.lifetime_s)
                self.secrets[id_] |= {"expires_at": _rfc3339(self._now() // 1000 + lives)}
                return _json(200, self.secrets[id_])
            case "POST", ["v1", "credentials", id_, "revoke"]:
                self.secrets[id_] |= {"state": "revoked"}
                return _json(200, self.secrets[id_])
        return _problem(404, "not_found")

    def _secret(self, body: dict[str, Any]) -> dict[str, Any]:
        seq, now_s = self.feed.next_position(), self._now() // 1000
        known = {
            "id": f"grt_{self.feed.epoch}_{seq}",
            "task": body.get("task") or f"tsk_{self.feed.epoch}_{seq}",
            "resource": body["resource"],
            "actions": body["actions"],
            "parameters": body.get("parameters", {}),
            "issuer": "fake",
            "ending": "revocable",
            "renewable": True,
            "handle": {"name": f"fake-{seq}"},
            "seq": seq,
            "decision_id": f"dec_{self.feed.epoch}_{seq}",
            "issued_at": _rfc3339(now_s),
            "expires_at": _rfc3339(now_s + body.get("ttl_seconds", self.lifetime_s)),
        }
        self.secrets[str(known["id"])] = known | {"state": "live"}
        made = {"username": f"fake-{seq}", "password": secrets.token_urlsafe(16)}
        return known | {"values": self.secret_values.get(body["resource"], made)}

    def _tasks(self, method: str, path: list[str], body: dict[str, Any]) -> Response:
        match method, path:
            case "GET", ["v1", "whoami"]:
                return _json(200, {"kind": "agent", "id": "agent"})
            case "POST", ["v1", "tasks"]:
                id_ = f"tsk_{self.feed.epoch}_{self.feed.next_position()}"
                self.tasks[id_] = {"id": id_, "state": "active", "agent": "agent"} | body
                return _json(201, self.tasks[id_])
            case "POST", ["v1", "tasks", id_, "end" | "heartbeat"] if id_ not in self.tasks:
                return _problem(404, "not_found")
            case "POST", ["v1", "tasks", id_, _] if self.tasks[id_]["state"] != "active":
                return _problem(409, "conflict")
            case "POST", ["v1", "tasks", id_, "end"]:
                self.tasks[id_] |= {"state": "ended", "outcome": body.get("outcome")}
                return _json(200, self.tasks[id_])
            case "POST", ["v1", "tasks", id_, "heartbeat"]:
                return _json(200, self.tasks[id_])
        return _problem(404, "not_found")

    def _issue(self, form: dict[str, Any]) -> Response:
        details = json.loads(form.get("authorization_details", "[]"))
        extra = {"authorization_details": details} if details else {}
        task = form.get("task") or f"tsk_{self.feed.epoch}_{self.feed.position + 1}"
        actions = [action for detail in details for action in detail["actions"]]
        scope = " ".join(sorted({*form.get("scope", "").split(), *actions}))
        token = self.token(audience=form["resource"], scope=scope, task=task, **extra)
        answer = {"access_token": token, "token_type": "Bearer", "expires_in": self.lifetime_s, "scope": scope}
        return _json(200, answer | extra | {"task": task, "decision_id": f"dec_{self.feed.epoch}_{self.feed.position}"})

    def expire_sessions(self) -> None:
        """Clients have to prove their identity again."""
        self._sessions.clear()

    # --- Ways in ---

    @property
    def identity(self) -> Identity:
        """An identity that the fake broker, which believes everybody, accepts."""
        return CallableIdentity(lambda _: "fake.identity.assertion")

    def verifier(self, *, audience: str, **settings: Any) -> Verifier:  # noqa: ANN401  (of Verifier's constructor)
        """A verifier that follows this broker, without a socket."""
        defaults = {"identity": self.identity, "http": lambda: httpx2.AsyncClient(transport=InProcess(self))}
        return Verifier(**{"issuer": self.issuer, "audience": audience, **defaults, **settings})

    def client(self, **settings: Any) -> Client:  # noqa: ANN401
        """An agent's client of this broker, without a socket."""
        http = httpx2.Client(transport=InProcess(self))
        return Client(**{"issuer": self.issuer, "identity": self.identity, "http": http, **settings})

    def async_client(self, **settings: Any) -> AsyncClient:  # noqa: ANN401
        """The same for asyncio."""
        http = httpx2.AsyncClient(transport=InProcess(self))
        return AsyncClient(**{"issuer": self.issuer, "identity": self.identity, "http": http, **settings})

    @property
    def app(self) -> Callable[..., Any]:
        """This broker as an ASGI application."""
        return asgi_app(self)

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        """Serve it on loopback while the block runs: its address becomes the issuer, and is what the block gets."""
        before = self.issuer
        with on_loopback(self) as url:
            self.issuer = url
            try:
                yield url
            finally:
                self.issuer = before


def _new_signer() -> Signer:
    return Signer(private_key=ec.generate_private_key(ec.SECP256R1()))


def _body(request: Request) -> dict[str, Any]:
    if not request.body:
        return {}
    if request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return dict(parse_qsl(request.body.decode()))
    body = json.loads(request.body)
    return body if isinstance(body, dict) else {}


def _rfc3339(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _json(status: int, body: dict[str, Any]) -> Response:
    return Response(status, {"content-type": "application/json"}, json.dumps(body).encode())


def _problem(status: int, code: str) -> Response:
    body = {"type": "about:blank", "title": code, "status": status, "detail": f"The fake broker: {code}.", "code": code}
    return _json(status, body)
