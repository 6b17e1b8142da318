"""A backend that outlives the broker's process: a directory, with a file for each login and session, and its issuer."""

from collections.abc import Callable, Iterator
from pathlib import Path

from issuers import Ending, Found, Handle, Intent, Minted, Order, Standing, Wish

PLACE = "INVARIANTS_BACKEND"


class FileIssuer:
    """A `SecretIssuer` of files. What a resource of the setting `foreseen` gets needs no session."""

    kind = "file"
    ending = Ending.REVOCABLE
    min_ttl_s = 5
    max_ttl_s = 3_600

    def __init__(self, place: Path) -> None:
        self.logins, self.sessions = place / "logins", place / "sessions"
        for folder in (self.logins, self.sessions):
            folder.mkdir(parents=True, exist_ok=True)

    def foreseen(self, order: Order) -> Handle | None:
        return {"login": f"tp_{order.jti.removeprefix('grt_')}"} if order.settings.get("foreseen") else None

    def prepare(self, order: Order) -> Handle:
        name = f"tp_{order.jti.removeprefix('grt_')}"
        (self.sessions / name).touch()
        return {"login": name}

    def issue(self, order: Order, prepared: Handle) -> Minted:
        (self.logins / prepared["login"]).write_text(str(order.exp))
        return Minted({"password": "x" * 20}, {**prepared, "made": "1"}, order.exp)

    def issue_when(self, wish: Wish, intent: Callable[[], Intent | None]) -> Minted | None:
        """Its transactions are in memory, as far as others see: with the process they are gone."""
        self.begin(wish)
        committed = intent()
        return None if committed is None else self.issue(*committed)

    def begin(self, wish: Wish) -> None:
        """From here on a transaction is open."""

    def renews(self, handle: Handle) -> bool:
        return "made" in handle

    def renew(self, handle: Handle, exp: int) -> int:
        with (self.logins / handle["login"]).open("r+") as file:  # what has gone does not come back
            file.write(str(exp))
        return exp

    def revoke(self, handle: Handle) -> None:
        (self.logins / handle["login"]).unlink(missing_ok=True)

    def status(self, handle: Handle) -> Found:
        return Found(Standing.LIVE if (self.logins / handle["login"]).exists() else Standing.GONE)

    def close(self, handle: Handle) -> None:
        (self.sessions / handle["login"]).unlink(missing_ok=True)

    def orphans(self) -> Iterator[Handle]:
        yield from ({"login": file.name} for file in self.logins.iterdir())
