"""The operator sessions of `taskpass login`: one file, readable by its owner only."""

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from broker.cli.errors import NO_IDENTITY, Failure
from broker.cli.secret_file import write_secret


@dataclass(frozen=True, slots=True)
class OperatorSession:
    """A short session. `expires` is in seconds since the epoch; `control` is where operators' requests go."""

    issuer: str
    control: str
    operator: str
    expires: int
    token: str = field(repr=False)

    def live(self) -> bool:
        """Whether it has more than a moment to live."""
        return self.expires > time.time() + 1


def sessions_file() -> Path:
    """Where they are kept."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "taskpass" / "sessions.json"


def load() -> tuple[dict[str, OperatorSession], str | None]:
    """The sessions by issuer, and the issuer of the latest one. Raises Failure for a file that others can read."""
    path = sessions_file()
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise Failure(
                    "no_identity",
                    f"{path} is open to others.",
                    exit_code=NO_IDENTITY,
                    next=f"rm {path}, and log in again.",
                )
            body = json.load(file)
        found = {issuer: OperatorSession(issuer=issuer, **each) for issuer, each in body["sessions"].items()}
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Failure(
            "no_identity", f"{path} cannot be read.", exit_code=NO_IDENTITY, next=f"rm {path}, and log in again."
        ) from error
    return found, body.get("latest") if body.get("latest") in found else None


def keep(session: OperatorSession) -> Path:
    """Remember a session, as the latest. Returns the file."""
    known, _ = load()
    return _write({**known, session.issuer: session}, session.issuer)


def forget(issuer: str | None) -> list[OperatorSession]:
    """Drop the session of one issuer, or all; returns the dropped ones."""
    known, latest = load()
    gone = [session for session in known.values() if issuer in (None, session.issuer)]
    if gone:
        left = {name: session for name, session in known.items() if session not in gone}
        _write(left, latest if latest in left else None)
    return gone


def _write(sessions: dict[str, OperatorSession], latest: str | None) -> Path:
    path = sessions_file()
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    body: dict[str, Any] = {"latest": latest, "sessions": {}}
    for issuer, session in sessions.items():
        body["sessions"][issuer] = {name: value for name, value in asdict(session).items() if name != "issuer"}
    write_secret(path, json.dumps(body))
    return path
