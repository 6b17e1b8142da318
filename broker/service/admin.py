"""Operators' upkeep verbs: reload what is registered and permitted, rotate signing keys."""

import asyncio
from base64 import urlsafe_b64decode
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import policies
from broker.errors import ConfigurationInvalid, Conflict, Malformed, Problem
from broker.keys import Keyring, Purpose
from broker.ledger import Ledger, views
from broker.ledger.checkpoint import VerifierKey
from broker.ledger.commands.admin import LoadBundle, PublishNextKey, RefuseReload, RotateKeys, StopIssuance, Together
from broker.ledger.writer import Writer
from broker.model import Caller, OperatorCaller, Right, SystemCaller
from broker.registry import Registry, diff, load
from broker.rules import RulesInForce, bundle_content, bundle_from_content, trust_rows, vocabulary
from broker.service.callers import need
from broker.service.reasons import checked_reason
from policies.bundle import Bundle, load_directory
from policies.model import Difference
from policies.model import diff as diff_bundles

What = Literal["registry", "policies", "all"]


@dataclass(frozen=True, slots=True)
class Loaded:
    """Files that load and fit together, not yet in force."""

    registry: Registry
    bundle: Bundle


class Admin:
    """Reload and rotation. Both are ledger events."""

    def __init__(
        self,
        *,
        rules: RulesInForce,
        ledger: Ledger,
        writer: Writer,
        keyring: Keyring,
        origin: str,
        registry_dir: Path,
        policies_dir: Path,
        check_settings: Callable[[Registry], Sequence[Problem]],
        now: Callable[[], int],
    ) -> None:
        self._rules = rules
        self._ledger = ledger
        self._writer = writer
        self._keyring = keyring
        self._origin = origin
        self._registry_dir = registry_dir
        self._policies_dir = policies_dir
        self._check_settings = check_settings
        self._now = now

    async def reload(
        self, caller: Caller, what: What, *, dry_run: bool = False, reason: str | None = None
    ) -> dict[str, Any]:
        """Read the files and put them in force, atomically: all of it, or nothing and the last good rules stay.

        Raises ConfigurationInvalid with every problem. A dry run answers with the difference only.
        """
        if what not in ("registry", "policies", "all"):
            raise Malformed("`what` must be registry, policies or all.")
        actor = "taskpass" if isinstance(caller, SystemCaller) else need(caller, Right.RELOAD).id
        reason = None if reason is None else checked_reason(reason)
        try:
            loaded = await asyncio.to_thread(self.read_files, what)
        except ConfigurationInvalid as error:
            if not dry_run:
                await self._writer.submit(
                    RefuseReload(what, [str(problem) for problem in error.problems] or [error.sentence], actor)
                )
            raise
        commands = self.commands(loaded, actor, reason)
        answer: dict[str, Any] = {
            "registry": {"hash": loaded.registry.hash, "changes": list(commands[0].diff)},
            "policies": {"hash": loaded.bundle.hash, "changes": list(commands[1].diff)},
            "blocked_agents": [str(problem) for problem in loaded.registry.problems(self._now())],
        }
        if dry_run:
            return {"dry_run": True, **answer}
        # Issuance restarts once everything on disk loads, not when half of it does.
        restart = [StopIssuance(None)] if what == "all" else []
        outcomes = await self._writer.submit(Together([*commands, *restart]))
        await self._rules.catch_up()
        answer["registry"]["position"], answer["policies"]["position"] = outcomes[0], outcomes[1]
        return {"dry_run": False, **answer}

    async def catch_up(self) -> None:
        """Work by the rules that the ledger's head names."""
        await self._rules.catch_up()

    def read_files(self, what: What = "all") -> Loaded:
        """Parse the files. What is not asked for comes from what is in force. Raises ConfigurationInvalid."""
        registry = load(self._registry_dir) if what != "policies" else self._rules.current.registry
        trust_rows(registry)  # refuses two vouchers for one subject
        problems = self._check_settings(registry)
        if problems:
            raise ConfigurationInvalid("The registry does not fit the issuers.", problems=problems)
        try:
            if what == "registry":
                return Loaded(registry, bundle_from_content(bundle_content(self._rules.current.bundle), registry))
            return Loaded(registry, load_directory(self._policies_dir, vocabulary(registry)))
        except policies.PolicyInvalid as error:
            raise ConfigurationInvalid(
                "The policies do not load.",
                problems=[Problem(each.message, each.file, each.line) for each in error.problems],
            ) from error

    def commands(self, loaded: Loaded, actor: str, reason: str | None) -> list[LoadBundle]:
        """The two ledger commands that put the files in force, with what they change."""
        old = self._rules.loaded
        changes = [change.to_event() for change in diff(old.registry if old else None, loaded.registry)]
        policy_changes = _policy_changes(diff_bundles(old.bundle if old else None, loaded.bundle))
        registry, bundle = loaded.registry, loaded.bundle
        return [
            LoadBundle("registry", registry.hash, registry.to_content(), changes, actor, reason),
            LoadBundle("policies", bundle.hash, bundle_content(bundle), policy_changes, actor, reason),
        ]

    async def rotate(
        self, caller: Caller, *, reason: str, purpose: Purpose = "token", if_active: str | None = None
    ) -> dict[str, Any]:
        """Activate the published next key now, publish another. Tokens of the old key stay good until they expire."""
        actor = "taskpass" if isinstance(caller, SystemCaller) else need(caller, Right.ROTATE).id
        why = checked_reason(reason)
        if if_active is None:  # of two who rotate at once, on whatever brokers, one does
            if_active = self._active(purpose)
        upcoming = await asyncio.to_thread(self._keyring.make, purpose)
        active = await self._writer.submit(RotateKeys(purpose, upcoming, actor, why, if_active))
        if active is None:
            await self.publish_next_key(purpose)
            raise Conflict(
                "No next key was on show, or another process has just rotated. Look at the keys, then try again."
            )
        await self._keyring.learn()
        return {"active": active, "keys": self.keys(SystemCaller())}

    def _active(self, purpose: Purpose) -> str | None:
        with self._ledger.read() as r:
            return next((row.kid for row in views.keys(r, purpose=purpose) if row.state == "active"), None)

    async def publish_next_key(self, purpose: Purpose) -> None:
        """After a kill of the active key: a successor is always on show before it is needed."""
        with self._ledger.read() as r:
            if any(row.state == "next" for row in views.keys(r, purpose=purpose)):
                return
        await self._writer.submit(PublishNextKey(await asyncio.to_thread(self._keyring.make, purpose)))

    def keys(self, caller: Caller) -> Sequence[dict[str, Any]]:
        """Signing keys and their states; public parts only. The checkpoint key comes as auditors' tools take it."""
        if isinstance(caller, OperatorCaller):
            need(caller, Right.READ, owners=caller.operator.owners)
        with self._ledger.read() as r:
            return [self._key(row) for row in views.keys(r)]

    def _key(self, row: views.KeyRow) -> dict[str, Any]:
        shown = {
            "kid": row.kid,
            "purpose": row.purpose,
            "state": row.state,
            "jwk": row.jwk,
            "published": row.published,
            "activated": row.activated,
            "retired": row.retired,
        }
        if row.purpose == "checkpoint":
            raw = urlsafe_b64decode(row.jwk["x"] + "=")
            shown["verifier_key"] = str(VerifierKey(self._origin, raw))
        return shown


def _policy_changes(changes: Difference) -> list[dict[str, str]]:
    """Changed policies in the form of the registry's changes."""
    return [
        {"kind": "policy", "id": policy, "change": change}
        for change, ids in (("added", changes.added), ("removed", changes.removed), ("changed", changes.changed))
        for policy in ids
    ]
