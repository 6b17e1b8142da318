"""`taskpass ledger export | import | accept-restore | archive | show`: whole ledgers, restored ones, and old events.

Commands for whoever administers the machine: they use the store itself, not a broker.
"""

import os
import pwd
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli.context import configuration_file
from broker.cli.errors import NOT_FOUND, USAGE, Failure
from broker.cli.options import command, config_option
from broker.cli.output import Output
from broker.cli.text import clean, facts, moment, plural

if TYPE_CHECKING:
    from broker.config import Config
    from broker.custody import Acceptance
    from broker.ledger.transfer import Exported

_FILE = click.Path(dir_okay=False, path_type=Path)
_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_REASON = click.option("--reason", required=True, metavar="TEXT", help="Why; it is recorded in the ledger.")
_DAY_MS = 86_400_000


def _config(path: Path | None) -> "Config":
    from broker.config import load_config

    return load_config(path or configuration_file())


def _actor() -> str:
    """Who is at the machine, as the ledger records it."""
    try:
        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        name = str(os.getuid())
    return f"{name} on this machine"


@command("export")
@click.argument("file", type=_FILE)
@config_option
@click.option("--copy", is_flag=True, help="Only a copy: this ledger goes on, and what is imported counts as restored.")
@click.option("--reason", metavar="TEXT", help="Why it moves; it is recorded in the ledger. Needed without --copy.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def export(file: Path, config_path: Path | None, *, copy: bool, reason: str | None, yes: bool) -> None:
    r"""Write the whole ledger to FILE, to go on in another store. This one is sealed first, for good.

    From then on no process writes here any more: so two ledgers never issue at once. If the command is interrupted, run
    it again. FILE holds personal texts and the sealed signing keys: guard it, and remove it when it is imported.

    \b
    Example, from SQLite to PostgreSQL:
      taskpass ledger export move.ledger --reason "two brokers"
      # in taskpass.toml: ledger.url in place of ledger.path
      taskpass ledger import move.ledger
    """
    from broker.custody import copy_out, move_out
    from broker.stores import ledger_place

    config = _config(config_path)
    place = ledger_place(config)
    if not copy and reason is None:
        raise Failure("usage", "Give --reason; or --copy, if this ledger is to go on.", exit_code=USAGE)
    if not (copy or yes):
        click.confirm(f"{place} will never be written again. Move it?", abort=True, err=True)
    try:
        exported = copy_out(config, file) if copy else move_out(config, file, actor=_actor(), reason=reason or "")
    except OSError as error:
        raise Failure("file", f"{file}: {error.strerror or error}.") from error
    title = f"Copied {place} to {file}" if copy else f"Moved {place} to {file}: import it now; {place} is sealed"
    _tell(exported, file, title)


@command("import")
@click.argument("file", type=_FILE)
@config_option
def import_(file: Path, config_path: Path | None) -> None:
    """Put the ledger in FILE into the store that the configuration names, which must be empty.

    Everything is verified before anybody can open it: the tree, the signature, the signing keys. After a move the same
    epoch goes on, and verifiers notice nothing. After a copy, `taskpass ledger accept-restore` comes next.
    """
    from broker.custody import move_in
    from broker.stores import ledger_place

    config = _config(config_path)
    try:
        imported = move_in(config, file)
    except OSError as error:
        raise Failure("file", f"{error.filename or file}: {error.strerror or error}.") from error
    title = f"Imported {file} into {ledger_place(config)}"
    if imported.kind == "copy":
        title += "; it is a copy, and serves only after: taskpass ledger accept-restore --reason ..."
    _tell(imported, file, title)


def _tell(exported: "Exported", file: Path, title: str) -> None:
    from dataclasses import asdict

    body = {**asdict(exported), "file": str(file)}

    def human() -> str:
        rows = [
            ("ledger", f"{exported.origin}, epoch {exported.epoch}"),
            ("events", f"{exported.size}, the last at {moment(exported.time)}"),
            ("root", exported.root),
        ]
        return "\n".join([title, *facts(rows)])

    Output.current().one(body, human=human, name=lambda: str(file))


@command("accept-restore")
@config_option
@_REASON
@click.option("--no-hold", is_flag=True, help="Issue again at once, without a hold on everything.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def accept_restore(config_path: Path | None, reason: str, *, no_hold: bool, yes: bool) -> None:
    """Let a ledger that was restored from a backup serve again: new epoch, new keys, all that was ever issued dead.

    Stop the brokers first. Holds, kills, approvals and spent proofs from after the backup are lost. So a hold on
    everything stands until you lift it: pause again what was paused, then `taskpass holds lift`.
    """
    from broker.custody import accept
    from broker.stores import ledger_place

    config = _config(config_path)
    if not yes:
        click.confirm(f"Everything ever issued by {ledger_place(config)} dies. Accept it?", abort=True, err=True)
    done = accept(config, actor=_actor(), reason=reason, hold=not no_hold)
    accepted = done.accepted
    body = {
        "epoch": accepted.epoch,
        "previous": accepted.previous,
        "position": accepted.seq,
        "kill": accepted.kill,
        "hold": accepted.hold,
        "tasks": accepted.tasks,
        "kids": accepted.kids,
        "given_up": done.given_up,
        "not_kept": done.not_kept,
    }
    Output.current().one(body, human=lambda: _accepted(done), name=lambda: accepted.epoch)


def _accepted(done: "Acceptance") -> str:
    accepted = done.accepted
    rows = [
        ("killed", f"everything before position {accepted.seq}, {plural(len(accepted.kids), 'signing key')}"),
        ("tasks", f"{accepted.tasks} open ones ended"),
        ("hold", f"{accepted.hold}: taskpass holds lift {accepted.hold}" if accepted.hold else "none"),
        ("given up", ", ".join(f"a history of {size} events" for size in done.given_up) or "no kept checkpoint"),
        *(("not kept", sentence) for sentence in done.not_kept),
    ]
    return "\n".join([f"Accepted: epoch {accepted.epoch} begins, {accepted.previous} is over", *facts(rows)])


@command("archive")
@config_option
@click.option("--before", required=True, metavar="DATE|DAYS", help="2026-01-31 (UTC), or 400d: older events are moved.")
@click.option("--to", "directory", type=_DIRECTORY, help="Default: retention.archive_path of the configuration.")
@click.option("--dry-run", is_flag=True, help="Only say what would be moved.")
def archive(config_path: Path | None, before: str, directory: Path | None, *, dry_run: bool) -> None:
    """Move old events into archive files, where they still verify against the tree, and erase their personal texts.

    Brokers may go on meanwhile. Give them `retention.archive_path`, or they cannot show what is in the archive.
    """
    from broker.custody import archive_events

    config = _config(config_path)
    target = directory or config.retention.archive_path
    if target is None:
        raise Failure("usage", "Where to? Give --to DIRECTORY, or configure retention.archive_path.", exit_code=USAGE)
    try:
        done = archive_events(config, target, before_ms=_moment(before), dry_run=dry_run)
    except OSError as error:
        raise Failure("file", f"{error.filename or target}: {error.strerror or error}.") from error
    count = done.stop - done.start
    body = {"from": done.start, "before": done.stop, "events": count, "archive": str(target), "dry_run": dry_run}
    verb = "Would move" if dry_run else "Moved"
    sentence = f"{verb} {plural(count, 'event')} to {target}" + (
        f": positions {done.start} to {done.stop - 1}" if count else ""
    )
    Output.current().one(body, human=lambda: sentence, name=lambda: str(done.stop))


def _moment(text: str) -> int:
    """Milliseconds of a date or of so many days ago."""
    now = datetime.now(UTC)
    try:
        if text.endswith("d"):
            return int((now - timedelta(days=int(text[:-1]))).timestamp() * 1000)
        return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)
    except (ValueError, OverflowError) as error:
        raise Failure("usage", "--before: a date such as 2026-01-31, or days such as 400d.", exit_code=USAGE) from error


@command("show")
@click.argument("position", type=click.IntRange(0))
@click.option("--archive", "directory", type=_DIRECTORY, required=True, help="The archive's directory.")
def show(position: int, directory: Path) -> None:
    """Print the event at POSITION from an archive, without a broker. It is compared with the hash in its tile."""
    from broker.errors import Conflict, NotFound
    from broker.ledger.archive import Archive
    from broker.ledger.events import parse

    try:
        event = parse(Archive(directory).event(position))
    except NotFound as error:
        raise Failure("not_found", error.sentence, exit_code=NOT_FOUND) from error
    except Conflict as error:
        raise Failure("archive_damaged", error.sentence) from error
    body: dict[str, Any] = {"position": event.seq, "at": event.t, "type": event.type, "body": event.body}
    body["bytes"] = event.data.decode()
    Output.current().one(body, human=lambda: clean(event.data.decode()), name=lambda: str(event.seq))


COMMANDS = (export, import_, accept_restore, archive, show)
