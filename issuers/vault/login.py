"""The broker's own standing with Vault: logs in, renews in time, logs in again when it is refused. Never logged."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Final, Literal

from issuers import IssuerError
from issuers.vault.link import Answer, Link, Refused

Now = Callable[[], int]
"""The time in milliseconds since the epoch."""

_RENEW_AT: Final = 2 / 3  # of the token's life
_MAX_FILE: Final = 64 << 10
SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


@dataclass(frozen=True, slots=True)
class Login:
    """How the broker proves to Vault who it is. The secret part is in `file`, read anew for each login: the JWT, the
    Kubernetes service account's token, the AppRole's secret id, or a Vault token that something else keeps fresh.
    """

    method: Literal["jwt", "kubernetes", "approle", "token"]
    file: Path
    role: str = ""  # of the JWT or Kubernetes method; the role id of an AppRole
    mount: str = ""  # default: the method's name

    def __post_init__(self) -> None:
        if self.method != "token" and not self.role:
            raise ValueError(f"a login by {self.method} needs a role")

    def perform(self, link: Link) -> tuple[str, Answer]:
        """Log in: the token, and the answer that came with it. Raises IssuerError."""
        secret = _content(self.file)
        if self.method == "token":
            return secret, link.call("get", "auth/token/lookup-self", token=secret)
        body = (
            {"role_id": self.role, "secret_id": secret}
            if self.method == "approle"
            else {"role": self.role, "jwt": secret}
        )
        answer = link.call("post", f"auth/{self.mount or self.method}/login", token=None, body=body)
        token = answer.auth.get("client_token")
        if not isinstance(token, str) or not token:
            raise IssuerError("Vault's answer to the login has no token.", happened=False)
        return token, answer


class LoggedIn:
    """The token that the broker acts with. May be used by many threads; one of them logs in for all."""

    def __init__(self, *, link: Link, login: Login, now: Now) -> None:
        self._link = link
        self._login = login
        self._now = now
        self._lock = Lock()
        self._token: str | None = None
        self._renew_at = self._ends_at = 0
        self._renewable = False

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Answer:
        """One exchange as the broker. Refused as unknown, it logs in once more: nothing was done the first time."""
        token = self._current()
        try:
            return self._link.call(method, path, token=token, body=body)
        except Refused as refused:
            if refused.status != 403 or refused.says("invalid accessor"):
                raise
        fresh = self._current(instead_of=token)
        return self._link.call(method, path, token=fresh, body=body)

    def _current(self, *, instead_of: str | None = None) -> str:
        with self._lock:
            now = self._now()
            if self._token is None or self._token == instead_of or now >= self._ends_at:
                return self._log_in(now)
            if now >= self._renew_at:
                self._renew(self._token, now)
            return self._token

    def _log_in(self, now: int) -> str:
        self._token = None
        try:
            token, answer = self._login.perform(self._link)
        except IssuerError as error:
            sentence = f"The broker cannot log in to Vault. {error.sentence}"
            raise IssuerError(sentence, happened=False, retry_after_s=error.retry_after_s) from None
        by_file = self._login.method == "token"
        facts = answer.data if by_file else answer.auth
        self._token, self._renewable = token, facts.get("renewable") is True
        self._lives(now, facts.get("ttl" if by_file else "lease_duration"))
        return token

    def _renew(self, token: str, now: int) -> None:
        """What cannot be renewed is replaced while there is time; if that fails too, the old one serves to its end."""
        try:
            if not self._renewable:
                self._log_in(now)
                return
            renewed = self._link.call("post", "auth/token/renew-self", token=token, body={})
            self._lives(now, renewed.auth.get("lease_duration"))
            # At its maximum a renewal succeeds and adds nothing: then only a new login helps.
            if self._ends_at - now < 2000 * _MIN_LIFE_S:
                self._log_in(now)
        except IssuerError:
            self._token = self._token or token
            self._renew_at = now + (self._ends_at - now) // 4

    def _lives(self, now: int, seconds: object) -> None:
        life = seconds * 1000 if isinstance(seconds, int) and seconds > 0 else _FOREVER_MS
        self._ends_at, self._renew_at = now + life, now + int(life * _RENEW_AT)


_MIN_LIFE_S: Final = 30
_FOREVER_MS: Final = 1 << 50  # a token without an end (ttl 0) is never renewed


def _content(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            text = opened.read(_MAX_FILE + 1).decode("ascii").strip()
    except (OSError, ValueError):
        raise IssuerError("The file with the broker's proof for Vault cannot be read.", happened=False) from None
    if not text or len(text) > _MAX_FILE or any(c.isspace() for c in text):
        raise IssuerError("The file with the broker's proof for Vault does not hold one token.", happened=False)
    return text
