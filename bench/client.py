"""An operator and an agent of the bench, over HTTP: keep-alive connections and nothing clever."""

import http.client
import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from bench.assertions import JWT_BEARER, assertion
from bench.site import AUDIENCE, SCOPE, Site
from broker.jose import Signer


class Refused(Exception):
    """An answer that the bench did not expect."""


class Operator:
    """The operator of the skeleton, in a session at the control process."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._connection = _connect(site.control)
        self._session, self._until = "", 0.0

    def pause(self, agent: str) -> dict[str, Any]:
        """Kill and hold; the receipt as far as it is filled."""
        return self.call("POST", f"/v1/agents/{agent}/pause", {"reason": "bench"})

    def resume(self, agent: str) -> None:
        """Let it ask again."""
        self.call("POST", f"/v1/agents/{agent}/resume", {"reason": "bench"})

    def kill(self, target: str, value: str) -> dict[str, Any]:
        """Kill without a hold."""
        return self.call("POST", "/v1/kills", {"target": target, "value": value, "reason": "bench", "hold": False})

    def receipt(self, kill_id: str, *, wait_ms: int = 3_000) -> dict[str, Any]:
        """The receipt, filled if that happens within the time."""
        return self.call("GET", f"/v1/kills/{kill_id}?wait_ms={wait_ms}")

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request in the session. Raises Refused."""
        if time.monotonic() > self._until:
            opened = _call(self._connection, "POST", "/v1/sessions", None, self._own_assertion())
            self._session, self._until = opened["session_token"], time.monotonic() + 60
        return _call(self._connection, method, path, body, self._session)

    def _own_assertion(self) -> str:
        pem = (self._site.directory / "keys" / "operator.pem").read_bytes()
        key = load_pem_private_key(pem, None)
        assert isinstance(key, EllipticCurvePrivateKey)
        now = int(time.time())
        claims = {"iss": "operator", "sub": "operator", "aud": self._site.issuer, "iat": now, "exp": now + 60}
        return Signer(private_key=key).sign("client-authentication+jwt", {**claims, "jti": f"{time.time_ns()}"})


class Tokens:
    """Gets tokens for agents, one at a time."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._connection = _connect(site.issuer)

    def get(self, agent: str) -> str:
        """One token of this agent. Raises Refused."""
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": JWT_BEARER,
            "client_assertion": assertion(agent, self._site.issuer),
            "resource": AUDIENCE,
            "scope": SCOPE,
        }
        headers = {"content-type": "application/x-www-form-urlencoded"}
        self._connection.request("POST", "/oauth2/token", urlencode(form), headers)
        token: str = _answer(self._connection)["access_token"]
        return token


def _connect(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    return http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=30)


def _call(
    connection: http.client.HTTPConnection, method: str, path: str, body: dict[str, Any] | None, bearer: str
) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {bearer}", "content-type": "application/json"}
    connection.request(method, path, json.dumps(body) if body is not None else None, headers)
    return _answer(connection)


def _answer(connection: http.client.HTTPConnection) -> dict[str, Any]:
    response = connection.getresponse()
    content = response.read()
    if response.status >= 300:
        raise Refused(f"{response.status}: {content[:300].decode('utf-8', 'replace')}")
    answer: dict[str, Any] = json.loads(content)
    return answer


def operator_key(site: Site) -> Path:
    """Where the operator's private key lies."""
    return site.directory / "keys" / "operator.pem"
