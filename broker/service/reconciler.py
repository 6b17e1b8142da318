"""Ends credentials at their backends, and believes nobody: a grant is revoked when a look at the backend found it gone.

What must end is in the ledger before it is tried here, so a crash forgets nothing and recovery is this same code. It
never gives up: what keeps failing becomes `stuck`, which a human is told of, and is tried on.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import structlog

from broker.ledger import Ledger, LedgerUnavailable
from broker.ledger.commands.credentials import EXPIRES_ONLY, Interrupt
from broker.ledger.commands.endings import Claim, Due, Look, OrphansEnded, Settle
from broker.ledger.external_views import due_grants, due_issuers, external_figures, intents_are_lost, recorded_handles
from broker.ledger.writer import Writer
from broker.model import GrantState
from broker.service.calls import Busy, StillRunning, place_of
from broker.service.credentials import Backend
from issuers import Handle, IssuerError, SecretIssuer, Standing

log = structlog.get_logger(__name__)

_AT_ONCE = 64
"""How many grants of one issuer are taken in hand together: one claim and one commit of results for all of them."""

_FIRST_RETRY_MS = 1_000
_LONGEST_RETRY_MS = 300_000
_LEFT_TO_ITS_MAKER_MS = 5_000
"""What only its maker can end is left to it for so long; then the process that ends everything says what is known."""

_LOOKED_THROUGH = 1_000
_ORPHAN_AGE_MS = 120_000
"""An orphan must have been seen this long ago too: what a broker is just making is recorded a moment later."""


class Reconciler:
    """Brings the backends to what the ledger says. Each has a drain of its own: one that hangs delays no other."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        writer: Writer,
        backends: Mapping[str, Backend],
        stuck_after: int,
        now: Callable[[], int],
        everything: bool = True,
    ) -> None:
        """With `everything` False only what nobody but this process can end: see `issuers.Keeper`."""
        self._everything = everything
        self._ledger = ledger
        self._writer = writer
        self._backends = backends
        self._stuck_after = stuck_after
        self._now = now
        self._draining: dict[str, asyncio.Task[None]] = {}
        # What each backend had that the ledger did not know, and since when.
        self._unowned_since: dict[str, dict[tuple[tuple[str, str], ...], int]] = {name: {} for name in backends}

    # --- What the broker's chores call --------------------------------------------------------------------------------

    async def start(self) -> None:
        """What an earlier life of this broker left without an outcome is revoked."""
        with self._ledger.read() as r:
            known = external_figures(r)
        if known:
            await self._writer.submit(Interrupt(at_start=True))

    async def turn(self) -> None:
        """Begin to end what is due, at every backend that has something, and return at once."""
        with self._ledger.read() as r:
            lost = intents_are_lost(r, self._now())
        if lost:
            await self._writer.submit(Interrupt())
        with self._ledger.read() as r:
            due = due_issuers(r, self._now())
        for name in due:
            running = self._draining.get(name)
            if running is None or running.done():
                self._draining[name] = asyncio.create_task(self._drain(name), name=f"end:{name}")

    async def settle(self) -> None:
        """A turn, and everything that it begins."""
        await self.turn()
        await asyncio.gather(*self._draining.values())

    async def sweep(self) -> None:
        """Look for what bears our name at the backends and belongs to no grant, and end it."""
        for name, backend in self._backends.items():
            try:
                await self._sweep(name, backend)
            except LedgerUnavailable:
                raise
            except Exception as error:  # noqa: BLE001  (one backend that cannot be searched hides no other's orphans)
                log.warning("orphans_unknown", issuer=name, error=_sentence(error))

    async def stop(self) -> None:
        """End every drain. What was in hand is taken up again after the next start."""
        for task in self._draining.values():
            task.cancel()
        await asyncio.gather(*self._draining.values(), return_exceptions=True)
        for backend in self._backends.values():
            await asyncio.to_thread(backend.shut_down)

    def figures(self) -> dict[str, dict[str, int]]:
        """Issuer -> state -> how many may be at the backend: `stuck` is what a human must look at."""
        with self._ledger.read() as r:
            counts = external_figures(r)
        found: dict[str, dict[str, int]] = {}
        for (issuer, state), count in counts.items():
            found.setdefault(issuer, {})[state] = count
        return found

    # --- Ending what is due -------------------------------------------------------------------------------------------

    async def _drain(self, name: str) -> None:
        """Everything of one issuer that is due, batch by batch."""
        try:
            while (claim := self._claim(name)) and (batch := await self._writer.submit(claim)):
                looks = await asyncio.gather(*(self._end(due) for due in batch))
                settled = [self._settled(due, look) for due, look in zip(batch, looks, strict=True)]
                states = await self._writer.submit_many(settled)
                for due, look, state in zip(batch, looks, states, strict=True):
                    if isinstance(state, BaseException):
                        log.error("ending_not_recorded", seq=due.seq, error=repr(state))
                    elif state is GrantState.STUCK and due.state is not GrantState.STUCK:
                        log.critical("credential_stuck", issuer=name, seq=due.seq, problem=look.problem)
        except LedgerUnavailable as error:  # the claim runs out, and the next turn takes them up again
            log.error("endings_delayed", issuer=name, error=str(error))

    @property
    def keeps(self) -> bool:
        """Whether there is an issuer whose credentials only their maker can end."""
        return bool(self._kept(self._backends))

    def _kept(self, names: Iterable[str]) -> list[str]:
        return [name for name in names if self._holds(name) is not None]

    def _holds(self, name: str) -> Callable[[Handle], bool] | None:
        backend = self._backends.get(name)
        return None if backend is None else getattr(backend.issuer, "holds", None)

    def _claim(self, name: str) -> Claim | None:
        """What this process takes in hand next: what it made itself first, where only the maker can end it."""
        holds = self._holds(name)
        if holds is None:
            return Claim(name, _AT_ONCE)
        with self._ledger.read() as r:
            due = due_grants(r, name, self._now(), limit=_LOOKED_THROUGH)
        held = [seq for seq, handle in due if holds(handle)]
        if held:
            return Claim(name, _AT_ONCE, only=held[:_AT_ONCE])
        return Claim(name, _AT_ONCE, late_ms=_LEFT_TO_ITS_MAKER_MS) if self._everything else None

    async def _end(self, due: Due) -> Look:
        """One try, in a thread."""
        if due.issuer not in self._backends:
            return Look(problem=f"No issuer {due.issuer} is configured in this broker any more.")
        if not due.handle:  # nothing was ever prepared
            return Look(closed=due.close, gone=True)
        backend = self._backends[due.issuer]
        try:
            return await backend.ending.run(end, backend.issuer, due, self._now())
        except (Busy, StillRunning) as error:
            return Look(problem=_sentence(error))
        except Exception as error:  # noqa: BLE001  (an issuer's bug must not lose a credential)
            log.error("issuer_failed", issuer=due.issuer, seq=due.seq, error=place_of(error))
            return Look(problem=_sentence(error))

    def _settled(self, due: Due, look: Look) -> Settle:
        return Settle(due, look, retry_ms=backoff(due.tries), stuck_after=self._stuck_after)

    # --- Orphans ------------------------------------------------------------------------------------------------------

    async def _sweep(self, name: str, backend: Backend) -> None:
        def search() -> list[Handle]:
            found = list(backend.issuer.orphans())
            with self._ledger.read() as r:  # after the search: what was being made meanwhile is on record now
                return unknown(found, recorded_handles(r, name))

        unowned = {_key(handle): handle for handle in await backend.ending.run(search)}
        since, now = self._unowned_since[name], self._now()
        for key in since.keys() - unowned.keys():
            del since[key]
        old = [handle for key, handle in unowned.items() if now - since.setdefault(key, now) >= _ORPHAN_AGE_MS]
        for start in range(0, len(old), _AT_ONCE):
            batch = old[start : start + _AT_ONCE]
            gone = await asyncio.gather(*(self._end_orphan(name, backend, handle) for handle in batch))
            ended = [handle for handle, is_gone in zip(batch, gone, strict=True) if is_gone]
            if ended:
                log.warning("orphans_ended", issuer=name, count=len(ended))
                await self._writer.submit(OrphansEnded(name, ended))

    @staticmethod
    async def _end_orphan(name: str, backend: Backend, handle: Handle) -> bool:
        def ended() -> bool:
            backend.issuer.close(handle)
            backend.issuer.revoke(handle)
            return backend.issuer.status(handle).standing is Standing.GONE

        try:
            return await backend.ending.run(ended)
        except Exception as error:  # noqa: BLE001  (the next sweep finds it again)
            log.error("orphan_remains", issuer=name, error=_sentence(error))
            return False


