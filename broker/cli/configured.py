"""Which of the configured issuers a command is about."""

from typing import TYPE_CHECKING

from broker.cli.errors import USAGE, Failure

if TYPE_CHECKING:
    from broker.config import Config


def issuer_named(config: "Config", kind: str, name: str | None) -> str:
    """The issuer of this kind that is meant: the only one, if none is named. Raises Failure."""
    known = [each for each, section in config.issuers.items() if section.kind == kind]
    if name is None and len(known) == 1:
        return known[0]
    if name is None or name not in known:
        listed = (
            f"configured are {', '.join(known)}" if known else f"none is configured ([issuers.NAME], kind = {kind})"
        )
        raise Failure("usage", f"Which issuer of kind {kind}? {listed}.", exit_code=USAGE, next="Give --issuer NAME.")
    return name
