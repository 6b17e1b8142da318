"""The issuer: what Vault leases is taken back, what it cannot take back is said to be so, each by its resource."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from issuers import Ending, Found, Handle, Minted, Order, Seen
from issuers.vault.check import examine
from issuers.vault.dynamic import Leased
from issuers.vault.sessions import Vault
from issuers.vault.settings import VaultSettings, checked, settings_of
from issuers.vault.sever import Severer
from issuers.vault.static import Static


class VaultIssuer:
    """`SecretIssuer` for everything in one Vault or OpenBao. Resources name the path, see `settings_of`."""

    kind = "vault"
    ending = Ending.REVOCABLE

    def __init__(
        self,
        *,
        vault: Vault,
        admins: Mapping[str, str] | None = None,
        sweep: Sequence[str] = (),
        min_ttl_s: int = 10,
        max_ttl_s: int = 3_600,
    ) -> None:
        """`admins` are connections by name, each `env:NAME` or `file:PATH`, of which a PostgreSQL address is read.
        `sweep` are paths that nobody else leases from: of those alone `orphans` names the leases. Raises ValueError.
        """
        self.min_ttl_s, self.max_ttl_s = min_ttl_s, max_ttl_s
        self._sessions = vault.sessions
        self._vault = vault
        self._severers = {admin: Severer(reference) for admin, reference in (admins or {}).items()}
        self._leased = Leased(vault=vault, severers=self._severers, sweep=sweep)
        self._static = Static(vault=vault)

    @staticmethod
    def ending_of(settings: Mapping[str, Any]) -> Ending:
        """How the credentials of a resource end. Raises ValueError."""
        return Ending.EXPIRES_ONLY if settings_of(settings).static else Ending.REVOCABLE

    def foreseen(self, order: Order) -> Handle | None:
        """The session that will own the lease, where an earlier one of the task opened it."""
        try:
            order, settings = self._capped(order), settings_of(order.settings)
        except ValueError:
            return None
        return None if settings.static else self._leased.foreseen(order, settings)

    def prepare(self, order: Order) -> Handle:
        """Open the session that will own the lease, or find it."""
        order, settings = self._capped(order), checked(order)
        return (self._static if settings.static else self._leased).prepare(order, settings)

    def issue(self, order: Order, prepared: Handle) -> Minted:
        """Have Vault make it, or hand it out."""
        order, settings = self._capped(order), checked(order)
        return (self._static if settings.static else self._leased).issue(order, prepared, settings)

    def renews(self, handle: Handle) -> bool:
        """What has a lease that we know. Of what was wrapped nobody knows it, and what is static has none."""
        return "lease_id" in handle

    def renew(self, handle: Handle, exp: int) -> int:
        """Have a leased secret live until `exp`, as far as Vault allows: until when it does. Raises NotRenewable,
        IssuerError.
        """
        return self._leased.renew(handle, exp)

    def revoke(self, handle: Handle) -> None:
        """End the lease, and the sessions opened with it where an admin connection is named. For what is static nothing
        can be done, as `status` goes on to say.
        """
        if "static" not in handle:
            self._leased.revoke(handle)

    def status(self, handle: Handle) -> Found:
        """Look the lease up, and what was opened with it."""
        return self._static.status(handle) if "static" in handle else self._leased.status(handle)

    def close(self, handle: Handle) -> None:
        """Revoke the session, and look. Its leases are only queued by that: `revoke` ends them for certain."""
        self._sessions.close(handle)

    def orphans(self) -> Iterator[Handle]:
        """Our sessions, and the leases of the swept paths, of whatever age."""
        yield from self._sessions.ours()
        yield from self._leased.orphans()

    def settings_of(self, mapping: Mapping[str, Any]) -> VaultSettings:
        """A resource's settings, checked against what is configured too. Raises ValueError."""
        settings = settings_of(mapping)
        if settings.admin and settings.admin not in self._severers:
            known = ", ".join(sorted(self._severers)) or "none"
            raise ValueError(f"admin {settings.admin} is no connection of this issuer; there are {known}")
        return settings

    def examine(self, resources: Mapping[str, Mapping[str, Any]], now: int) -> Iterator[Seen]:
        """See `issuers.Examiner`. Settings that are wrong in themselves are passed over."""
        read: dict[str, VaultSettings] = {}
        for name, mapping in resources.items():
            with suppress(ValueError):
                read[name] = settings_of(mapping)
        return examine(self._vault, self._severers, read, role=self._vault.sessions.role, now=now)

    def _capped(self, order: Order) -> Order:
        return order._replace(exp=min(order.exp, order.iat + self.max_ttl_s))
