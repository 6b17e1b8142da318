"""AWS credentials by AssumeRoleWithWebIdentity: the broker is an OIDC provider, a session policy narrows the role.

No AWS secret is kept anywhere: AWS fetches the broker's published keys and checks the web identity token that is
signed here for each session. AWS takes no session back, so these are `expires-only`: what an operator can do is attach
to the role a policy that denies one session, or all that began before now. Every handle names its session.

The session is named after the grant, so that CloudTrail and the ledger tell of the same thing by the same id.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode
from xml.etree import ElementTree

from issuers import Ending, Found, Handle, IssuerError, Minted, Order, Standing
from issuers.http import TIMEOUT_S, Answer, Backend, retry_after

Sign = Callable[[str, str, Mapping[str, Any]], str]
"""(kid, typ, claims) -> compact JWS. An order for a secret fixes no kid: "" stands for the active key."""

AUDIENCE: Final = "sts.amazonaws.com"
TAGS_CLAIM: Final = "https://aws.amazon.com/tags"
MIN_DURATION_S: Final = 900
"""The shortest session that AWS makes."""

_MAX_DURATION_S: Final = 43_200
_ON_THE_WAY_S: Final = 60
_TOKEN_S: Final = 300
_MAX_POLICY: Final = 2_048
_ROLE: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/[\w+=,.@/-]{1,512}", re.ASCII)
_MANAGED: Final = re.compile(r"arn:aws[a-z-]*:iam::(?:[0-9]{12}|aws):policy/[\w+=,.@/-]{1,512}", re.ASCII)
_SESSION: Final = re.compile(r"[\w+=,.@-]{2,64}", re.ASCII)
_PLACE: Final = re.compile(r"(?<!\$)\{([A-Za-z_][A-Za-z0-9_]*)\}")
_FITS: Final = re.compile(r"[A-Za-z0-9._@+=,-]{1,200}")  # no wildcard, no separator of ARNs or paths, no variable
_THROTTLED: Final = frozenset({"Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException"})
_SENTENCES: Final = {
    "AccessDenied": "AWS refuses: the role does not trust this broker for this agent, or for session tags.",
    "InvalidIdentityToken": "AWS does not accept this broker's token: is it registered as an OIDC provider there?",
    "ExpiredTokenException": "AWS finds this broker's token expired: its clock and ours differ.",
    "IDPRejectedClaim": "AWS does not accept this broker's token.",
    "IDPCommunicationError": "AWS cannot fetch this broker's keys: its issuer URL must be reachable for AWS.",
    "MalformedPolicyDocument": "AWS does not understand the session policy of this resource's statements.",
    "PackedPolicyTooLarge": "The session policy and tags are too large for AWS.",
    "RegionDisabledException": "This region is disabled for the role's account.",
    "ValidationError": "AWS does not accept the request: the duration may exceed what the role allows.",
}


@dataclass(frozen=True, slots=True)
class AwsSettings:
    """What a resource says about its sessions."""

    role_arn: str
    statements: Mapping[str, tuple[Mapping[str, Any], ...]]  # action -> IAM statements
    policy_arns: tuple[str, ...] = ()
    tags: bool = False


def settings_of(mapping: Mapping[str, Any]) -> AwsSettings:
    """A resource's `settings`. Raises ValueError with a sentence."""
    unknown = mapping.keys() - {"role_arn", "statements", "policy_arns", "tags"}
    if unknown:
        raise ValueError(f"aws_sts has no setting {sorted(unknown)[0]!r}")
    role, tags, managed = mapping.get("role_arn"), mapping.get("tags", False), mapping.get("policy_arns", ())
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise ValueError("role_arn must be a role, e.g. arn:aws:iam::123456789012:role/reports")
    if not isinstance(tags, bool):
        raise ValueError("tags must be true or false")  # noqa: TRY004  (one kind of error for configuration)
    arns = isinstance(managed, list | tuple) and all(
        isinstance(arn, str) and _MANAGED.fullmatch(arn) for arn in managed
    )
    if not arns or len(managed) > 10:
        raise ValueError("policy_arns must list at most 10 managed policies")
    return AwsSettings(role, _statements(mapping.get("statements")), tuple(managed), tags)


