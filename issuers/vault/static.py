"""What Vault hands out but cannot take back: key-value entries, signed certificates, cloud tokens."""

from typing import Final

from issuers import Found, Handle, IssuerError, Minted, Order, Standing
from issuers.vault.link import Answer
from issuers.vault.sessions import Vault
from issuers.vault.settings import VaultSettings, texts

UNENDING: Final = "The value itself does not expire: it works until it is changed where it is used."
_LEEWAY_S: Final = 30  # engines date what they sign by a clock of their own


class Static:
    """What only expires, if it does: the half of `VaultIssuer` whose handles say `static`."""

    def __init__(self, *, vault: Vault) -> None:
        self._link, self._sessions = vault.link, vault.sessions
        self._now = vault.now

    def prepare(self, order: Order, settings: VaultSettings) -> Handle:
        """Open the session that may read this path, or find it."""
        return {"accessor": self._sessions.shared(order, settings).accessor, "path": settings.path, "static": "yes"}

    def issue(self, order: Order, prepared: Handle, settings: VaultSettings) -> Minted:
        """Read it. Refuses what would work for longer than the order allows, and says so itself."""
        method, body = ("post", settings.body(order)) if settings.method == "write" else ("get", None)
        session = self._sessions.find(prepared["accessor"])
        self._sessions.extend(session.accessor, order.exp)
        answer = self._link.call(method, settings.path, token=session.token, body=body)
        data = answer.data.get("data") if settings.kv == 2 else answer.data
        if not isinstance(data, dict) or not data:
            raise IssuerError("Vault has no value at this path.", happened=False)
        ends = self._ends(answer, settings)
        if ends is not None and ends > order.exp + _LEEWAY_S:
            raise IssuerError("What Vault made would outlive its grant: have its parameters say {ttl}.")
        handle = {**prepared, "expires": "never" if settings.kv else str(ends or order.exp)}
        return Minted(texts(data), handle, min(ends or order.exp, order.exp))

    def _ends(self, answer: Answer, settings: VaultSettings) -> int | None:
        """When it stops working, as far as the answer tells."""
        stamp = answer.data.get("expiration")
        if settings.kv:
            return None
        if isinstance(stamp, int):
            return stamp
        return self._now() // 1000 + answer.lease_s if answer.lease_s else None

    def status(self, handle: Handle) -> Found:
        """What was read works until it expires; no look at Vault would tell more."""
        expires = handle.get("expires", "0")  # nothing was handed out yet
        if expires == "never":
            return Found(Standing.LIVE, UNENDING)
        return Found(Standing.GONE if int(expires) * 1000 <= self._now() else Standing.LIVE)
