"""RFC 9068 access tokens: ES256, `typ: at+jwt`, one audience, with the ledger's position in `seq`."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from issuers import Ending, Order

SignAll = Callable[[Sequence[tuple[str, str, Mapping[str, Any]]]], Awaitable[Sequence[str | Exception]]]
"""(kid, typ, claims) of each -> compact JWS of each, or why there is none."""

TYP = "at+jwt"
DETAILS_TYPE = "task_action"


class AccessTokenIssuer:
    """Mints the JWT that downstream services verify offline."""

    kind = "access_token"
    ending = Ending.FEED

    def __init__(self, *, iss: str, sign_all: SignAll) -> None:
        self._iss = iss
        self._sign_all = sign_all

    async def issue_all(self, orders: Sequence[Order]) -> Sequence[str | Exception]:
        """Sign the orders' claims together. The slot of an order that is inconsistent in itself holds a ValueError."""
        sound = [_is_one(order) for order in orders]
        wanted = [(order.kid, TYP, self.claims(order)) for order, good in zip(orders, sound, strict=True) if good]
        signed = iter(await self._sign_all(wanted))
        return [
            next(signed) if good else ValueError(f"order at position {order.seq} is not one credential")
            for order, good in zip(orders, sound, strict=True)
        ]

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


def _is_one(order: Order) -> bool:
    return bool(order.jti and order.audience and (order.actions or order.limited) and order.exp > order.iat)


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
