"""`taskpass ledger`: read it, keep its checkpoints, prove an event, verify a copy."""

from base64 import b64encode, urlsafe_b64decode
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from broker.cli import custody
from broker.cli.api import Api
from broker.cli.context import Context, configuration_file
from broker.cli.errors import DONE, FAILED, NOT_FOUND, USAGE, Failure
from broker.cli.options import config_option, group
from broker.cli.output import Output
from broker.cli.text import clean, clock, facts, moment, plural

if TYPE_CHECKING:
    from broker.ledger.checkpoint import VerifierKey
    from broker.ledger.verify import Store

_PAGE = 1000
_FILE = click.Path(dir_okay=False, path_type=Path)
_KEYS = click.option(
    "--checkpoint-key",
    "key_texts",
    multiple=True,
    metavar="NAME+HASH+KEY",
    help="Believe checkpoints that this key signed; repeatable. Default: what the ledger itself publishes.",
)


@group(short_help="Read, prove and verify the ledger.")
def ledger() -> None:
    r"""The append-only, Merkle-hashed log that everything is decided by.

    \b
    Keep checkpoints outside of it, and verify against them:
      taskpass ledger checkpoint > kept/$(date +%F).note
      taskpass ledger verify copy-of-ledger.db --checkpoint kept/2026-11-21.note
    """


for _each in custody.COMMANDS:
    ledger.add_command(_each)


@ledger.command()
@config_option
def create(config_path: Path | None) -> None:
    """Create the ledger that the configuration names, with its first signing keys. Never touches an existing one."""
    from broker.config import load_config
    from broker.stores import create as create_ledger
    from broker.stores import ledger_place

    config = load_config(config_path or configuration_file())
    create_ledger(config)
    path = ledger_place(config)
    Output.current().one({"ledger": path}, human=lambda: f"Created {path}", name=lambda: path)


@ledger.command("ls")
@click.option("--from", "start", type=click.IntRange(0), default=0, show_default=True, metavar="POSITION")
@click.option("--limit", type=click.IntRange(1, _PAGE), default=100, show_default=True)
def list_(start: int, limit: int) -> None:
    """List events from a position on."""
    rows = Api.of_operator(Context.current()).get("/v1/ledger", **{"from": start, "limit": limit})
    Output.current().many(
        rows,
        [("POSITION", "position"), ("AT", lambda row: clock(row["at"])), ("TYPE", "type"), ("ABOUT", _about)],
        name="position",
    )


def _about(row: Mapping[str, Any]) -> str:
    """The members that say most, in one line."""
    body = row["body"]
    wanted = (
        "agent",
        "task",
        "resource",
        "actions",
        "outcome",
        "policies",
        "kill",
        "target",
        "value",
        "hold",
        "verifier",
        "caller",
        "kid",
        "purpose",
        "reason",
        "why",
        "actor",
        "approval",
        "counts",
        "role",
    )
    shown = []
    for name in wanted:
        value = body.get(name)
        if value not in (None, "", [], {}) and not (isinstance(value, str) and len(value) > 80):
            text = " ".join(str(each) for each in value) if isinstance(value, list) else str(value)
            shown.append(f"{name}={text}")
    return " ".join(shown)


@ledger.command()
def checkpoint() -> None:
    """Print a signed checkpoint of the tree as it stands (C2SP signed note). Keep it somewhere else."""
    note = Api.of_anyone(Context.current(), at_control=True).text("/v1/ledger/checkpoint")
    origin, size, root = note.split("\n")[:3]
    body = {"origin": origin, "size": int(size), "root": root, "note": note}
    Output.current().one(body, human=lambda: note.rstrip("\n"), name=lambda: size)


@ledger.command()
@click.argument("position", type=click.IntRange(0))
@_KEYS
def proof(position: int, key_texts: tuple[str, ...]) -> None:
    """Fetch the proof that the event at POSITION is in the tree, and check it here: bytes, path, root, signature."""
    from broker.ledger.checkpoint import NoteInvalid
    from broker.ledger.events import EventMalformed
    from broker.ledger.merkle import ProofInvalid
    from broker.ledger.verify import verify_event_proof

    api = Api.of_operator(Context.current())
    found = api.get(f"/v1/ledger/proof/{position}")
    events = api.get("/v1/ledger", **{"from": position, "limit": 1})
    if not events:
        raise Failure("not_found", f"There is no position {position}.", exit_code=NOT_FOUND)
    keys, where = _keys_given(key_texts) or _published_keys(api)
    try:
        event = verify_event_proof(events[0]["bytes"].encode(), found, keys=keys)
    except (ProofInvalid, NoteInvalid, EventMalformed, KeyError, TypeError, ValueError) as error:
        raise Failure(
            "proof_invalid",
            f"The proof of position {position} does NOT hold: {error}.",
            next="The answer, or the ledger, is not what was signed: verify a copy of the ledger.",
        ) from error
    signers = [str(key) for key in keys]
    body = {**found, "type": event.type, "verified": True, "keys": signers, "keys_from": where}
    Output.current().one(body, human=lambda: _proven(body), name=lambda: found["root"])


