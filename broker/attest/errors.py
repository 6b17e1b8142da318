"""How attestation ends other than with a workload."""

from collections.abc import Mapping
from typing import Any

from broker.jose.encoding import printable

PRESENTED = ("iss", "sub", "aud")
_MAX_SHOWN = 300


class AttestationFailed(Exception):
    """The token proves nothing here. `reason` is a stable machine word; the sentence says what was expected.

    `presented` is what the token claimed, unverified and cut to harmless strings, so that its sender can see what the
    broker saw. `retry_after_s` is set where the broker, not the token, is at fault: the issuer's keys are out of reach.
    """

    def __init__(
        self,
        reason: str,
        sentence: str,
        *,
        presented: Mapping[str, str] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
        self.presented = dict(presented or {})
        self.retry_after_s = retry_after_s


class KeysNeeded(Exception):
    """The key is not known yet, and asking its issuer is allowed now: `await pool.refresh(source)`, then try again."""

    def __init__(self, source: str) -> None:
        super().__init__(f"the keys of trust {source} must be fetched")
        self.source = source


def presented(claims: Mapping[str, Any]) -> dict[str, str]:
    """The identifying claims of an unverified token that are safe to show and to log."""
    shown: dict[str, str] = {}
    for name in PRESENTED:
        value = claims.get(name)
        if type(value) is list:
            value = " ".join(item for item in value[:4] if type(item) is str)
        if printable(value, limit=_MAX_SHOWN):
            shown[name] = str(value)
    return shown
