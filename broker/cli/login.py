"""`taskpass login` and `logout`: the operator's session on this machine."""

from pathlib import Path

import click

from broker.cli import sessions
from broker.cli.api import session_for
from broker.cli.context import Context
from broker.cli.options import command
from broker.cli.output import Output
from broker.cli.text import clock, facts
from broker.sdk.identity import KeyIdentity


@command(short_help="Open a short operator session with your registered key.")
@click.argument("operator")
@click.option(
    "--key",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Your private key (PEM); its public half is in the registry.",
)
def login(operator: str, key: Path) -> None:
    r"""Open a session as OPERATOR, for pause, kill, resume and the other operator's commands.

    It lasts a quarter of an hour and is kept in a file that only you can read. This broker becomes the default one.

    \b
    Example:
      taskpass login operator --key keys/operator.pem --url https://taskpass.example.com
    """
    identity = KeyIdentity(client_id=operator, key=key)
    session = session_for(Context.current(), operator=operator, identity=identity)
    file = sessions.keep(session)
    body = {
        "operator": session.operator,
        "issuer": session.issuer,
        "control": session.control,
        "expires": session.expires * 1000,
        "file": str(file),
    }
    lines = facts([("broker", session.issuer), ("until", clock(session.expires * 1000)), ("kept in", file)])
    Output.current().one(
        body, human=lambda: "\n".join([f"operator {session.operator}", *lines]), name=lambda: session.operator
    )


@command(short_help="Forget the operator session.")
@click.option("--all", "everywhere", is_flag=True, help="The sessions for all brokers.")
def logout(everywhere: bool) -> None:
    """Remove the operator session from this machine. It ends at the broker when its quarter of an hour is over."""
    gone = sessions.forget(None if everywhere else Context.current().issuer())
    output = Output.current()
    output.many(
        [{"operator": session.operator, "issuer": session.issuer} for session in gone],
        [("FORGOTTEN", "operator"), ("BROKER", "issuer")],
        name="operator",
    )