def end(issuer: SecretIssuer, due: Due, now: int) -> Look:
    """One try at one backend: close what was opened for its task, revoke, and look. Blocks.

    Closing comes first: what can still renew or make more must stop before its work is undone.
    """
    closed, problem = False, None
    if due.close:
        try:
            issuer.close(due.handle)
            closed = True
        except IssuerError as error:
            problem = error.sentence
    if due.gone:
        return Look(closed=closed, problem=problem)
    if due.state is GrantState.LIVE and due.ending != EXPIRES_ONLY:  # its time is over: most are gone by themselves
        found = _looked(issuer, due)
        if found.gone:
            return replace(found, closed=closed, problem=problem or found.problem)
    if due.ending != EXPIRES_ONLY and (due.state is not GrantState.LIVE or due.expires <= now):
        try:
            issuer.revoke(due.handle)
        except IssuerError as error:
            problem = problem or error.sentence
    found = _looked(issuer, due)
    done = found.gone and closed == due.close
    return replace(found, closed=closed, problem=None if done else problem or found.problem)


def _looked(issuer: SecretIssuer, due: Due) -> Look:
    try:
        found = issuer.status(due.handle)
    except IssuerError as error:
        return Look(problem=error.sentence)
    return Look(gone=found.standing is Standing.GONE, note=found.note, by_itself=found.by_itself)


