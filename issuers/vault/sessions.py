"""The Vault tokens under which secrets are leased: an orphan for each task and resource, in memory only."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Final

from issuers import Handle, IssuerError, Order
from issuers.vault.link import Answer, Link, Refused, absent_if
from issuers.vault.login import LoggedIn, Login, Now
from issuers.vault.settings import VaultSettings

UNCLAIMED_S: Final = 300
"""How long a session lives when nothing is leased under it, since its accessor may have got lost; and how much longer
than its last grant, so that not every grant costs a renewal. Never longer than its task.
"""

MARK: Final = "taskpass"
"""The member of a session's metadata that says whose it is."""


@dataclass(slots=True)
class Session:
    """An open token. Seconds since the epoch: `until` it lives unless renewed, `ends` is its last possible second."""

    token: str = field(repr=False)
    accessor: str
    until: int
    ends: int
    renewing: Lock = field(default_factory=Lock, repr=False)


class Sessions:
    """Opens, finds again and forgets sessions. A restart of the broker forgets all, and others are opened."""

    def __init__(self, *, vault: LoggedIn, role: str, name: str, now: Now) -> None:
        """`role` is the token role that makes orphans; `name` marks what is ours."""
        self._vault = vault
        self.role = role
        self._name = name
        self._now = now
        self._lock = Lock()
        self._by_accessor: dict[str, Session] = {}
        self._shared: dict[tuple[str, str, str], str] = {}
        self._opening: dict[tuple[str, str, str], Lock] = {}
        self._asking: Counter[str] = Counter()

    def shared(self, order: Order, settings: VaultSettings) -> Session:
        """That of the order's task and resource; opened now if there is none that can last until the order expires."""
        key = (order.task, order.audience, settings.path)
        with self._lock:
            opening = self._opening.setdefault(key, Lock())
        with opening:  # one of many concurrent first requests opens it for all
            found = self.opened(order, settings)
            if found is None:
                found = self.open(order, settings)
                with self._lock:
                    self._shared[key] = found.accessor
            return found

    def opened(self, order: Order, settings: VaultSettings) -> Session | None:
        """The same if it is open already. Asks nobody."""
        with self._lock:
            found = self._by_accessor.get(self._shared.get((order.task, order.audience, settings.path), ""))
        lasts = found is not None and found.ends >= order.exp and found.until > self._now() // 1000
        return found if lasts else None

    def open(self, order: Order, settings: VaultSettings) -> Session:
        """One for this order alone. Raises IssuerError."""
        now = self._now() // 1000
        ends = max(order.exp, order.deadline or 0)
        ttl = min(ends - now, UNCLAIMED_S)
        if order.exp <= now:
            raise IssuerError("The order has expired.", happened=False)
        body = {
            "policies": [settings.policy],
            "meta": {MARK: self._name, "task": order.task, "agent": order.agent, "path": settings.path},
            "display_name": MARK,
            "ttl": f"{ttl}s",
            "explicit_max_ttl": f"{ends - now}s",
            "no_default_policy": True,
            "renewable": True,
        }
        auth = self._vault.call("post", f"auth/token/create/{self.role}", body).auth
        token, accessor, lasts = auth.get("client_token"), auth.get("accessor"), auth.get("lease_duration")
        if not (isinstance(token, str) and isinstance(accessor, str) and accessor and isinstance(lasts, int)):
            raise IssuerError("Vault's answer has no session: is the token role one that makes service tokens?")
        session = Session(token, accessor, now + lasts, ends)
        if auth.get("orphan") is not True or not 0 < lasts <= ttl or auth.get("policies") != [settings.policy]:
            self.end(accessor)
            raise IssuerError("The session that Vault opened is wider than what was asked for.", happened=False)
        with self._lock:
            self._prune(now)
            self._by_accessor[accessor] = session
        return session

    def find(self, accessor: str) -> Session:
        """An open one. Raises IssuerError for one that this process did not open, or has ended."""
        with self._lock:
            found = self._by_accessor.get(accessor)
        if found is None:
            raise IssuerError("The session for this secret is not open any more: ask again.", happened=False)
        return found

    @contextmanager
    def asking(self, accessor: str) -> Iterator[Session]:
        """The session, for as long as something is asked for under it. Raises IssuerError as `find` does."""
        session = self.find(accessor)
        with self._lock:
            self._asking[accessor] += 1
        try:
            yield session
        finally:
            with self._lock:
                self._asking[accessor] -= 1
                self._asking += Counter()  # drops what is zero

    def is_asked(self, accessor: str) -> bool:
        """Whether a lease may still come to be under it, even if it is revoked: Vault looks at the token only first."""
        with self._lock:
            return self._asking[accessor] > 0

    def extend(self, accessor: str, until: int) -> int:
        """Have it live at least until then, as far as its own end and Vault allow: until when it does."""
        with self._lock:
            session = self._by_accessor.get(accessor)
        if session is None:
            return self._renewed(accessor, until)
        with session.renewing:
            if session.until < until:
                session.until = self._renewed(accessor, min(until + UNCLAIMED_S, session.ends))
            return session.until

    def _renewed(self, accessor: str, until: int) -> int:
        now = self._now() // 1000
        body = {"accessor": accessor, "increment": f"{max(1, until - now)}s"}
        lasts = self._vault.call("post", "auth/token/renew-accessor", body).auth.get("lease_duration")
        return now + lasts if isinstance(lasts, int) else now

    def ours(self) -> Iterator[Handle]:
        """All that Vault knows and that bear our mark, whoever opened them."""
        for accessor in keys(self._vault, "auth/token/accessors"):
            found = self.look(accessor)
            meta = found.data.get("meta") if found is not None else None  # it may have gone since it was listed
            if isinstance(meta, dict) and meta.get(MARK) == self._name:
                yield {"accessor": accessor, **{name: str(meta[name]) for name in ("path", "task") if name in meta}}

    def end(self, accessor: str) -> None:
        """Revoke it. Its leases are only queued for revocation by that. Succeeds when it is gone."""
        self.forget(accessor)
        if not self.gone(accessor):
            self._vault.call("post", "auth/token/revoke-accessor", {"accessor": accessor})

    def close(self, handle: Handle) -> None:
        """End the one that a handle names, if any, and look. Raises IssuerError if it is still there."""
        if "accessor" in handle:
            self.end(handle["accessor"])
            if not self.gone(handle["accessor"]):
                raise IssuerError("Vault still knows the session.")

    def gone(self, accessor: str) -> bool:
        """Ask whether Vault knows it no more."""
        return self.look(accessor) is None

    def look(self, accessor: str) -> Answer | None:
        """What Vault knows of it."""
        body = {"accessor": accessor}
        return absent_if("invalid accessor", lambda: self._vault.call("post", "auth/token/lookup-accessor", body))

    def forget(self, accessor: str) -> None:
        """Lease nothing more under it."""
        with self._lock:
            self._by_accessor.pop(accessor, None)

    def _prune(self, now: int) -> None:
        for accessor in [a for a, each in self._by_accessor.items() if each.until <= now]:
            del self._by_accessor[accessor]
        self._shared = {key: a for key, a in self._shared.items() if a in self._by_accessor}
        for key in [k for k, lock in self._opening.items() if k not in self._shared and not lock.locked()]:
            del self._opening[key]


