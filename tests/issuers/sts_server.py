"""The part of AWS STS that web identities need: it fetches the provider's published keys and answers XML."""

import json
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs
from urllib.request import urlopen
from xml.sax.saxutils import escape

import jwt

from tests.issuers.api_server import ApiServer, Asked, Now, Reply

NAMESPACE = "https://sts.amazonaws.com/doc/2011-06-15/"
ROLE = "arn:aws:iam::123456789012:role/taskpass/reports"


def over_http(url: str) -> bytes:
    with urlopen(url, timeout=5) as answer:
        return bytes(answer.read())


class StsServer(ApiServer):
    """One OIDC provider and one role. `trusts` is the condition on `sub` in the role's trust policy."""

    def __init__(self, *, issuer: str, now: Now, fetch: Callable[[str], bytes] = over_http) -> None:
        super().__init__()
        self.issuer, self._now, self._fetch = issuer, now, fetch
        self.audiences = {"sts.amazonaws.com"}
        self.trusts = {"agent:reporter"}
        self.max_duration = 3600
        self.sessions: list[dict[str, Any]] = []

    def act(self, asked: Asked) -> Reply:
        form = {name: values[0] for name, values in parse_qs(asked.body.decode(), strict_parsing=True).items()}
        if form["Action"] == "GetCallerIdentity":
            return self._who(asked)
        if (asked.method, form["Action"], form["Version"]) != ("POST", "AssumeRoleWithWebIdentity", "2011-06-15"):
            return error(400, "InvalidAction", "Could not find operation")
        refusal, claims = self._claims(form["WebIdentityToken"])
        if refusal is not None:
            return refusal
        if form["RoleArn"] != ROLE or claims["sub"] not in self.trusts:
            return error(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
        duration = int(form.get("DurationSeconds", 3600))
        if not 900 <= duration <= self.max_duration or not re.fullmatch(r"[\w+=,.@-]{2,64}", form["RoleSessionName"]):
            return error(400, "ValidationError", "The requested DurationSeconds exceeds the MaxSessionDuration")
        policy = form.get("Policy")
        if policy is not None and (len(policy) > 2048 or "Statement" not in json.loads(policy)):
            return error(400, "MalformedPolicyDocument", "This policy contains invalid Json")
        return self._open(form, claims, duration)

    def _who(self, asked: Asked) -> Reply:
        key = re.search(r"Credential=([A-Z0-9]+)/", asked.headers.get("authorization", ""))
        for session in self.sessions:
            same = key and (key[1], asked.headers.get("x-amz-security-token"))
            if same == (session["AccessKeyId"], session["SessionToken"]) and session["exp"] > self._now() / 1000:
                return _xml(200, f'<GetCallerIdentityResponse xmlns="{NAMESPACE}"/>')
        return error(403, "InvalidClientTokenId", "The security token included in the request is invalid")

    def _claims(self, token: str) -> tuple[Reply | None, dict[str, Any]]:
        try:
            document = json.loads(self._fetch(f"{self.issuer}/.well-known/openid-configuration"))
            assert document["issuer"] == self.issuer
            keys = jwt.PyJWKSet.from_json(self._fetch(document["jwks_uri"]).decode())
        except (OSError, ValueError, KeyError, AssertionError):
            return error(400, "IDPCommunicationError", "Unable to communicate with the identity provider"), {}
        try:
            key = keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(
                token,
                key,
                algorithms=["ES256", "RS256"],
                audience=self.audiences,
                issuer=self.issuer,
                options={
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                    "require": ["sub", "iat", "exp"],
                },
            )
        except (jwt.PyJWTError, KeyError):
            return error(400, "InvalidIdentityToken", "Couldn't retrieve verification key from your provider"), {}
        if claims["exp"] <= self._now() / 1000:
            return error(400, "ExpiredTokenException", "Token expired"), {}
        return None, claims

    def _open(self, form: dict[str, str], claims: dict[str, Any], duration: int) -> Reply:
        name = form["RoleSessionName"]
        expires = self._now() // 1000 + duration
        session = {
            "AccessKeyId": f"ASIA{secrets.token_hex(8).upper()}",
            "SecretAccessKey": secrets.token_urlsafe(30),
            "SessionToken": secrets.token_urlsafe(90),
            "Expiration": f"{datetime.fromtimestamp(expires, UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
        self.sessions.append({**session, "form": form, "claims": claims, "exp": expires})
        credentials = "".join(f"<{member}>{escape(value)}</{member}>" for member, value in session.items())
        role = ROLE.rpartition("/")[2]
        return _xml(
            200,
            f'<AssumeRoleWithWebIdentityResponse xmlns="{NAMESPACE}"><AssumeRoleWithWebIdentityResult>'
            f"<SubjectFromWebIdentityToken>{escape(claims['sub'])}</SubjectFromWebIdentityToken>"
            f"<Audience>sts.amazonaws.com</Audience><AssumedRoleUser>"
            f"<Arn>arn:aws:sts::123456789012:assumed-role/{role}/{name}</Arn>"
            f"<AssumedRoleId>AROACLKWSDQRAOEXAMPLE:{name}</AssumedRoleId></AssumedRoleUser>"
            f"<Credentials>{credentials}</Credentials><Provider>{escape(self.issuer)}</Provider>"
            f"</AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>{secrets.token_hex(8)}</RequestId>"
            f"</ResponseMetadata></AssumeRoleWithWebIdentityResponse>",
        )


def error(status: int, code: str, message: str) -> Reply:
    return _xml(
        status,
        f'<ErrorResponse xmlns="{NAMESPACE}"><Error><Type>Sender</Type><Code>{code}</Code>'
        f"<Message>{escape(message)}</Message></Error><RequestId>{secrets.token_hex(8)}</RequestId></ErrorResponse>",
    )


def _xml(status: int, text: str) -> Reply:
    return Reply(status, text.encode(), {"Content-Type": "text/xml"})
