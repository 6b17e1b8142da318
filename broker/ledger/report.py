"""What an audit of a ledger found: each finding says what, where, and what that means."""

from dataclasses import asdict, dataclass, field
from typing import Any, Final

_MOST_FINDINGS: Final = 200

_MEANING: Final = {
    "not_a_ledger": "This is no ledger of this program, or it was damaged beyond recognition.",
    "unreadable": "The store cannot read this part: it is damaged.",
    "file_damaged": "The database's own structure is damaged.",
    "wal_unreadable": "The write-ahead log has frames that SQLite will not read: a write that a crash tore and that "
    "nobody was answered for, or damage that hides committed events. A kept checkpoint tells which.",
    "schema_changed": "A table, index, trigger or view is not the one that this version creates.",
    "schema_newer": "A newer program upgraded this database: what it added can only be checked by that program.",
    "event_missing": "Events were deleted here.",
    "event_malformed": "These bytes were not written by a broker.",
    "event_moved": "This event was written for another position: it was moved, copied or renumbered.",
    "event_changed": "The bytes do not hash to the leaf that was stored with them: one of the two was changed.",
    "time_backwards": "Ledger time never goes back: this event was changed or moved.",
    "no_genesis": "The ledger does not begin as one.",
    "tile_wrong": "The stored hashes are not those of the events: one of the two was changed.",
    "tile_surplus": "Hashes are stored for events that are not there: the tail was cut off, or rows were added.",
    "archived_undeclared": "Events are missing that no event says were archived: they were deleted.",
    "head_wrong": "The head is not that of these events: it was changed, or events were added or removed.",
    "checkpoint_malformed": "What is stored as a checkpoint is none.",
    "checkpoint_signature": "No known key signed this checkpoint as it stands.",
    "checkpoint_beyond": "A checkpoint was signed over more events than there are: the tail was cut off.",
    "checkpoint_forked": "A signed checkpoint says another root for this size: history up to it was rewritten.",
    "kept_unusable": "The kept checkpoint cannot be used: malformed, of another ledger, or not signed by a known key.",
    "kept_beyond": "The ledger is shorter than a checkpoint that was kept: it was truncated or rolled back.",
    "kept_forked": "The ledger's history is not the one that the kept checkpoint was signed over: it was rewritten.",
    "text_wrong": "A personal text does not match the commitment in its event.",
    "bundle_wrong": "A kept registry or policy bundle does not match its hash.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be: what, where, and what it means. A warning alone makes nothing unsound."""

    code: str
    position: str
    detail: str
    meaning: str
    warning: bool = False


@dataclass(slots=True)
class Report:
    """The outcome of an audit. `root` is hex; `time` is the last event's, ms."""

    epoch: str = ""
    origin: str = ""
    size: int = 0
    root: str = ""
    time: int = 0
    archived: int = 0  # events before this position are in the archive
    from_archive: int = 0  # how many of them were read there
    checkpoints: int = 0  # stored ones that were checked
    kept: int = 0  # kept ones that the ledger extends
    keys: tuple[str, ...] = ()  # the names and ids of the keys whose signatures counted
    keys_from_ledger: bool = False  # nobody gave a key: signatures show only that the ledger agrees with itself
    findings: list[Finding] = field(default_factory=list)
    more_findings: int = 0  # beyond those listed

    @property
    def sound(self) -> bool:
        """Whether nothing speaks against the ledger."""
        return self.more_findings == 0 and all(finding.warning for finding in self.findings)

    def add(self, code: str, position: str, detail: str, *, warning: bool = False) -> None:
        """Note one finding."""
        if len(self.findings) < _MOST_FINDINGS:
            self.findings.append(Finding(code, position, detail, _MEANING[code], warning))
        else:
            self.more_findings += 1

    def to_json(self) -> dict[str, Any]:
        """As printed by `taskpass ledger verify -o json`."""
        return {"sound": self.sound, **asdict(self)}
