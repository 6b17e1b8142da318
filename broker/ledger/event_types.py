"""The registry of event types: an append-only wire format.

A type, once released, keeps its name, its meaning and its required fields forever; a new optional field may be added.
The golden files under `tests/ledger/golden` pin the bytes of each. Fields that name things carry identifiers, never
secrets; personal text appears only as a commitment (`events.commitment`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class EventType:
    """One type: what it says happened, the fields that it must have and all that it may have."""

    name: str
    meaning: str
    required: frozenset[str]
    fields: frozenset[str]


def _type(name: str, meaning: str, required: str = "", optional: str = "") -> EventType:
    needed = frozenset(required.split())
    return EventType(name, meaning, needed, needed | frozenset(optional.split()))


def _table(types: Iterable[EventType]) -> Mapping[str, EventType]:
    table: dict[str, EventType] = {}
    for known in types:
        if known.name in table or known.fields & {"seq", "t", "type"}:
            raise ValueError(f"event type {known.name!r} is registered twice or redefines the envelope")
        table[known.name] = known
    return MappingProxyType(table)


# What every outcome of a credential request shares (commands.issue.Asked and Verdict).
_ASKED = "agent workload"
_ASKED_MAYBE = "proof task resource actions parameters traceparent"
_VERDICT = "outcome policies bundle registry"
_VERDICT_MAYBE = "why"

EVENT_TYPES = _table(
    (
        # --- the ledger and the process
        _type("ledger.created", "The ledger begins: its epoch, format and checkpoint origin.", "epoch format origin"),
        _type(
            "ledger.restored",
            "An operator accepted a ledger that was rolled back: a new epoch begins here. What was kept of the history"
            " that was lost is named as [size, root]; everything issued before is killed.",
            "epoch previous abandoned kids actor reason",
        ),
        _type("ledger.moved", "The last event here: the ledger was exported, and goes on elsewhere.", "actor reason"),
        _type("ledger.arrived", "The ledger goes on in this store, from an export of this size.", "size root kind"),
        _type(
            "ledger.archived",
            "The bytes of all events before a position are in the archive, where they were read back and compared.",
            "before root",
        ),
        _type(
            "broker.started",
            "A broker process began to serve; from a SQLite file, with the file's number in its file system.",
            "role version",
            "file",
        ),
        _type(
            "registry.loaded", "Another registry is in force, and what it changes.", "hash diff actor", "reason more"
        ),
        _type(
            "policies.loaded",
            "Another policy bundle is in force, and what it changes.",
            "hash diff actor",
            "reason more",
        ),
        _type("reload.failed", "Files were refused; the last good ones stay in force.", "what problems actor"),
        _type("alarm", "Something that a human should look at.", "alarm sentence", "subject actor"),
        # --- signing keys
        _type("key.published", "A public key that others learn of before it signs.", "kid purpose jwk"),
        _type("key.activated", "From here on this key signs.", "kid purpose actor reason"),
        _type(
            "key.retired",
            "The key signs nothing more; what it signed lives on until it expires.",
            "kid purpose actor reason",
        ),
        _type("keys.resealed", "Private parts of keys were sealed under another sealing key.", "kids seal actor"),
        # --- callers
        _type(
            "authenticated",
            "A caller spent its single-use proof on a route that has no event of its own.",
            "caller route proof",
        ),
        _type("session.opened", "A caller exchanged its proof for a session token.", "caller expires", "proof"),
        _type("refusals", "Refusals before authentication, counted per reason since a time.", "since counts"),
        # --- tasks
        _type(
            "task.opened",
            "One piece of work by one agent begins. Purpose, reference and on whose behalf are commitments.",
            "task agent workload purpose trigger deadline",
            "proof trigger_ref on_behalf_of heartbeat_ms parent traceparent",
        ),
        _type("task.ended", "The work is over, and so is everything under it.", "task agent reason live", "children"),
        _type("task.expired", "The deadline or a heartbeat was missed.", "task agent reason live", "children"),
        # --- requests for credentials
        _type(
            "issued",
            "A credential, decided and fixed. It leaves only after this is durable.",
            f"{_ASKED} {_VERDICT} task resource actions jti kid iat exp",
            f"{_ASKED_MAYBE} {_VERDICT_MAYBE} implicit",
        ),
        _type("failed", "An issuance that was committed and could not be minted: nothing left.", "jti task why"),
        # --- credentials that live at a backend: an intent, what finds it there, and how it ended
        _type(
            "issuing",
            "A credential at a backend, decided and fixed. Nothing has been asked of the backend yet.",
            f"{_ASKED} {_VERDICT} task resource actions jti issuer ending iat exp",
            f"{_ASKED_MAYBE} {_VERDICT_MAYBE} implicit",
        ),
        _type("prepared", "What will find the credential at its backend is on record.", "jti task issuer handle"),
        _type(
            "delivered",
            "The backend made it and every guard still held. It leaves only after this is durable.",
            "jti task issuer handle exp",
        ),
        _type(
            "renewing",
            "It is to live until `exp`, decided anew. Nothing has been asked of its backend yet.",
            f"{_ASKED} {_VERDICT} task resource actions jti issuer exp",
            f"{_ASKED_MAYBE} {_VERDICT_MAYBE}",
        ),
        _type("renewed", "Its backend lets it live until `exp`.", "jti task issuer exp"),
        _type("renewal.failed", "Its backend did not say that it lives any longer.", "jti task issuer why"),
        _type(
            "revoking",
            "It must end at its backend, and whoever asked for it has not got it, or gives it back.",
            "jti task issuer why",
            "handle actor",
        ),
        _type("gone", "A look at the backend found that it is not there any more.", "jti task issuer how", "note"),
        _type(
            "stuck",
            "A credential that must end is still there after many tries. The broker goes on trying.",
            "jti task issuer tries problem",
        ),
        _type(
            "orphan.ended",
            "The backend had something that bears our name and no grant owns. It is not there any more.",
            "issuer handle",
        ),
        _type(
            "refused",
            "An authenticated caller was refused, and why.",
            "reason",
            f"{_ASKED} {_ASKED_MAYBE} {_VERDICT} {_VERDICT_MAYBE} hold caller route",
        ),
        _type(
            "approval.requested",
            "The request waits for a human, who will be shown exactly what the digest covers.",
            f"{_ASKED} {_VERDICT} approval digest expires",
            f"{_ASKED_MAYBE} {_VERDICT_MAYBE}",
        ),
        # --- kills and who heard of them
        _type(
            "killed",
            "All that matches and has a lower position is dead, for good.",
            "kill target value matches actor reason tasks",
            "hold traceparent",
        ),
        _type("hold.lifted", "The standing stop is over; nothing revives.", "hold target value actor reason"),
        _type(
            "verifier.registered",
            "A verifier instance follows the feed.",
            "verifier instance audiences mode bound_ms leeway_ms",
            "proof",
        ),
        _type("acknowledged", "Verifier instances reported kills live in their processes.", "acks"),
    )
)