def _statements(value: object) -> Mapping[str, tuple[Mapping[str, Any], ...]]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("statements must list, for each action, the IAM statements that it needs")
    read: dict[str, tuple[Mapping[str, Any], ...]] = {}
    for action, statements in value.items():
        listed = isinstance(statements, list | tuple) and len(statements) > 0
        if not listed or not all(isinstance(each, Mapping) and "Effect" in each for each in statements):
            raise ValueError(f"statements of {action!r} must be a list of IAM statements")
        read[action] = tuple(statements)
    return read


class AwsStsIssuer:
    """Opens one role session per grant. Safe under threads: it keeps nothing."""

    kind = "aws_sts"
    ending = Ending.EXPIRES_ONLY
    min_ttl_s = MIN_DURATION_S + _ON_THE_WAY_S  # so that no session outlives what the ledger says
    max_ttl_s = _MAX_DURATION_S

    def __init__(
        self,
        *,
        iss: str,
        sign: Sign,
        now: Callable[[], int],
        url: str = "https://sts.amazonaws.com",
        audience: str = AUDIENCE,
        ca_file: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`iss` is the broker's issuer URL, which AWS must reach; `sign` signs with a key that is published there.

        `now` is in milliseconds. `url` is better the region's own. Raises ValueError for one that is not https.
        """
        self._backend = Backend(name="AWS", url=url, ca_file=ca_file, timeout_s=timeout_s)
        self._iss = iss
        self._sign = sign
        self._now = now
        self._audience = audience

    def prepare(self, order: Order) -> Handle:
        """The role, and the name that the session will have: the grant's id."""
        settings = _settings(order)
        session_policy(order, settings)  # what cannot be granted is refused before anything is on record
        if not _SESSION.fullmatch(order.jti):
            raise IssuerError("The grant's id cannot name a session.", happened=False)
        return {"role_arn": settings.role_arn, "session": order.jti, "until": str(order.exp)}

    def issue(self, order: Order, prepared: Handle) -> Minted:
        """Assume the role, for what is left of the order's time, under a policy of the granted actions alone."""
        settings = _settings(order)
        duration = order.exp - self._now() // 1000
        if duration < MIN_DURATION_S:
            raise IssuerError(f"AWS makes no session shorter than {MIN_DURATION_S} seconds.", happened=False)
        form = {
            "Action": "AssumeRoleWithWebIdentity",
            "Version": "2011-06-15",
            "RoleArn": prepared["role_arn"],
            "RoleSessionName": prepared["session"],
            "DurationSeconds": str(min(duration, _MAX_DURATION_S)),
            "Policy": session_policy(order, settings),
            "WebIdentityToken": self._token(order, settings),
        }
        form |= {f"PolicyArns.member.{place}.arn": arn for place, arn in enumerate(settings.policy_arns, 1)}
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "text/xml"}
        answer = self._backend.send("POST", "/", headers=headers, content=urlencode(form).encode())
        if answer.status != 200:
            raise _refused(answer)
        return _minted(answer.body, prepared, subject=_subject(order))

    def revoke(self, handle: Handle) -> None:
        """Nothing takes a session back. `status` says what an operator can do."""

    def status(self, handle: Handle) -> Found:
        """By the clock: AWS has no way of asking. Live until it must have ended."""
        until = int(handle.get("expires") or handle["until"])
        if self._now() // 1000 > until + _ON_THE_WAY_S:
            return Found(Standing.GONE)
        ends = f"{datetime.fromtimestamp(until, UTC):%Y-%m-%dT%H:%M:%SZ}"
        return Found(
            Standing.LIVE,
            f"AWS takes no session back; this one ends by {ends}. Sooner: attach to {handle['role_arn']} a policy that "
            f"denies everything where aws:userid is like '*:{handle['session']}'.",
        )

    def close(self, handle: Handle) -> None:
        """Nothing was opened for the task."""

    def orphans(self) -> Iterator[Handle]:
        """None: AWS lists no sessions."""
        return iter(())

    def _token(self, order: Order, settings: AwsSettings) -> str:
        """Who asks, for AWS. `sub` begins with `agent:`, so that no access token of this broker can pass for one."""
        now = self._now() // 1000
        claims: dict[str, Any] = {
            "iss": self._iss,
            "aud": self._audience,
            "sub": _subject(order),
            "iat": now,
            "nbf": now,
            "exp": now + _TOKEN_S,
            "jti": order.jti,
        }
        if settings.tags:
            claims[TAGS_CLAIM] = {"principal_tags": {"agent": [order.agent], "task": [order.task]}}
        return self._sign(order.kid, "JWT", claims)


