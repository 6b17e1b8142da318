"""Where the broker is and who is asking, from options, variables, the session file and the configuration here."""

import os
from pathlib import Path

import click

from broker.cli import sessions
from broker.cli.errors import NO_IDENTITY, USAGE, Failure
from broker.cli.http import Transport
from broker.cli.options import Settings, settings_of
from broker.cli.sessions import OperatorSession
from broker.sdk.identity import EnvIdentity, FileIdentity, GitHubIdentity, Identity, KeyIdentity
from broker.sdk.protocol import checked_issuer

TOKEN_VARIABLE = "TASKPASS_TOKEN"  # noqa: S105  (the name of a variable)


class Context:
    """What a command needs to talk to the broker. Everything is found out when it is first asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.transport = Transport(ca_file=settings.ca_file, debug=settings.debug)

    @classmethod
    def current(cls) -> "Context":
        """That of the running command."""
        return cls(settings_of(click.get_current_context()))

    def issuer(self) -> str:
        """The broker's issuer URL. Raises Failure when nothing says where it is, or says it wrongly."""
        url = self.settings.url or sessions.load()[1] or _configured_issuer()
        if url is None:
            raise Failure("usage", "Where is the broker?", exit_code=USAGE, next="Give --url URL, or set TASKPASS_URL.")
        try:
            return checked_issuer(url.rstrip("/"))
        except ValueError as error:
            raise Failure("usage", f"--url: {error}.", exit_code=USAGE) from None

    def identity(self) -> Identity | None:
        """The workload's identity, from the one source that is configured; None where there is none."""
        given = self.settings
        sources: list[tuple[str, bool]] = [
            ("--key", given.key is not None),
            ("--token-file", given.token_file is not None),
            ("--token-command", given.token_command is not None),
            ("--github", given.github),
        ]
        named = [name for name, there in sources if there]
        if len(named) > 1:
            raise Failure("usage", f"{' and '.join(named)} are two identities: give one.", exit_code=USAGE)
        if given.key is not None:
            if given.client_id is None:
                raise Failure(
                    "usage", "--key needs --client-id: the subject that it is registered for.", exit_code=USAGE
                )
            return KeyIdentity(client_id=given.client_id, key=given.key)
        if given.token_file is not None:
            return FileIdentity(given.token_file)
        if given.token_command is not None:
            from broker.cli.token_command import CommandIdentity

            return CommandIdentity(given.token_command)
        if given.github:
            return GitHubIdentity(send=self.transport.send)
        return EnvIdentity(TOKEN_VARIABLE) if os.environ.get(TOKEN_VARIABLE) else None

    def workload(self) -> Identity:
        """The workload's identity. Raises Failure (exit 4) when there is none."""
        identity = self.identity()
        if identity is None:
            raise Failure(
                "no_identity",
                "There is no workload identity to show.",
                exit_code=NO_IDENTITY,
                next="Give --token-file, --token-command, --key with --client-id, or --github; or set TASKPASS_TOKEN.",
            )
        return identity

    def operator(self) -> OperatorSession:
        """The operator session for this broker. Raises Failure (exit 4) when there is none that lives."""
        issuer = self.issuer()
        found = sessions.load()[0].get(issuer)
        if found is None or not found.live():
            what = (
                "There is no operator session" if found is None else f"The session of operator {found.operator} is over"
            )
            raise Failure(
                "no_identity",
                f"{what} for {issuer}.",
                exit_code=NO_IDENTITY,
                next="Log in: taskpass login OPERATOR --key FILE",
            )
        return found


def configuration_file() -> Path:
    """The configuration that server-side commands use by default."""
    return Path(os.environ.get("TASKPASS_CONFIG") or "taskpass.toml")


def _configured_issuer() -> str | None:
    """For commands that are typed beside the broker's own configuration."""
    import tomllib

    try:
        with configuration_file().open("rb") as file:
            issuer = tomllib.load(file).get("issuer")
    except (OSError, ValueError):
        return None
    return issuer if isinstance(issuer, str) else None
