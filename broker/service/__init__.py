"""The broker's one door. Whoever wants something passes through one of these, `caller` first; each verb authorises,
decides, and commits state and event together.

    Issuance    a credential for one task: the numbered main path
    Credentials secrets at backends: the same path, then the backend, then a second commit
    Renewals    the same, for secrets that are to live longer
    Tasks       open, heartbeat, end
    KillSwitch  pause, kill, hold, resume, and receipts that prove it
    Evidence    explain, receipts, introspection, the ledger's proofs
    Admin       reload, key rotation
    Callers     who is asking, and sessions
"""

from dataclasses import dataclass

from broker.service.admin import Admin
from broker.service.callers import Callers
from broker.service.credentials import Credentials
from broker.service.evidence import Evidence
from broker.service.issuance import Issuance
from broker.service.kill_switch import KillSwitch
from broker.service.refusals import Refusals
from broker.service.renewals import Renewals
from broker.service.tasks import Tasks

__all__ = [
    "Admin",
    "Broker",
    "Callers",
    "Credentials",
    "Evidence",
    "Issuance",
    "KillSwitch",
    "Refusals",
    "Renewals",
    "Tasks",
]


@dataclass(frozen=True, slots=True)
class Broker:
    """All verbs of one broker process, assembled by `broker.app`."""

    callers: Callers
    issuance: Issuance
    credentials: Credentials
    renewals: Renewals
    tasks: Tasks
    kill_switch: KillSwitch
    evidence: Evidence
    admin: Admin
    refusals: Refusals