def backoff(tries: int) -> int:
    """Milliseconds until the next try: doubling up to five minutes, and anywhere in the upper half of that."""
    longest = min(_LONGEST_RETRY_MS, _FIRST_RETRY_MS << min(tries, 16))
    return random.randint(longest // 2, longest)  # noqa: S311  (spreads load; nobody gains from guessing it)


def unknown(found: Sequence[Handle], known: Iterable[Handle]) -> list[Handle]:
    """What the backend has and no recorded handle covers: one that says the same wherever both say something, and has
    a member in common that is not the same for everything there.
    """
    by_member: dict[tuple[str, str], list[Handle]] = {}
    for handle in known:
        for member in handle.items():
            by_member.setdefault(member, []).append(handle)
    return [handle for handle in found if not _owned(handle, by_member)]


def _owned(handle: Handle, by_member: Mapping[tuple[str, str], Sequence[Handle]]) -> bool:
    rarest = min((by_member.get(member, ()) for member in handle.items()), key=len, default=())
    candidates = rarest or [each for member in handle.items() for each in by_member.get(member, ())]
    return any(all(each.get(name, value) == value for name, value in handle.items()) for each in candidates)


def _key(handle: Handle) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(handle.items()))


def _sentence(error: Exception) -> str:
    match error:
        case IssuerError():
            return error.sentence
        case Busy():
            return "Too many calls wait for this backend."
        case StillRunning():
            return "The backend does not answer."
        case _:
            return f"The issuer failed: {type(error).__name__}."
