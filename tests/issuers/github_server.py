"""The part of GitHub's API that installation tokens need, as its documentation describes it."""

import json
import re
import secrets
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tests.issuers.api_server import ApiServer, Asked, Now, Reply

LEVELS = ("read", "write", "admin")


class GitHubServer(ApiServer):
    """One app with one installation. Verifies the app's JWT, and keeps its tokens for an hour."""

    app = "Iv23liTaskpassTest"
    installation = 4242

    def __init__(self, *, key: RSAPublicKey, now: Now) -> None:
        super().__init__()
        self.key, self._now = key, now
        self.repositories = {"invoices": 1, "credits": 2, "payroll": 3}
        self.permissions = {"contents": "write", "issues": "write", "metadata": "read"}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.ever: list[str] = []
        self.suspended = False
        self.grant_more = False

    def alive(self) -> list[str]:
        """The tokens that GitHub would accept now."""
        return [token for token, made in self.tokens.items() if made["exp"] > self._now() / 1000]

    def act(self, asked: Asked) -> Reply:
        bearer = asked.headers.get("authorization", "").removeprefix("Bearer ")
        if asked.headers.get("accept") != "application/vnd.github+json" or "user-agent" not in asked.headers:
            return _said(403, "Request forbidden by administrative rules.")
        if asked.path == "/installation/token" and asked.method == "DELETE":
            if bearer not in self.alive():
                return _said(401, "Bad credentials")
            del self.tokens[bearer]
            return Reply(204)
        if asked.path.startswith("/installation/repositories") and asked.method == "GET":
            if bearer not in self.alive():
                return _said(401, "Bad credentials")
            names = self.tokens[bearer]["repositories"]
            return _json(200, {"total_count": len(names), "repositories": [{"name": name} for name in names]})
        looked = re.fullmatch(r"/app/installations/(\d+)", asked.path)
        if looked and asked.method == "GET":
            return self._describe(bearer, int(looked[1]))
        made = re.fullmatch(r"/app/installations/(\d+)/access_tokens", asked.path)
        if made and asked.method == "POST":
            return self._mint(bearer, int(made[1]), json.loads(asked.body or b"{}"))
        return _said(404, "Not Found")

    def _describe(self, bearer: str, installation: int) -> Reply:
        refusal = self._jwt_problem(bearer)
        if refusal is not None:
            return _said(401, refusal)
        if installation != self.installation:
            return _said(404, "Not Found")
        suspended = "2026-09-01T00:00:00Z" if self.suspended else None
        return _json(200, {"id": installation, "permissions": self.permissions, "suspended_at": suspended})

    def _mint(self, bearer: str, installation: int, wanted: dict[str, Any]) -> Reply:
        refusal = self._jwt_problem(bearer)
        if refusal is not None:
            return _said(401, refusal)
        if installation != self.installation:
            return _said(404, "Not Found")
        if self.suspended:
            return _said(403, "This installation has been suspended")
        names = wanted.get("repositories")
        if names is not None and not set(names) <= self.repositories.keys():
            return _said(422, "There is at least one repository that does not exist or is not accessible")
        permissions = wanted.get("permissions") or self.permissions
        for name, level in permissions.items():
            if name not in self.permissions or LEVELS.index(level) > LEVELS.index(self.permissions[name]):
                return _said(422, "The permissions requested are not granted to this installation.")
        if self.grant_more:
            names, permissions = None, self.permissions
        token = f"ghs_{secrets.token_urlsafe(30)}"
        self.ever.append(token)
        reached = list(self.repositories) if names is None else names
        expires = self._now() // 1000 + 3600
        self.tokens[token] = {"exp": expires, "repositories": reached, "permissions": permissions}
        body: dict[str, Any] = {
            "token": token,
            "expires_at": f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%dT%H:%M:%SZ}",
            "permissions": {"metadata": "read", **permissions},
            "repository_selection": "all" if names is None else "selected",
        }
        if names is not None:
            body["repositories"] = [{"id": self.repositories[name], "name": name} for name in names]
        return _json(201, body)

    def _jwt_problem(self, bearer: str) -> str | None:
        try:
            claims = jwt.decode(
                bearer, self.key, algorithms=["RS256"], options={"verify_exp": False, "verify_iat": False}
            )
        except jwt.PyJWTError:
            return "A JSON web token could not be decoded"
        now = self._now() / 1000
        if claims.get("iss") != self.app:
            return "'Issuer' claim ('iss') must be an Integer or the client id"
        if claims["iat"] > now or claims["exp"] <= now:
            return "'Expiration time' claim ('exp') must be a numeric value representing the future time"
        return "'Expiration time' claim ('exp') is too far in the future" if claims["exp"] > now + 600 else None


def _json(status: int, body: object) -> Reply:
    return Reply(status, json.dumps(body).encode(), {"Content-Type": "application/json; charset=utf-8"})


def _said(status: int, message: str) -> Reply:
    return _json(
        status, {"message": message, "documentation_url": "https://docs.github.com/rest", "status": str(status)}
    )
