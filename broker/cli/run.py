"""`taskpass run`: a command under a task of its own. The task ends with the command, however that comes about."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeVar

import click

from broker.cli.api import Api, segment
from broker.cli.asking import ask_of, asking_options, trigger_option
from broker.cli.context import TOKEN_VARIABLE, Context
from broker.cli.errors import USAGE, Failure
from broker.cli.injection import Injection, Renewal
from broker.cli.options import command
from broker.cli.secret_file import write_secret
from broker.sdk.errors import SdkError
from broker.sdk.protocol import Ask, Credential

T = TypeVar("T")

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BEATS_PER_TIMER = 3
_REFRESH_AT = 0.8
_RETRY_S = 5.0
_CANNOT_RUN, _NO_SUCH_COMMAND = 126, 127


class Interrupted(BaseException):
    """A signal came before the command was there to receive it."""

    def __init__(self, number: int) -> None:
        self.number = number


@command(
    short_help="Run a command under a task of its own, with its credentials.",
    context_settings={"ignore_unknown_options": False},
)
@click.option("--resource", metavar="AUDIENCE", help="What the token is for. Without it there is none.")
@asking_options
@click.option(
    "--secret",
    "secrets",
    multiple=True,
    metavar="'PREFIX=RESOURCE ACTION...'",
    help="A secret, in variables that begin with PREFIX; repeatable. Parameters follow as NAME=VALUE.",
)
@click.option(
    "--secret-file",
    "secret_files",
    multiple=True,
    metavar="'NAME=RESOURCE ACTION...'",
    help="A secret, in files (mode 0600, in memory where possible) of a directory named by the variable NAME; renewed "
    "before it ends, removed at the end.",
)
@click.option("--purpose", metavar="TEXT", help="What the task is for. Default: the name of the command.")
@trigger_option
@click.option("--on-behalf-of", metavar="WHO", help="For whom.")
@click.option("--deadline", type=click.IntRange(1), metavar="SECONDS", help="End the task at the latest after so long.")
@click.option(
    "--heartbeat",
    type=click.IntRange(1, 3600),
    metavar="SECONDS",
    help="End the task if this program is not heard from for so long (it then says so three times as often).",
)
@click.option(
    "--write-token",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Hand the token over in this file (mode 0600), kept fresh and removed at the end, not in the environment.",
)
@click.argument("words", nargs=-1, required=True, metavar="-- COMMAND...")
def run(
    resource: str | None,
    scopes: tuple[str, ...],
    actions: tuple[str, ...],
    params: tuple[str, ...],
    secrets: tuple[str, ...],
    secret_files: tuple[str, ...],
    purpose: str | None,
    trigger: str,
    on_behalf_of: str | None,
    deadline: int | None,
    heartbeat: int | None,
    write_token: Path | None,
    words: tuple[str, ...],
) -> int:
    r"""Open a task, get its credentials, run COMMAND with them, and end the task, and with it every credential.

    The command finds the token in TASKPASS_ACCESS_TOKEN, or the path of --write-token in TASKPASS_ACCESS_TOKEN_FILE,
    secrets where --secret and --secret-file put them, and the task in TASKPASS_TASK. Its exit code becomes this one's,
    128 plus the number of a signal that ended it. SIGINT, SIGTERM and SIGHUP are passed on to it. When a credential is
    refused the command is not run.

    \b
    Examples:
      taskpass run --resource https://invoices.example.com --scope invoices:read \
          --purpose "Answer dispute 4711" -- python answer.py 4711
      taskpass run --secret "AWS_=reports-bucket reports:read" -- aws s3 ls s3://reports/
      taskpass run --secret-file "DB=orders-db orders:read" -- python report.py
    """
    context = Context.current()
    with _Signals() as signals:
        try:
            ask = _ask(resource, scopes=scopes, actions=actions, params=params, file=write_token)
            work = _Work(context, ask, secrets=secrets, secret_files=secret_files)
            with work.task(
                purpose=purpose or Path(words[0]).name,
                trigger={"kind": trigger},
                on_behalf_of=on_behalf_of,
                deadline_seconds=deadline,
                heartbeat_seconds=heartbeat,
            ):
                return work.run(words, signals=signals, file=write_token, heartbeat_s=heartbeat)
        except Interrupted as interrupted:
            return 128 + interrupted.number


class _Signals:
    """Passes signals on to the child; before there is one, they end the command in order."""

    def __init__(self) -> None:
        self.child: subprocess.Popen[bytes] | None = None
        self.closing = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in FORWARDED:
            self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _received(self, number: int, _: FrameType | None) -> None:
        if self.closing:
            return  # the task is being ended: that is what the signal wants
        if self.child is None:
            raise Interrupted(number)
        if number == signal.SIGINT and _at_terminal():
            return  # the terminal has sent it to the child too
        self.child.send_signal(number)


def _at_terminal() -> bool:
    """Whether this is the foreground of a terminal, whose Ctrl-C reaches the child without our help."""
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except (OSError, ValueError):
        return False


def _ask(
    resource: str | None,
    *,
    scopes: Sequence[str],
    actions: Sequence[str],
    params: Sequence[str],
    file: Path | None,
) -> Ask | None:
    """What token is wanted, if any. Raises Failure before a task is opened."""
    if resource is not None:
        return ask_of(resource, scopes=scopes, actions=actions, params=params, task=None)
    if scopes or actions or params or file is not None:
        message = "--scope, --action, --param and --write-token are about a token: give its --resource too."
        raise Failure("usage", message, exit_code=USAGE)
    return None


class _Work:
    """One task and what happens under it."""

    def __init__(
        self, context: Context, ask: Ask | None, *, secrets: Sequence[str], secret_files: Sequence[str]
    ) -> None:
        self._api = Api.of_workload(context)
        self._ask = ask
        self._injection = Injection(self._api, variables=secrets, files=secret_files)
        if ask is None and not self._injection:
            message = "Give --resource for a token, or --secret or --secret-file."
            raise Failure("usage", message, exit_code=USAGE)
        self._id = ""
        self._outcome = "failed"

    @contextmanager
    def task(self, **wish: object) -> Iterator[None]:
        """Open the task, and end it whatever happens inside."""
        self._api.open_session()
        self._id = str(self._api.post("/v1/tasks", wish)["id"])
        try:
            yield
        finally:
            self._end()

    def run(self, words: Sequence[str], *, signals: _Signals, file: Path | None, heartbeat_s: int | None) -> int:
        """The child's exit code."""
        environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
        environment["TASKPASS_TASK"] = self._id
        renewals: list[Renewal] = []
        try:
            if self._ask is not None:
                renewals += self._hand_over(self._obtain(self._ask), file, environment)
            environment |= self._injection.obtain(self._id)
            renewals += self._injection.renewals(self._id)
            with self._kept_alive(renewals, heartbeat_s):
                code = self._wait(words, environment, signals)
        finally:
            signals.closing = True
            self._injection.remove()
            if file is not None:
                file.unlink(missing_ok=True)
        self._outcome = "completed" if code == 0 else f"exit {code}"
        return code

    def _hand_over(self, credential: Credential, file: Path | None, environment: dict[str, str]) -> list[Renewal]:
        """The token, where the command finds it; in a file it is renewed."""
        if file is None:
            environment["TASKPASS_ACCESS_TOKEN"] = credential.token
            return []
        write_secret(file, credential.token)
        environment["TASKPASS_ACCESS_TOKEN_FILE"] = str(file.absolute())

        def renew() -> float:
            assert self._ask is not None
            fresh = self._obtain(self._ask)
            write_secret(file, fresh.token)
            return fresh.expires_in

        return [(credential.expires_in, renew)]

    def _wait(self, words: Sequence[str], environment: Mapping[str, str], signals: _Signals) -> int:
        try:
            signals.child = subprocess.Popen(words, env=environment)  # noqa: S603  (the user's own command)
        except FileNotFoundError:
            raise Failure("not_run", f"There is no command {words[0]}.", exit_code=_NO_SUCH_COMMAND) from None
        except OSError as error:
            raise Failure("not_run", f"{words[0]} cannot be run: {error.strerror}.", exit_code=_CANNOT_RUN) from None
        code = signals.child.wait()
        return code if code >= 0 else 128 - code

    def _obtain(self, ask: Ask) -> Credential:
        return self._api.obtain(replace(ask, task=self._id))

    def _end(self) -> None:
        path = f"/v1/tasks/{segment(self._id)}/end"
        try:
            self._again(lambda: self._api.post(path, {"outcome": self._outcome}))
        except Failure as failure:
            click.echo(f"Task {self._id} could not be ended ({failure.message}); it ends at its deadline.", err=True)

    def _again(self, call: Callable[[], T]) -> T:
        """Once more with a new session if this one is over."""
        try:
            return call()
        except Failure as failure:
            if failure.code != "invalid_client":
                raise
            self._api.open_session()
            return call()

    @contextmanager
    def _kept_alive(self, renewals: Sequence[Renewal], heartbeat_s: int | None) -> Iterator[None]:
        """Beats and renews on threads of their own while the child runs."""
        over = threading.Event()
        threads = [threading.Thread(target=self._renew, args=(over, *each), daemon=True) for each in renewals]
        if heartbeat_s is not None:
            every = heartbeat_s / _BEATS_PER_TIMER
            threads.append(threading.Thread(target=self._beat, args=(over, every), daemon=True))
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            over.set()
            for thread in threads:
                thread.join()

    def _beat(self, over: threading.Event, every_s: float) -> None:
        path = f"/v1/tasks/{segment(self._id)}/heartbeat"
        while not over.wait(every_s):
            self._say_if_failed("heartbeat", lambda: self._again(lambda: self._api.post(path)))

    def _renew(self, over: threading.Event, life_s: float, renew: Callable[[], float]) -> None:
        pause = life_s * _REFRESH_AT
        while not over.wait(pause):
            life = self._say_if_failed("new credential", lambda: self._again(renew))
            pause = _RETRY_S if life is None else life * _REFRESH_AT

    def _say_if_failed(self, what: str, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except (Failure, SdkError, OSError) as error:
            code = getattr(error, "code", "system")
            click.echo(f"taskpass: no {what} ({code}): {error}", err=True)
            return None
