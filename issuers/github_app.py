"""GitHub App installation access tokens: one installation, named repositories, the permissions of the granted actions.

GitHub knows a token by its secret alone: there is no list, no id, and `DELETE /installation/token` wants the token
itself. The broker never stores a secret, so the issuer holds the token in memory for as long as it lives. Hence:

- while the process that made it runs, the token is revoked at GitHub and then looked for: GitHub answers 401, or it
  is live;
- after a restart, or in another process, it cannot be taken back. `revoke` then has no effect, and `status` says that
  the token is live, why, and when it ends: GitHub gives each one hour, never more, and the handle says until when;
- a token whose answer was lost is known to nobody. `status` counts it as live until its hour is over.

GitHub makes no shorter ones: an order's earlier end is kept by revoking the token then, if it is still held. `expires`
in the handle is the end that GitHub keeps by itself.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Final

import jwt

from issuers import Ending, Found, Handle, IssuerError, Minted, Order, Seen, Standing, clock_seen
from issuers.http import TIMEOUT_S, Answer, Backend, retry_after

LIFETIME_S: Final = 3_600
"""What GitHub gives every token."""

_LEVELS: Final = ("read", "write", "admin")
_IMPLIED: Final = {"metadata": "read"}  # GitHub adds it to every token
_MAX_REPOSITORIES: Final = 500
_MAX_TOKEN: Final = 8_192
_APP_JWT_S: Final = 540  # GitHub takes at most ten minutes
_BACKDATED_S: Final = 60
_SKEW_S: Final = 60


@dataclass(frozen=True, slots=True)
class GitHubSettings:
    """What a resource says about its tokens."""

    installation: int
    repositories: tuple[str, ...]
    permissions: Mapping[str, Mapping[str, str]]  # action -> permission -> level
    repository_parameter: str | None = None


def settings_of(mapping: Mapping[str, Any]) -> GitHubSettings:
    """A resource's `settings`. Raises ValueError with a sentence."""
    unknown = mapping.keys() - {"installation", "repositories", "permissions", "repository_parameter"}
    if unknown:
        raise ValueError(f"github_app has no setting {sorted(unknown)[0]!r}")
    installation = mapping.get("installation")
    if type(installation) is not int or installation <= 0:
        raise ValueError("installation must be the number of the app's installation")
    parameter = mapping.get("repository_parameter")
    if parameter is not None and not isinstance(parameter, str):
        raise ValueError("repository_parameter must be the name of a parameter")
    return GitHubSettings(
        installation, _repositories(mapping.get("repositories")), _permissions(mapping.get("permissions")), parameter
    )


def _repositories(value: object) -> tuple[str, ...]:
    names = value if isinstance(value, list | tuple) else ()
    if not 0 < len(names) <= _MAX_REPOSITORIES or not all(isinstance(name, str) and name for name in names):
        raise ValueError(
            f"repositories must list 1 to {_MAX_REPOSITORIES} names: without them a token reaches them all"
        )
    if any("/" in name for name in names):
        raise ValueError("repositories are named without their owner: the installation is the owner's")
    return tuple(names)


def _permissions(value: object) -> Mapping[str, Mapping[str, str]]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError("permissions must say, for each action, what GitHub calls it: {contents: read}")
    for action, wanted in value.items():
        if not isinstance(wanted, Mapping) or not wanted or not all(level in _LEVELS for level in wanted.values()):
            raise ValueError(f"permissions of {action!r} must map names to {', '.join(_LEVELS)}")
    return value


@dataclass(slots=True)
class _Known:
    """What this process knows about one grant's token."""

    until: int
    sent: bool = False
    token: str | None = field(default=None, repr=False)