def _proven(body: Mapping[str, Any]) -> str:
    lines = facts(
        [
            ("event", f"{body['type']}, leaf {body['leaf']}"),
            ("path", f"{plural(len(body['proof']), 'hash', 'hashes')} to the root {body['root']}"),
            ("signed in", f"a checkpoint of {body['size']} events, by {body['keys'][0].partition('+')[0]}"),
            ("key", f"{' '.join(body['keys'])} ({body['keys_from']})"),
        ]
    )
    return "\n".join([f"Verified: position {body['seq']} is in the ledger.", *lines])


@ledger.command()
@click.argument("file", type=_FILE, required=False)
@click.option(
    "--checkpoint",
    "kept",
    type=_FILE,
    multiple=True,
    metavar="FILE",
    help="A checkpoint that was kept elsewhere; repeatable. Only with one can a cut-off tail be noticed.",
)
@click.option(
    "--archive",
    type=click.Path(file_okay=False, path_type=Path),
    help="Read archived events here. Default, without FILE: retention.archive_path of the configuration.",
)
@_KEYS
def verify(file: Path | None, kept: tuple[Path, ...], archive: Path | None, key_texts: tuple[str, ...]) -> int:
    """Audit a ledger FILE, or a copy, without a broker: every hash is computed anew from the bytes of the events.

    Without FILE: the ledger of the configuration here. Exit code 1 when anything speaks against it.
    """
    from broker.ledger.archive import Archive
    from broker.ledger.verify import verify_store

    store, place, configured = (*_store_of(file), None) if file else _configured_ledger()
    old = archive or configured
    given = _keys_given(key_texts)
    report = verify_store(
        store,
        keys=given[0] if given else (),
        kept=[_note(each) for each in kept],
        archive=Archive(old) if old else None,
    )
    body = report.to_json()
    Output.current().one(body, human=lambda: _audited(body, place), name=lambda: report.root)
    return DONE if report.sound else FAILED


def _audited(body: Mapping[str, Any], place: str) -> str:
    verdict = (
        click.style("sound", fg="green", bold=True) if body["sound"] else click.style("NOT SOUND", fg="red", bold=True)
    )
    trusted = "published by the ledger itself: give --checkpoint-key" if body["keys_from_ledger"] else "as given"
    lines = facts(
        [
            ("ledger", f"{body['origin']}, epoch {body['epoch']}"),
            ("events", f"{body['size']}, the last at {moment(body['time'])}"),
            ("archived", _archived(body)),
            ("root", b64encode(bytes.fromhex(body["root"])).decode() if body["root"] else None),
            (
                "checkpoints",
                f"{body['checkpoints']} stored ones fit"
                + (f", {body['kept']} kept ones are extended" if body["kept"] else ""),
            ),
            ("keys", f"{' '.join(body['keys'])} ({trusted})" if body["keys"] else None),
            ("note", None if body["kept"] else "no kept checkpoint was given, so a cut-off tail would go unnoticed"),
        ]
    )
    for finding in body["findings"]:
        mark = "warning" if finding["warning"] else "finding"
        lines.append(f"  {mark}: {clean(finding['position'])}: {finding['meaning']} ({clean(finding['detail'])})")
    if body["more_findings"]:
        lines.append(f"  and {body['more_findings']} more")
    return "\n".join([f"{place}: {verdict}", *lines])


def _archived(body: Mapping[str, Any]) -> str | None:
    if not body["archived"]:
        return None
    read = (
        f"{body['from_archive']} read there"
        if body["from_archive"]
        else "verified by their hashes only: give --archive"
    )
    return f"events before position {body['archived']}; {read}"


def _note(path: Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise Failure("usage", f"{path} is no checkpoint: not UTF-8.", exit_code=USAGE) from error


def _store_of(file: Path) -> "tuple[Store, str]":
    from broker.ledger.sqlite_audit import SqliteStore

    return SqliteStore(file), str(file)


def _configured_ledger() -> "tuple[Store, str, Path | None]":
    from broker.config import load_config
    from broker.stores import ledger_place, ledger_to_verify

    config = load_config(configuration_file())
    return ledger_to_verify(config), ledger_place(config), config.retention.archive_path


def _keys_given(texts: tuple[str, ...]) -> "tuple[list[VerifierKey], str] | None":
    from broker.ledger.checkpoint import NoteInvalid, VerifierKey

    try:
        return ([VerifierKey.parse(text) for text in texts], "as given") if texts else None
    except NoteInvalid as error:
        raise Failure("usage", f"--checkpoint-key: {error}.", exit_code=USAGE) from error


def _published_keys(api: Api) -> "tuple[list[VerifierKey], str]":
    """The keys that the ledger's own events publish: enough to find changes, not to find a forger of everything."""
    from broker.ledger.checkpoint import VerifierKey

    keys: list[VerifierKey] = []
    start, origin = 0, ""
    while events := api.get("/v1/ledger", **{"from": start, "limit": _PAGE}):
        for event in events:
            if event["type"] == "ledger.created":
                origin = event["body"]["origin"]
            elif event["type"] == "key.published" and event["body"].get("purpose") == "checkpoint":
                keys.append(VerifierKey(origin, urlsafe_b64decode(event["body"]["jwk"]["x"] + "=")))
        start += len(events)
        if keys or len(events) < _PAGE:  # the first one stands at the beginning; a ledger may be long
            break
    return keys, "published by the ledger itself: give --checkpoint-key"
