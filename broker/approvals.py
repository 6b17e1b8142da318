"""Digest-bound approvals: what exactly a human is asked to approve.

The digest covers the canonical bytes (RFC 8785) of who, under which task, may do what, with which parameters, under
which policy bundle. Another parameter, another task or another bundle is another request. Deciding on one is not part
of this module yet; a request is recorded, found again, and expires.
"""

import hashlib
from dataclasses import dataclass

import rfc8785

from broker.model import Ask

PENDING_MS = 3_600_000
"""How long a request waits for a human before it has to be asked anew."""


@dataclass(frozen=True, slots=True)
class Intent:
    """The canonical bytes of one exact request, and their SHA-256."""

    canonical: bytes
    digest: str


def intent(*, agent: str, task: str | None, ask: Ask, policy_hash: str) -> Intent:
    """The intent of a request. Floats cannot reach it: parameters are strings, integers and booleans."""
    canonical = rfc8785.dumps(
        {
            "agent": agent,
            "task": task or "",
            "resource": ask.resource,
            "actions": list(ask.actions),
            "parameters": dict(ask.parameters),
            "policy": policy_hash,
        }
    )
    return Intent(canonical, hashlib.sha256(canonical).hexdigest())
