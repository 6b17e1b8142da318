"""Secrets that Vault leases, and takes back: database logins, RabbitMQ users, leased certificates, Kubernetes accounts.

One orphan token for each task and resource owns the leases, so that none outlives the task even if the broker never
comes back. A grant is ended by its lease, never by that token, which others share. Revoking a token only queues its
leases: so each is revoked with `sync` and looked up after that.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from issuers import Found, Handle, IssuerError, Minted, NotRenewable, Order, Standing
from issuers.vault.link import Answer, Refused, absent_if
from issuers.vault.sessions import Session, Vault, keys
from issuers.vault.settings import VaultSettings, texts
from issuers.vault.sever import Severer

OPEN_SESSIONS: Final = "Sessions that were opened with it before may continue until they are closed."
SEVERED: Final = "No session that was opened with it is left."


class Leased:
    """What is leased: the half of `VaultIssuer` whose handles have the `lease_id` beside session and path."""

    def __init__(self, *, vault: Vault, severers: Mapping[str, Severer], sweep: Sequence[str]) -> None:
        self._link, self._vault, self._sessions = vault.link, vault.broker, vault.sessions
        self._now = vault.now
        self._severers = severers
        self._sweep = tuple(sweep)

    def prepare(self, order: Order, settings: VaultSettings) -> Handle:
        """Open the session, or find it. What is wrapped gets one of its own, for not even its lease will be known."""
        if settings.admin:
            self._severer(settings.admin)
        session = (
            self._sessions.open(order, settings) if settings.wrap_ttl_s else self._sessions.shared(order, settings)
        )
        return {"accessor": session.accessor, "path": settings.path}

    def foreseen(self, order: Order, settings: VaultSettings) -> Handle | None:
        """The session that will own the lease, if it is open."""
        if settings.admin or settings.wrap_ttl_s:
            return None
        session = self._sessions.opened(order, settings)
        return None if session is None else {"accessor": session.accessor, "path": settings.path}

    def issue(self, order: Order, prepared: Handle, settings: VaultSettings) -> Minted:
        """Have Vault lease the secret, no longer than the order allows."""
        body = settings.body(order)
        accessor = prepared["accessor"]
        try:
            with self._sessions.asking(accessor) as session:
                until = self._sessions.extend(accessor, order.exp)
                answer = self._leased(session, settings, body)
            if settings.wrap_ttl_s:
                return self._wrapped(answer, prepared, min(until, order.exp))
            return self._minted(answer, order, prepared, settings, until)
        except IssuerError as error:
            # It may own a lease that only revoking all of it finds, or has been revoked itself: nobody else may rely
            # on it.
            if error.happened is not False or (isinstance(error, Refused) and error.status in {400, 403}):
                self._sessions.forget(accessor)
            raise

    def _leased(self, session: Session, settings: VaultSettings, body: Mapping[str, str]) -> Answer:
        wrap = settings.wrap_ttl_s
        if settings.method == "write":
            return self._link.call("post", settings.path, token=session.token, body=body, wrap_ttl_s=wrap)
        return self._link.call("get", settings.path, token=session.token, wrap_ttl_s=wrap)

    def _minted(self, answer: Answer, order: Order, prepared: Handle, settings: VaultSettings, until: int) -> Minted:
        if not answer.lease_id:
            raise IssuerError(
                "Vault gave a secret without a lease, so it cannot be taken back: its resource must be `static`."
            )
        try:
            now = self._now() // 1000
            ends = now + answer.lease_s
            if ends > order.exp and answer.renewable:
                ends = now + self._renewed(answer.lease_id, order.exp - now)
            handle = {**prepared, "lease_id": answer.lease_id, **self._login(answer, settings)}
        except IssuerError as error:
            raise self._undone(answer.lease_id, error) from None
        return Minted(texts(answer.data), handle, min(ends, until))

    def _undone(self, lease_id: str, error: IssuerError) -> IssuerError:
        """The failure of a call after the secret was made: its own `happened` speaks of that call only."""
        try:
            self._end_lease(lease_id)
        except IssuerError:
            return IssuerError(error.sentence, retry_after_s=error.retry_after_s)
        return IssuerError(error.sentence, happened=False, retry_after_s=error.retry_after_s)

    def _login(self, answer: Answer, settings: VaultSettings) -> dict[str, str]:
        """What finds the sessions of a login that was made."""
        login = answer.data.get("username")
        if not isinstance(login, str):
            return {}
        if not settings.admin:
            return {"login": login}
        return {"login": login, "admin": settings.admin, "login_oid": self._severer(settings.admin).identify(login)}

    def _wrapped(self, answer: Answer, prepared: Handle, exp: int) -> Minted:
        token, accessor = answer.wrap.get("token"), answer.wrap.get("accessor")
        if not isinstance(token, str) or not token or not isinstance(accessor, str):
            raise IssuerError("Vault did not wrap its answer.")
        values = {"wrap_token": token, "wrap_address": self._link.address}
        return Minted(values, {**prepared, "wrap_accessor": accessor}, exp)

    def renew(self, handle: Handle, exp: int) -> int:
        """Have the secret live until `exp`, as far as Vault allows: until when it does. Raises NotRenewable,
        IssuerError.
        """
        until = self._sessions.extend(handle["accessor"], exp)
        now = self._now() // 1000
        try:
            return min(until, now + self._renewed(handle["lease_id"], exp - now))
        except Refused as refused:
            if refused.says("not renewable"):
                raise NotRenewable("Vault's engine makes these secrets for one life: they cannot be renewed.") from None
            raise

    def _renewed(self, lease_id: str, seconds: int) -> int:
        return self._vault.call("post", f"sys/leases/renew/{lease_id}", {"increment": max(1, seconds)}).lease_s

    def revoke(self, handle: Handle) -> None:
        """End the lease, and the sessions that were opened with it where an admin connection is named."""
        try:
            if "lease_id" in handle:
                self._end_lease(handle["lease_id"])
            else:
                self._end_unknown(handle)
        finally:  # a login that cannot be dropped for now is at least thrown out
            if "login_oid" in handle:
                self._severer(handle["admin"]).sever(handle["login_oid"])

    def _end_lease(self, lease_id: str) -> None:
        try:
            self._vault.call("post", f"sys/leases/revoke/{lease_id}", {"sync": True})
        except Refused as refused:
            if refused.status == 400:  # which is how a failure of the engine is told here
                raise IssuerError("Vault could not revoke it, and goes on trying.") from None
            raise

    def _end_unknown(self, handle: Handle) -> None:
        """End a secret whose lease nobody has learnt, with all else that its session owns."""
        if "wrap_accessor" in handle:
            self._sessions.end(handle["wrap_accessor"])
        self._sessions.end(handle["accessor"])
        for lease_id in self._queued(handle["path"]):
            self._end_lease(lease_id)

    def status(self, handle: Handle) -> Found:
        """Look the lease up; where it is not known, the session, and whether leases of ended sessions are left."""
        if "lease_id" not in handle:
            return Found(Standing.GONE if self._unknown_gone(handle) else Standing.LIVE)
        found = self._lease(handle["lease_id"])
        if found is not None:
            return Found(Standing.LIVE, "Vault has failed to revoke it." if found.data.get("revoke_error") else None)
        if "login_oid" in handle:
            left = self._severer(handle["admin"]).count(handle["login_oid"])
            if left:
                return Found(Standing.LIVE, f"The login is gone; {left} sessions that were opened with it are not.")
            return Found(Standing.GONE, SEVERED)
        return Found(Standing.GONE, OPEN_SESSIONS if "login" in handle else None)

    def _unknown_gone(self, handle: Handle) -> bool:
        accessors = [handle[name] for name in ("accessor", "wrap_accessor") if name in handle]
        if any(self._sessions.is_asked(accessor) or not self._sessions.gone(accessor) for accessor in accessors):
            return False
        return "path" not in handle or next(self._queued(handle["path"]), None) is None

    def orphans(self) -> Iterator[Handle]:
        """The leases of the swept paths."""
        for path in self._sweep:
            for key in keys(self._vault, f"sys/leases/lookup/{path}"):
                yield {"lease_id": f"{path}/{key}", "path": path}

    def _queued(self, path: str) -> Iterator[str]:
        """The leases at a path whose time is over: those of a revoked token are among them until they are ended."""
        for key in keys(self._vault, f"sys/leases/lookup/{path}"):
            found = self._lease(f"{path}/{key}")
            ttl = found.data.get("ttl") if found is not None else None  # by the clock of Vault, not by ours
            if isinstance(ttl, int) and ttl <= 0:
                yield f"{path}/{key}"

    def _lease(self, lease_id: str) -> Answer | None:
        return absent_if("invalid lease", lambda: self._vault.call("post", "sys/leases/lookup", {"lease_id": lease_id}))

    def _severer(self, admin: str) -> Severer:
        found = self._severers.get(admin)
        if found is None:
            raise IssuerError(f"The admin connection {admin} is not configured.", happened=False)
        return found
