"""Every refusal that Taskpass gives, as one tree.

    TaskpassError
    ├── Malformed                 400  invalid_request
    │   ├── UnsupportedGrant      400  unsupported_grant_type
    │   ├── InvalidTarget         400  invalid_target
    │   ├── InvalidScope          400  invalid_scope
    │   └── InvalidDetails        400  invalid_authorization_details
    ├── NotAuthenticated          401  invalid_client
    ├── InvalidGrant              400  invalid_grant
    ├── UnauthorizedClient        400  unauthorized_client
    ├── AccessDenied              403  access_denied   (400 at the token endpoint, RFC 6749 section 5.2)
    ├── Forbidden                 403  forbidden
    ├── NotFound                  404  not_found
    ├── Conflict                  409  conflict
    ├── ConfigurationInvalid      422  configuration_invalid
    └── Unavailable               503  temporarily_unavailable
        └── TooManyAttempts       429  temporarily_unavailable

Each error has a sentence for the caller (`str(error)`) and, apart from it, an `internal` cause that goes to the log
only. A caller learns what was wrong, the ledger's id for the decision where there is one, and what to do next.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar


class TaskpassError(Exception):
    """Base of all refusals. `str()` of it is safe to show to the caller."""

    code: ClassVar[str] = "server_error"
    status: ClassVar[int] = 500

    def __init__(
        self,
        sentence: str,
        *,
        next: str | None = None,  # noqa: A002  (the word on the wire)
        decision_id: str | None = None,
        internal: str | None = None,
        **members: Any,  # noqa: ANN401  (extension members of the answer, JSON values)
    ) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.next = next
        self.decision_id = decision_id
        self.internal = internal
        self.members = {key: value for key, value in members.items() if value is not None}

    def body(self) -> dict[str, Any]:
        """The members that every rendering of this error shares, beside its code and sentence."""
        body = dict(self.members)
        if self.decision_id is not None:
            body["decision_id"] = self.decision_id
        if self.next is not None:
            body["next"] = self.next
        return body


class Malformed(TaskpassError):
    """The request itself is wrong: missing, repeated, unparsable or oversized parts."""

    code = "invalid_request"
    status = 400


class UnsupportedGrant(Malformed):
    """A `grant_type` that this server does not know."""

    code = "unsupported_grant_type"


class InvalidTarget(Malformed):
    """An unknown, forbidden or malformed `resource` (RFC 8707 section 2)."""

    code = "invalid_target"


class InvalidScope(Malformed):
    """An unknown scope, or one wider than what the agent may ever hold."""

    code = "invalid_scope"


class InvalidDetails(Malformed):
    """`authorization_details` of an unknown type or with missing, extra or mistyped members (RFC 9396 section 5)."""

    code = "invalid_authorization_details"


class NotAuthenticated(TaskpassError):
    """The caller did not prove an identity that is registered here."""

    code = "invalid_client"
    status = 401


class InvalidGrant(TaskpassError):
    """The assertion presented as the grant does not hold (RFC 7523 section 3.1)."""

    code = "invalid_grant"
    status = 400


class UnauthorizedClient(TaskpassError):
    """An authenticated agent that may not use this grant or this task."""

    code = "unauthorized_client"
    status = 400


class AccessDenied(TaskpassError):
    """Policy said never, or a human is needed, or a hold stands. `outcome` tells which."""

    code = "access_denied"
    status = 403


class Forbidden(TaskpassError):
    """An authenticated caller without the right that this act needs."""

    code = "forbidden"
    status = 403


class NotFound(TaskpassError):
    """No such thing, or not the caller's: the two are not told apart."""

    code = "not_found"
    status = 404


class Conflict(TaskpassError):
    """The thing is in a state in which this act is impossible."""

    code = "conflict"
    status = 409


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a configuration file: where, and what to do about it."""

    message: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        if self.file is None:
            return self.message
        return f"{self.file}:{self.line}: {self.message}" if self.line else f"{self.file}: {self.message}"


class ConfigurationInvalid(TaskpassError):
    """A registry, policy bundle or configuration that does not load. Names every problem, not the first."""

    code = "configuration_invalid"
    status = 422

    def __init__(self, sentence: str, *, problems: Sequence[Problem] = ()) -> None:
        self.problems = tuple(problems)
        super().__init__(sentence, problems=[str(problem) for problem in problems] or None)

    def __str__(self) -> str:
        return "\n".join([self.sentence, *(f"  {problem}" for problem in self.problems)])


class Unavailable(TaskpassError):
    """A dependency failed, so the answer is no: nothing was issued. Try again after `retry_after` seconds."""

    code = "temporarily_unavailable"
    status = 503

    def __init__(self, sentence: str, *, retry_after: int = 1, internal: str | None = None) -> None:
        super().__init__(sentence, internal=internal, next=f"Try again in {retry_after} s.")
        self.retry_after = retry_after


class TooManyAttempts(Unavailable):
    """Too many requests from this address have failed to prove an identity: it has to wait, whoever asks."""

    status = 429
