"""The secrets of one `taskpass run`: obtained under its task, handed over in variables or files, renewed, removed."""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from broker.cli.api import Api
from broker.cli.errors import USAGE, Failure
from broker.cli.secret import get, variables
from broker.sdk.secret import Secret

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_MEMBER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}")

_AT_ITS_LIMIT = "at_its_limit"  # it lives as long as its task already
_NEVER_AGAIN_S = 365 * 86_400.0

Renewal = tuple[float, Callable[[], float]]
"""How many seconds something still lives, and what makes the next one and says the same of it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One secret, and the name that it is handed over under."""

    name: str
    resource: str
    actions: tuple[str, ...]
    params: tuple[str, ...]

    @classmethod
    def of(cls, option: str, text: str) -> "Wanted":
        """Of `NAME=RESOURCE ACTION... [PARAMETER=VALUE...]`. Raises Failure."""
        name, equals, rest = text.partition("=")
        words = rest.split()
        params = tuple(word for word in words[1:] if _PARAMETER.fullmatch(word))
        actions = tuple(word for word in words[1:] if word not in params)
        if not equals or not _NAME.fullmatch(name) or not actions:
            message = f"{option} {text!r}: write 'NAME=RESOURCE ACTION...', in quotes."
            raise Failure("usage", message, exit_code=USAGE)
        return cls(name, words[0], actions, params)


class Injection:
    """What a run's command gets of secrets, and what it leaves behind: nothing."""

    def __init__(self, api: Api, *, variables: Sequence[str] = (), files: Sequence[str] = ()) -> None:
        """Raises Failure for an option that cannot be read."""
        self._api = api
        self._in_variables = [Wanted.of("--secret", text) for text in variables]
        self._in_files = [Wanted.of("--secret-file", text) for text in files]
        names = [wanted.name for wanted in (*self._in_variables, *self._in_files)]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise Failure("usage", f"Two secrets cannot both be called {twice}.", exit_code=USAGE)
        self._directory: Path | None = None
        self._held: list[tuple[Wanted, Secret]] = []
        self._in_environment: list[Secret] = []
        self._versions = 0

    def __bool__(self) -> bool:
        """Whether any are wanted."""
        return bool(self._in_variables or self._in_files)

    def obtain(self, task: str) -> dict[str, str]:
        """The variables that the command gets. Raises Failure."""
        environment: dict[str, str] = {}
        for wanted in self._in_variables:
            made = self._get(wanted, task)
            environment |= variables(made, wanted.name)
            self._in_environment.append(made)
        for wanted in self._in_files:
            made = self._get(wanted, task)
            environment[wanted.name] = str(self._write(wanted, made))
            self._held.append((wanted, made))
        return environment

    def renewals(self, task: str) -> Iterator[Renewal]:
        """Those in files are replaced. A variable cannot be changed once the command runs, so what is in one is made to
        live longer where its backend does that.
        """
        for wanted, made in self._held:

            def replace(wanted: Wanted = wanted) -> float:
                fresh = self._get(wanted, task)
                self._write(wanted, fresh)
                return _life(fresh.expires_at)

            yield _life(made.expires_at), replace
        for made in self._in_environment:

            def prolong(made: Secret = made) -> float:
                return self._prolonged(made)

            if made.renewable:
                yield _life(made.expires_at), prolong

    def _prolonged(self, made: Secret) -> float:
        try:
            return _life(str(self._api.renew(made.id)["expires_at"]))
        except Failure as failure:
            if failure.members.get("outcome") != _AT_ITS_LIMIT:
                raise
            return _NEVER_AGAIN_S

    def remove(self) -> None:
        """Remove every file."""
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def _get(self, wanted: Wanted, task: str) -> Secret:
        return get(self._api, wanted.resource, actions=wanted.actions, params=wanted.params, task=task, ttl=None)

    def _write(self, wanted: Wanted, made: Secret) -> Path:
        """One file for each member, in a directory that is replaced as a whole: a reader never mixes two secrets."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="taskpass-", dir=_in_memory()))  # mode 0700
        self._versions += 1
        fresh, link = self._directory / f".{wanted.name}.{self._versions}", self._directory / wanted.name
        before = link.resolve() if link.is_symlink() else None
        fresh.mkdir(mode=0o700)
        for name, value in made.values.items():
            if not _MEMBER.fullmatch(name):
                raise Failure("unfit", f"The secrets of {made.resource} have a member that cannot be a file's name.")
            descriptor = os.open(fresh / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(value)
        beside = self._directory / f".{wanted.name}.new"
        beside.symlink_to(fresh.name)
        beside.replace(link)
        if before is not None:
            shutil.rmtree(before, ignore_errors=True)
        return link


def _in_memory() -> str | None:
    """Where files are in memory alone: the user's runtime directory, else shared memory. None: there is neither."""
    for place in (os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm"):  # noqa: S108  (a private directory is made in it)
        if place and Path(place).is_dir() and os.access(place, os.W_OK | os.X_OK):
            return place
    return None


def _life(expires_at: str) -> float:
    return max(1.0, datetime.fromisoformat(expires_at).timestamp() - time.time())
