"""An access token that passed every check, as the code of a service sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from broker.jose import Claims
from broker.sdk.errors import InvalidToken

DETAIL_TYPE = "task_action"
MAX_ACTORS = 8
MAX_SEQ = 1 << 53
_NO_LIMITS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class AccessToken:
    """Who calls, on which task, and what for. Only a verifier makes one.

    `scope` are the action ids of that claim; `actions` adds those that only `authorization_details` name. Either may
    have been granted within limits, which `parameters` tells. `exp` is in seconds since the epoch, `seq` the ledger
    position.
    """

    agent: str
    task: str
    scope: frozenset[str]
    actions: frozenset[str]
    authorization_details: tuple[Mapping[str, Any], ...]
    jti: str
    seq: int
    exp: int
    claims: Mapping[str, Any] = field(repr=False)
    kid: str | None = field(repr=False)

    def parameters(self, action: str) -> Mapping[str, Any]:
        """The values that `action` was granted for (an amount, an account); empty when it was granted without limits.

        Raises KeyError when it was not granted at all.
        """
        for detail in self.authorization_details:
            if action in detail["actions"]:
                limits: Mapping[str, Any] = detail.get("parameters", _NO_LIMITS)
                return limits
        if action not in self.scope:
            raise KeyError(action)
        return _NO_LIMITS

    @classmethod
    def of(cls, verified: Claims) -> "AccessToken":
        """Read the claims that are ours alone. Raises InvalidToken for a shape that our broker never mints."""
        claims = verified.members
        task, seq, scope = claims["task"], claims["seq"], claims.get("scope", "")
        if type(task) is not str or not 0 < len(task) <= 255:
            raise InvalidToken("The claim `task` is not an id.")
        if type(seq) is not int or not 0 <= seq < MAX_SEQ:
            raise InvalidToken("The claim `seq` is not a ledger position.")
        if type(scope) is not str:
            raise InvalidToken("The claim `scope` is not a string.")
        _check_actors(claims)
        details = _details(claims.get("authorization_details", []))
        granted = [action for detail in details for action in detail["actions"]]
        if len(set(granted)) != len(granted):  # two sets of limits for one action: which one would the service obey?
            raise InvalidToken("An action occurs twice in `authorization_details`.")
        scopes = frozenset(scope.split())
        return cls(
            agent=claims["sub"],
            task=task,
            scope=scopes,
            actions=scopes.union(granted),
            authorization_details=details,
            jti=claims["jti"],
            seq=seq,
            exp=verified.expires_s,
            claims={**claims, "aud": verified.audiences[0]},
            kid=verified.header.kid,
        )


def _check_actors(claims: Mapping[str, Any]) -> None:
    """Each actor must be nameable, or a kill of that agent could not match it (RFC 8693 section 4.1)."""
    holder = claims
    for _ in range(MAX_ACTORS):
        if "act" not in holder:
            return
        holder = holder["act"]
        if type(holder) is not dict or type(holder.get("sub")) is not str or not holder["sub"]:
            raise InvalidToken("The claim `act` is not a chain of actors with a `sub` each.")
    raise InvalidToken(f"The claim `act` has more than {MAX_ACTORS} actors.")


def _details(value: object) -> tuple[Mapping[str, Any], ...]:
    if type(value) is not list or not all(type(detail) is dict for detail in value):
        raise InvalidToken("The claim `authorization_details` is not a list of objects.")
    for detail in value:
        actions, parameters = detail.get("actions"), detail.get("parameters", {})
        if detail.get("type") != DETAIL_TYPE or type(actions) is not list or type(parameters) is not dict:
            raise InvalidToken(f"The claim `authorization_details` has an entry that is no {DETAIL_TYPE}.")
        if not actions or not all(type(action) is str for action in actions):
            raise InvalidToken("The claim `authorization_details` has an entry without actions.")
    return tuple(value)
