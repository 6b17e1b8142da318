"""A workload identity that another command prints: any platform's own tool for identity tokens."""

import os
import shlex
import subprocess

from broker.cli.errors import NO_IDENTITY, Failure

_TIMEOUT_S = 30


class CommandIdentity:
    """Runs the command for each assertion, without a shell. `{audience}` in it, and `TASKPASS_AUDIENCE` in its
    environment, name whom the token must be for.
    """

    def __init__(self, command: str) -> None:
        self._command = command

    def assertion(self, audience: str) -> str:
        """The one word that the command prints. Raises Failure."""
        try:
            words = [word.replace("{audience}", audience) for word in shlex.split(self._command)]
            ran = subprocess.run(  # noqa: S603  (the user's own command)
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_TIMEOUT_S,
                check=False,
                env={**os.environ, "TASKPASS_AUDIENCE": audience},
            )
        except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
            raise _failed(f"cannot be run: {type(error).__name__}") from error
        token = ran.stdout.strip().decode("ascii", "replace")
        if ran.returncode != 0:
            said = ran.stderr.decode(errors="replace").strip().splitlines()
            raise _failed(f"exited with {ran.returncode}{': ' + said[-1][:200] if said else ''}")
        if token.count(".") != 2 or len(token.split()) != 1:
            raise _failed("did not print a JWT, and only that")
        return token


def _failed(how: str) -> Failure:
    return Failure("no_identity", f"The command of --token-command {how}.", exit_code=NO_IDENTITY)
