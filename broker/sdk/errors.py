"""Every way in which the SDK says no: one tree for services that check tokens, one for agents that ask for them.

SdkError
├── Refused                    a service refuses this request (`verifier`, `adapters`)
│   ├── TokenMissing      401  no error code (RFC 6750 section 3.1)
│   ├── BadHeader         400  invalid_request
│   ├── InvalidToken      401  invalid_token
│   │   └── TokenKilled   401  invalid_token, names the kill
│   ├── InsufficientScope 403  insufficient_scope
│   └── FeedStale         503  temporarily_unavailable
└── BrokerError                the broker refuses this agent (`client`)
    ├── Denied                 access_denied
    │   ├── ApprovalNeeded     a human has to answer first
    │   ├── Never              policy: not by an agent on its own
    │   └── Held               an operator stopped this agent, resource or owner
    ├── InvalidRequest         wrong, and wrong again when repeated
    │   ├── NotFound           no such thing, or not yours
    │   └── TaskOver           the task ended, expired or was killed
    ├── NotAuthenticated       no identity, or not one that is registered
    └── Unavailable            nothing was decided; ask again after `retry_after` seconds
"""

from typing import Any, ClassVar


class SdkError(Exception):
    """Base of everything that the SDK raises on purpose. `str()` of it is safe to show and holds no secret."""


# --- For services -----------------------------------------------------------------------------------------------------


class Refused(SdkError):
    """A request that must not be served. `reason` is one fixed sentence; `www_authenticate` is the header to answer."""

    status: ClassVar[int] = 401
    code: ClassVar[str | None] = None

    def __init__(self, reason: str, *, scopes: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.scopes = scopes
        self.resource_metadata: str | None = None  # filled by the verifier that knows it

    @property
    def www_authenticate(self) -> str | None:
        """The `WWW-Authenticate` value (RFC 6750 section 3, RFC 9728 section 5.1); None where no challenge helps."""
        parts = [] if self.code is None else [("error", self.code), ("error_description", self.reason)]
        if self.scopes:
            parts.append(("scope", " ".join(self.scopes)))
        if self.resource_metadata is not None:
            parts.append(("resource_metadata", self.resource_metadata))
        return " ".join(["Bearer", ", ".join(f'{name}="{_quoted(value)}"' for name, value in parts)]).rstrip()


class TokenMissing(Refused):
    """No credential came with the request."""


class BadHeader(Refused):
    """More than one `Authorization` header, or one that is not `Bearer <token>`."""

    status = 400
    code = "invalid_request"


class InvalidToken(Refused):
    """Malformed, expired, wrongly addressed or signed, or dead: this token will never be accepted here."""

    code = "invalid_token"


class TokenKilled(InvalidToken):
    """The token was good until a kill covered it; `kill_id` resolves at the broker."""

    def __init__(self, reason: str, *, kill_id: str) -> None:
        super().__init__(reason)
        self.kill_id = kill_id


class InsufficientScope(Refused):
    """A good token that does not reach this far. `scopes` are all that the operation needs, in one challenge."""

    status = 403
    code = "insufficient_scope"


class FeedStale(Refused):
    """A strict verifier has not heard from the broker within its bound, so it cannot know what was killed."""

    status = 503
    code = "temporarily_unavailable"
    retry_after: ClassVar[int] = 1

    @property
    def www_authenticate(self) -> str | None:
        """None: another token would not help."""
        return None


# --- For agents -------------------------------------------------------------------------------------------------------


class BrokerError(SdkError):
    """The broker's refusal: its `code`, what to do `next`, and the `decision_id` that `taskpass explain` resolves.

    `status` is the HTTP status, None when the refusal was found without asking the broker.
    """

    def __init__(
        self,
        sentence: str,
        *,
        code: str,
        status: int | None = None,
        decision_id: str | None = None,
        next: str | None = None,  # noqa: A002  (the word on the wire)
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.status = status
        self.decision_id = decision_id
        self.next = next


class Denied(BrokerError):
    """Understood, and the answer is no. `policies` are the ids of the policies that decided."""

    def __init__(self, sentence: str, *, policies: tuple[str, ...] = (), **known: Any) -> None:  # noqa: ANN401
        super().__init__(sentence, **known)
        self.policies = policies


class ApprovalNeeded(Denied):
    """A human decides. `approval` has `id`, `approvers` and `link`; ask again once it is approved."""

    def __init__(self, sentence: str, *, approval: dict[str, Any], **known: Any) -> None:  # noqa: ANN401
        super().__init__(sentence, **known)
        self.approval = approval


class Never(Denied):
    """Policy says that no agent does this on its own. Asking again gives the same answer."""


class Held(Denied):
    """A hold stands on the agent, resource or owner. Only an operator lifts it."""


class InvalidRequest(BrokerError):
    """The request is wrong: unknown resource or scope, malformed details, a task that is not this agent's."""


class NotFound(InvalidRequest):
    """No such thing, or not the caller's."""


class TaskOver(InvalidRequest):
    """The task ended, expired or was killed: nothing more is issued under it."""


class NotAuthenticated(BrokerError):
    """There is no identity to show, or the broker does not know the one that was shown."""


class Unavailable(BrokerError):
    """The broker did not answer, or cannot decide now. Nothing was issued."""

    def __init__(self, sentence: str, *, retry_after: int = 1, **known: Any) -> None:  # noqa: ANN401
        known.setdefault("code", "temporarily_unavailable")
        super().__init__(sentence, **known)
        self.retry_after = retry_after


def _quoted(value: str) -> str:
    return "".join(c for c in value if " " <= c <= "~").replace("\\", "\\\\").replace('"', '\\"')
