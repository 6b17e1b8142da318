"""Where a workload's proof of identity comes from. Each source answers one question: an assertion for this audience.

Sources that read a file, a variable or a CI service hand on what a platform signed for this workload. `KeyIdentity` is
for workloads whose public key is registered with the broker (`private_key_jwt`).
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from broker.sdk.clock import Now, wall_ms
from broker.sdk.errors import NotAuthenticated, Unavailable
from broker.sdk.protocol import Request, Response

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from broker.jose import Signer

ASSERTION_LIFE_S = 60
MAX_ASSERTION = 16 * 1024


def fresh_jti(now_ms: int) -> str:
    """An id that no other has, in the order of time: brokers keep spent ones in order, and find neighbours cheaper."""
    return f"{now_ms:012x}{secrets.token_hex(10)}"


class Identity(Protocol):
    """One source of assertions. May block on a file or the network; raises NotAuthenticated when it has none."""

    def assertion(self, audience: str) -> str:
        """A JWT that says what this workload is, to `audience` alone where the source can choose that."""
        ...


class KeyIdentity:
    """A registered ES256 key: signs a fresh single-use assertion each time (RFC 7523, `aud` is the issuer alone)."""

    def __init__(
        self,
        *,
        client_id: str,
        key: "str | Path | EllipticCurvePrivateKey",
        kid: str | None = None,
        now: Now = wall_ms,
    ) -> None:
        """`key` is a PEM file's path or a loaded private key; `kid` defaults to the key's thumbprint."""
        self._client_id = client_id
        self._key = key
        self._kid = kid
        self._now = now
        self._signer: Signer | None = None

    def assertion(self, audience: str) -> str:
        """Signed now, good for `ASSERTION_LIFE_S` seconds."""
        if self._signer is None:
            self._signer = _signer(self._key, self._kid)
        issued = self._now() // 1000
        return self._signer.sign(
            "client-authentication+jwt",
            {
                "iss": self._client_id,
                "sub": self._client_id,
                "aud": audience,
                "jti": fresh_jti(self._now()),
                "iat": issued,
                "exp": issued + ASSERTION_LIFE_S,
            },
        )


class FileIdentity:
    """A token that the platform keeps in a file (projected service-account token, JWT-SVID). Read anew each time."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def assertion(self, audience: str) -> str:  # noqa: ARG002  (the platform chose it when it wrote the file)
        """What the file holds now."""
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_ASSERTION + 1)
        except OSError as error:
            raise NotAuthenticated(f"No identity in {self._path}: {error.strerror}.", code="no_identity") from error
        return _compact(content, str(self._path))


class EnvIdentity:
    """A token in an environment variable, as CI systems leave it. Read anew each time."""

    def __init__(self, name: str, *, environ: Mapping[str, str] = os.environ) -> None:
        self._name = name
        self._environ = environ

    def assertion(self, audience: str) -> str:  # noqa: ARG002  (whoever set the variable chose it)
        """What the variable holds now."""
        return _compact(self._environ.get(self._name, "").encode(errors="replace"), f"${self._name}")


class GitHubIdentity:
    """A GitHub Actions job (with `permissions: id-token: write`): asks its runner for a fresh token each time."""

    def __init__(
        self,
        *,
        environ: Mapping[str, str] = os.environ,
        send: Callable[[Request], Response] | None = None,
    ) -> None:
        """`send` does the one HTTP exchange; by default the standard library's client."""
        self._environ = environ
        self._send = send

    def assertion(self, audience: str) -> str:
        """A token of this job for `audience`."""
        url = self._environ.get("ACTIONS_ID_TOKEN_REQUEST_URL")
        bearer = self._environ.get("ACTIONS_ID_TOKEN_REQUEST_TOKEN")
        if not url or not bearer:
            raise NotAuthenticated(
                "This job cannot ask GitHub for an identity.",
                code="no_identity",
                next="Give the workflow `permissions: id-token: write`.",
            )
        if self._send is None:
            from broker.sdk import light  # it imports this module

            self._send = light.send
        request = Request("GET", f"{url}&audience={quote(audience, safe='')}", {"Authorization": f"Bearer {bearer}"})
        response = self._send(request)
        try:
            token = json.loads(response.body)["value"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise Unavailable(f"GitHub's token service answered {response.status} without a token.") from error
        return _compact(str(token).encode(), "GitHub's token service")


class CallableIdentity:
    """Any function from an audience to an assertion."""

    def __init__(self, function: Callable[[str], str]) -> None:
        self._function = function

    def assertion(self, audience: str) -> str:
        """What the function returns."""
        return _compact(self._function(audience).encode(), "the identity function")


def _compact(content: bytes, where: str) -> str:
    """The token in `content`. Only its shape is looked at: the broker judges the rest."""
    token = content.strip()
    if not token:
        raise NotAuthenticated(f"No identity in {where}.", code="no_identity")
    if len(token) > MAX_ASSERTION or token.count(b".") != 2 or not token.isascii() or len(token.split()) != 1:
        raise NotAuthenticated(f"What is in {where} is not a JWT.", code="no_identity")
    return token.decode("ascii")


def _signer(key: "str | Path | EllipticCurvePrivateKey", kid: str | None) -> "Signer":
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey  # only who signs pays for them
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from broker.jose import Signer

    if isinstance(key, str | Path):
        try:
            key = load_pem_private_key(Path(key).read_bytes(), password=None)  # type: ignore[assignment]
        except OSError as error:
            raise NotAuthenticated(f"No key in {key}: {error.strerror}.", code="no_identity") from error
        except (ValueError, TypeError) as error:
            raise NotAuthenticated(f"{key} holds no private key in plain PEM.", code="no_identity") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise NotAuthenticated("The identity's key is not an elliptic curve key.", code="no_identity")
    try:
        return Signer(private_key=key, kid=kid)
    except ValueError as error:
        raise NotAuthenticated("The identity's key is not on P-256.", code="no_identity") from error