def session_policy(order: Order, settings: AwsSettings) -> str:
    """The session policy of the granted actions: the role's rights, cut down to it. Raises IssuerError."""
    statements: list[Any] = []
    for action, values in [
        *((action, {}) for action in order.actions),
        *((action, order.parameters) for action in order.limited),
    ]:
        if action not in settings.statements:
            raise IssuerError(f"The resource's settings give no statements for {action}.", happened=False)
        statements += [_filled(each, values) for each in settings.statements[action]]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements}, separators=(",", ":"))
    if len(policy) > _MAX_POLICY:
        raise IssuerError(f"The session policy is longer than the {_MAX_POLICY} characters of AWS.", happened=False)
    return policy


def _filled(value: Any, values: Mapping[str, Any]) -> Any:  # noqa: ANN401  (JSON)
    """The template with `{parameter}` replaced. A value that IAM would read as more than itself is refused."""
    if isinstance(value, Mapping):
        return {str(name): _filled(each, values) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_filled(each, values) for each in value]
    return _PLACE.sub(lambda place: _safe(place[1], values), value) if isinstance(value, str) else value


def _safe(name: str, values: Mapping[str, Any]) -> str:
    if name not in values:
        raise IssuerError(f"The statements of this resource need the parameter {name}.", happened=False)
    value = values[name]
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if not _FITS.fullmatch(text):
        raise IssuerError(f"The parameter {name} has a character that has a meaning in IAM.", happened=False)
    return text


def _subject(order: Order) -> str:
    return f"agent:{order.agent}"


def _settings(order: Order) -> AwsSettings:
    try:
        return settings_of(order.settings)
    except ValueError as error:
        raise IssuerError(f"The resource's settings are wrong: {error}.", happened=False) from None


def _minted(body: bytes, prepared: Handle, *, subject: str) -> Minted:
    """The session, checked to be the one that was asked for. An answer that cannot be read may still have made one."""
    try:
        result = _xml(body).find("./{*}AssumeRoleWithWebIdentityResult")
        assert result is not None
        values = {
            "access_key_id": _text(result, "Credentials/AccessKeyId"),
            "secret_access_key": _text(result, "Credentials/SecretAccessKey"),
            "session_token": _text(result, "Credentials/SessionToken"),
        }
        expires = int(datetime.fromisoformat(_text(result, "Credentials/Expiration")).timestamp())
        arn = _text(result, "AssumedRoleUser/Arn")
        assumed = _text(result, "AssumedRoleUser/AssumedRoleId")
        told = _text(result, "SubjectFromWebIdentityToken")
    except (ValueError, AssertionError, ElementTree.ParseError):
        raise IssuerError("AWS's answer was not understood.") from None
    if told != subject or not arn.endswith(f"/{prepared['session']}"):
        raise IssuerError("AWS opened another session than was asked for.")
    return Minted(values, {**prepared, "expires": str(expires), "assumed_role_id": assumed}, expires)


def _xml(body: bytes) -> ElementTree.Element:
    if b"<!" in body:  # no declarations, so no entities
        raise ValueError("a document type")
    return ElementTree.fromstring(body)  # noqa: S314  (bounded, and without declarations)


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext("./" + "/".join(f"{{*}}{name}" for name in path.split("/")))
    if not found:
        raise ValueError(path)
    return found


def _refused(answer: Answer) -> IssuerError:
    """What an error means. 3xx and 4xx had no effect; anything else may have opened a session, which nobody has."""
    try:
        code = _text(_xml(answer.body), "Error/Code")
    except (ValueError, ElementTree.ParseError):
        code = ""
    wait = retry_after(answer)
    if answer.status == 429 or code in _THROTTLED:
        return IssuerError("AWS limits our rate.", happened=False, retry_after_s=wait)
    happened = False if 300 <= answer.status < 500 else None
    sentence = _SENTENCES.get(code, f"AWS answered {answer.status}.")
    return IssuerError(sentence, happened=happened, retry_after_s=wait)
