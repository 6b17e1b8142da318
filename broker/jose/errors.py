"""Why a token or a key was refused.

    JoseError
    ├── Malformed       not a compact JWS in its one strict form
    ├── HeaderRefused   a header member, `typ` or `alg` that this kind of token may not have
    ├── UnknownKey      no key of the issuer has this `kid`
    ├── BadSignature    the signature does not verify
    ├── ClaimRefused    a claim is missing, mistyped, or not what was expected
    └── KeyRefused      a JWK or a JWKS that must not be trusted
        └── KeyNotUsable    a sound key that serves another purpose: skipped in a set

Each error has a stable machine `reason` (snake case, safe as a metric label) and a sentence that is safe to show: it
never holds a token, a signature or key material.
"""

from typing import ClassVar


class JoseError(Exception):
    """Base of all refusals of this package. `str()` of it is the sentence."""

    default_reason: ClassVar[str] = "refused"

    def __init__(self, sentence: str, *, reason: str | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.reason = reason or self.default_reason


class Malformed(JoseError):
    """The text is not a compact JWS with two strict JSON objects in canonical base64url."""

    default_reason = "malformed"


class HeaderRefused(JoseError):
    """The protected header has a member, a `typ` or an `alg` that this kind of token may not have."""

    default_reason = "header"


class UnknownKey(JoseError):
    """The issuer has no key with this `kid`. The only refusal that may be cured by fetching the keys again."""

    default_reason = "unknown_key"


class BadSignature(JoseError):
    """The signature is not one that the key made over these bytes."""

    default_reason = "signature"


class ClaimRefused(JoseError):
    """A claim is missing, has the wrong type, or is not what was expected. `claim` names it."""

    default_reason = "claim"

    def __init__(self, sentence: str, *, claim: str, reason: str | None = None) -> None:
        super().__init__(sentence, reason=reason)
        self.claim = claim


class KeyRefused(JoseError):
    """A JWK or JWKS that must not be trusted: weak, ambiguous, symmetric, private or malformed."""

    default_reason = "key"


class KeyNotUsable(KeyRefused):
    """A sound public key for something else: encryption, another algorithm, a curve that is not used here."""

    default_reason = "key_not_usable"