class GitHubAppIssuer:
    """Mints and ends installation tokens as one GitHub App. Safe under threads."""

    kind = "github_app"
    ending = Ending.REVOCABLE
    min_ttl_s = 60
    max_ttl_s = LIFETIME_S

    def __init__(
        self,
        *,
        app: str | int,
        private_key_file: Path,
        now: Callable[[], int],
        url: str = "https://api.github.com",
        ca_file: Path | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        """`app` is the app's client id, or its number. Raises ValueError for a key or URL that is none.

        `now` is in milliseconds. The key file is read again for each app JWT, so it may be replaced.
        """
        self._backend = Backend(name="GitHub", url=url, ca_file=ca_file, timeout_s=timeout_s)
        self._app = str(app)
        self._key_file = private_key_file
        self._now = now
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._app_jwt: tuple[str, int] | None = None
        self._sign()  # a wrong key is found now

    def prepare(self, order: Order) -> Handle:
        """GitHub takes no name for a token: what is recorded is where it will be, and when it will have ended."""
        settings = _settings(order)
        _wanted(order, settings)  # what cannot be granted is refused before anything is on record
        until = self._now() // 1000 + LIFETIME_S + _SKEW_S
        with self._lock:
            self._forget_expired()
            self._known[order.jti] = _Known(until)
        return {"installation": str(settings.installation), "grant": order.jti, "until": str(until)}

    def issue(self, order: Order, prepared: Handle) -> Minted:
        """One token, checked to reach no further than was asked; one that does is ended at once."""
        if self._now() // 1000 > int(prepared["until"]) - LIFETIME_S:
            raise IssuerError("This token was prepared too long ago.", happened=False)
        repositories, permissions = _wanted(order, _settings(order))
        with self._lock:
            known = self._known.setdefault(order.jti, _Known(int(prepared["until"])))
            known.sent = True
        body = {"repositories": list(repositories), "permissions": permissions}
        path = f"/app/installations/{prepared['installation']}/access_tokens"
        answer = self._call("POST", path, self._signed(), json.dumps(body).encode())
        if answer.status != 201:
            refused = self._refused(answer)
            known.sent = refused.happened is not False
            raise refused
        token, expires, told = _read(answer.body)
        known.token, known.until = token, expires
        if not _within(told, repositories, permissions):
            self._end(token)
            raise IssuerError("GitHub made a token that reaches further than was asked; it was ended.", happened=None)
        values = {"token": token, "username": "x-access-token"}
        return Minted(values, {**prepared, "expires": str(expires)}, min(order.exp, expires))

    def holds(self, handle: Handle) -> bool:
        """Whether this process prepared it: another one has no token to show to GitHub."""
        return handle.get("grant") in self._known

    def revoke(self, handle: Handle) -> None:
        """End the token if this process holds it; otherwise nothing can, and `status` says so."""
        known = self._known.get(handle["grant"])
        if known is not None and known.token is not None:
            self._end(known.token)

    def status(self, handle: Handle) -> Found:
        """Asks GitHub with the token itself. Without it, the token counts as live until it must have ended."""
        known = self._known.get(handle["grant"])
        if known is not None and known.token is not None:
            return self._look(known.token)
        if known is not None and not known.sent:
            return Found(Standing.GONE)
        until = int(handle.get("expires") or handle["until"])
        if self._now() // 1000 > until + _SKEW_S:
            note = "By the clock: its hour is over, and GitHub could not be asked."
            return Found(Standing.GONE, note, by_itself=True)
        what = (
            "The process that made this token is gone, and GitHub ends a token only for who holds it."
            if "expires" in handle
            else "GitHub's answer was lost: there may be a token, which nobody has."
        )
        sooner = f"Sooner: suspend the app's installation {handle['installation']}."
        return Found(Standing.LIVE, f"{what} It ends by itself by {_iso(until)}. {sooner}")

    def close(self, handle: Handle) -> None:
        """Nothing was opened for the task."""

    def orphans(self) -> Iterator[Handle]:
        """None: GitHub lists no tokens."""
        return iter(())

    def examine(self, resources: Mapping[str, Mapping[str, Any]], now: int) -> Iterator[Seen]:
        """See `issuers.Examiner`. Settings that are wrong in themselves are passed over."""
        clock: Seen | None = None
        for name, mapping in resources.items():
            with suppress(ValueError):
                settings = settings_of(mapping)
                try:
                    answer = self._call("GET", f"/app/installations/{settings.installation}", self._signed())
                except IssuerError as error:
                    yield Seen("app", "wrong", f"{name}: {error.sentence}", "Correct `url`, or the app's key.")
                    return
                clock = clock or _clock(answer, now)
                yield self._installation(name, settings, answer)
        if clock is not None:
            yield clock

    def _installation(self, name: str, settings: GitHubSettings, answer: Answer) -> Seen:
        """What GitHub says of an installation, compared with what its resource needs."""
        if answer.status != 200:
            advice = "Correct `app`, its key, or `installation`."
            return Seen("installation", "wrong", f"{name}: {self._refused(answer).sentence}", advice)
        try:
            told = json.loads(answer.body)
            granted, suspended = dict(told["permissions"]), told.get("suspended_at")
        except (ValueError, KeyError, TypeError, RecursionError):
            return Seen("installation", "wrong", f"{name}: GitHub's answer was not understood.", "Correct `url`.")
        if suspended is not None:
            return Seen("installation", "wrong", f"{name}: it is suspended", "Unsuspend it in its owner's settings.")
        needed = [pair for wanted in settings.permissions.values() for pair in wanted.items()]
        for permission, level in needed:
            if granted.get(permission) not in _LEVELS[_LEVELS.index(level) :]:
                advice = "Give it to the app, and have the installation's owner accept it."
                return Seen("installation", "wrong", f"{name}: it lacks {permission}: {level}", advice)
        return Seen("installation", "ok", f"{name}: it has every permission that is asked for")

    # --- GitHub's API -------------------------------------------------------------------------------------------------

    def _end(self, token: str) -> None:
        answer = self._call("DELETE", "/installation/token", token)
        if answer.status not in (204, 401):  # 401: it is no token any more
            raise self._refused(answer)

    def _look(self, token: str) -> Found:
        answer = self._call("GET", "/installation/repositories?per_page=1", token)
        if answer.status == 401:
            return Found(Standing.GONE)
        if answer.status == 200:
            return Found(Standing.LIVE)
        raise self._refused(answer)

    def _call(self, method: str, path: str, bearer: str, content: bytes | None = None) -> Answer:
        headers = {
            "Accept": "application/vnd.github+json",
            "Authorization": f"Bearer {bearer}",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        return self._backend.send(method, path, headers=headers, content=content)

    def _signed(self) -> str:
        """The app's own JWT, a new one when the last is nearly over."""
        cached = self._app_jwt
        if cached is not None and cached[1] - self._now() // 1000 > _SKEW_S:
            return cached[0]
        try:
            return self._sign()
        except ValueError as error:
            raise IssuerError(f"{error}.", happened=False) from None

    def _sign(self) -> str:
        """RS256, ten minutes at most, its start set back for a clock that is ahead."""
        now = self._now() // 1000
        claims = {"iss": self._app, "iat": now - _BACKDATED_S, "exp": now + _APP_JWT_S}
        try:
            signed = jwt.encode(claims, self._key_file.read_bytes(), algorithm="RS256")
        except (OSError, ValueError, TypeError, jwt.PyJWTError):
            raise ValueError(f"{self._key_file} does not hold an RSA private key that can be read") from None
        self._app_jwt = (signed, now + _APP_JWT_S)
        return signed

    def _refused(self, answer: Answer) -> IssuerError:
        """What a status means. 3xx and 4xx certainly had no effect; anything else may have had one."""
        wait = retry_after(answer)
        limited = answer.status == 429 or (
            answer.status == 403 and (wait is not None or answer.headers.get("x-ratelimit-remaining") == "0")
        )
        if limited:
            return IssuerError(
                "GitHub limits our rate.", happened=False, retry_after_s=wait or self._until_reset(answer)
            )
        if answer.status == 401:
            self._app_jwt = None  # the key may have been replaced
        sentence = {
            401: "GitHub does not accept the app's key, or its clock and ours differ.",
            403: "GitHub refuses: the installation is suspended, or the app lacks a permission.",
            404: "GitHub knows no such installation of this app.",
            422: "GitHub refuses these repositories or permissions: the installation does not have them.",
        }.get(answer.status, f"GitHub answered {answer.status}.")
        return IssuerError(sentence, happened=False if 300 <= answer.status < 500 else None, retry_after_s=wait)

    def _until_reset(self, answer: Answer) -> float | None:
        reset = answer.headers.get("x-ratelimit-reset", "")
        return float(max(1, int(reset) - self._now() // 1000)) if reset.isdecimal() and len(reset) < 12 else None

    def _forget_expired(self) -> None:
        now = self._now() // 1000
        for grant in [grant for grant, known in self._known.items() if known.until + _SKEW_S < now]:
            del self._known[grant]


def _clock(answer: Answer, now: int) -> Seen | None:
    """How GitHub's clock compares with ours, if its answer tells."""
    try:
        return clock_seen(parsedate_to_datetime(answer.headers["date"]).timestamp(), now)
    except (KeyError, ValueError):
        return None


def _settings(order: Order) -> GitHubSettings:
    try:
        return settings_of(order.settings)
    except ValueError as error:
        raise IssuerError(f"The resource's settings are wrong: {error}.", happened=False) from None


def _wanted(order: Order, settings: GitHubSettings) -> tuple[tuple[str, ...], dict[str, str]]:
    """Repositories and permissions of the order. A token is their product, so all actions must mean the same ones."""
    permissions: dict[str, str] = {}
    for action in (*order.actions, *order.limited):
        if action not in settings.permissions:
            raise IssuerError(f"The resource's settings give no permissions for {action}.", happened=False)
        for name, level in settings.permissions[action].items():
            permissions[name] = max(level, permissions.get(name, "read"), key=_LEVELS.index)
    parameter = settings.repository_parameter
    chosen = order.parameters.get(parameter) if parameter is not None and order.limited else None
    if chosen is None:
        return settings.repositories, permissions
    if order.actions:
        raise IssuerError("Ask for actions with and without a repository separately.", happened=False)
    if chosen not in settings.repositories:
        raise IssuerError("This repository is not one of the resource's.", happened=False)
    return (chosen,), permissions


def _read(body: bytes) -> tuple[str, int, Mapping[str, Any]]:
    """Token, its end, and what GitHub says it is for. An answer that cannot be read may still have made one."""
    try:
        told = json.loads(body)
        token, expires = told["token"], datetime.fromisoformat(told["expires_at"])
        if not (isinstance(token, str) and 0 < len(token) <= _MAX_TOKEN and token.isascii() and token.isprintable()):
            raise ValueError
        return token, int(expires.timestamp()), told
    except (ValueError, KeyError, TypeError, RecursionError):
        raise IssuerError("GitHub's answer was not understood.") from None


def _within(told: Mapping[str, Any], repositories: tuple[str, ...], permissions: Mapping[str, str]) -> bool:
    """Whether what was made is at most what was asked."""
    asked = {**_IMPLIED, **permissions}
    granted, reached = told.get("permissions"), told.get("repositories")
    if not isinstance(granted, Mapping) or not isinstance(reached, list) or told.get("repository_selection") == "all":
        return False
    names = {each.get("name") if isinstance(each, Mapping) else None for each in reached}
    return names <= set(repositories) and all(
        name in asked and level in _LEVELS and _LEVELS.index(level) <= _LEVELS.index(asked[name])
        for name, level in granted.items()
    )


def _iso(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"