@dataclass(frozen=True, slots=True)
class Vault:
    """One server, the broker's standing with it, and the sessions that are open there. Issuers share it."""

    link: Link
    broker: LoggedIn
    sessions: Sessions
    now: Now


def connect(
    *,
    address: str,
    login: Login,
    now: Now,
    namespace: str | None = None,
    ca_file: Path | None = None,
    timeout_s: float = 10.0,
    token_role: str = "taskpass",  # noqa: S107  (the name of a role)
    name: str = "taskpass",
) -> Vault:
    """Put together what the issuers need; nothing is sent yet. `token_role` makes the sessions, `name` marks them as
    this broker's. Raises ValueError.
    """
    link = Link(address=address, namespace=namespace, ca_file=ca_file, timeout_s=timeout_s)
    broker = LoggedIn(link=link, login=login, now=now)
    return Vault(link, broker, Sessions(vault=broker, role=token_role, name=name, now=now), now)


def keys(broker: LoggedIn, path: str) -> list[str]:
    """What is listed at a path. Raises IssuerError."""
    try:
        found = broker.call("list", f"{path}/").data.get("keys")
    except Refused as refused:
        if refused.status != 404:  # which is how an empty list is told
            raise
        return []
    return [key for key in found if isinstance(key, str)] if isinstance(found, list) else []
