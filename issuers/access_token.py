"""RFC 9068 access tokens: ES256, `typ: at+jwt`, one audience, with the ledger's position in `seq`."""

from collections.abc import Callable, Mapping
from typing import Any

from issuers import Ending, Order

Sign = Callable[[str, str, Mapping[str, Any]], str]
"""(kid, typ, claims) -> compact JWS."""

TYP = "at+jwt"
DETAILS_TYPE = "task_action"


class AccessTokenIssuer:
    """Mints the JWT that downstream services verify offline."""

    kind = "access_token"
    ending = Ending.FEED

    def __init__(self, *, iss: str, sign: Sign) -> None:
        self._iss = iss
        self._sign = sign

    def issue(self, order: Order) -> str:
        """Sign the order's claims. Raises ValueError when the order itself is inconsistent."""
        granted = order.actions or order.limited
        if not order.jti or not order.audience or not granted or order.exp <= order.iat:
            raise ValueError(f"order at position {order.seq} is not one credential")
        return self._sign(order.kid, TYP, self.claims(order))

    def claims(self, order: Order) -> dict[str, Any]:
        """The token's claims. No member of the request is copied that the commit did not fix."""
        claims: dict[str, Any] = {
            "iss": self._iss,
            "sub": order.agent,
            "client_id": order.agent,
            "aud": order.audience,
            "iat": order.iat,
            "exp": order.exp,
            "jti": order.jti,
            "task": order.task,
            "seq": order.seq,
        }
        # A service that looks at `scope` alone must not take a limited action for an unlimited one.
        if order.actions:
            claims["scope"] = " ".join(order.actions)
        if order.limited:
            claims["authorization_details"] = details(order)
        return claims


def details(order: Order) -> list[dict[str, Any]]:
    """What was granted within limits, as RFC 9396 `authorization_details`: answer and token carry the same."""
    return [
        {
            "type": DETAILS_TYPE,
            "actions": list(order.limited),
            "locations": [order.audience],
            "parameters": dict(order.parameters),
        }
    ]
