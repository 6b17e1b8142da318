"""What a broker does for its ledger's sake: keep checkpoints elsewhere, and old events in the archive."""

import asyncio
from collections.abc import Callable, Sequence

import structlog

from broker.ledger import LedgerStopped, Now
from broker.ledger.archive import Archivist
from broker.ledger.commands.custody import RaiseAlarm
from broker.ledger.kept import KeepingFailed, Kept
from broker.ledger.writer import Writer

log = structlog.get_logger(__name__)

TOLERATED_MS = 60_000
"""How long a checkpoint may fail to be kept before that is an alarm in the ledger."""


class Safekeeping:
    """Keeps checkpoints, and tells when that fails: in the log at once, and as one alarm if it goes on."""

    def __init__(
        self,
        *,
        kept: Kept,
        writer: Writer,
        on_stop: Callable[[LedgerStopped], None],
        now: Now,
        archivist: Archivist | None = None,
        archive_after_ms: int | None = None,
    ) -> None:
        self._kept = kept
        self._writer = writer
        self._on_stop = on_stop
        self._now = now
        self._archivist = archivist
        self._archive_after_ms = archive_after_ms
        self._failing_since: int | None = None
        self._alarmed = False

    async def check(self) -> None:
        """Before anything is served. Raises LedgerStopped for a ledger that was rolled back and not accepted.

        A place that does not answer stops nothing: the kill switch must come up. It is compared as soon as it does.
        """
        self._tell(await asyncio.to_thread(self._kept.check))

    async def keep(self) -> None:
        """Compare, and keep the newest checkpoint. A ledger that turns out to be rolled back ends the process."""
        if not self._kept.shelves:
            return
        try:
            failed = await asyncio.to_thread(self._kept.keep)
        except LedgerStopped as error:
            self._on_stop(error)
            return
        self._tell(failed)
        await self._alarm(failed)

    async def archive(self) -> None:
        """Move what is older than the audit period into the archive."""
        if self._archivist is not None and self._archive_after_ms is not None:
            moved = await asyncio.to_thread(self._archivist.run, self._now() - self._archive_after_ms)
            if moved.stop > moved.start:
                log.info("archived", events=moved.stop - moved.start, before=moved.stop)

    def failing_ms(self) -> int:
        """For how long a checkpoint could not be kept somewhere; 0 while all is well."""
        return 0 if self._failing_since is None else max(self._now() - self._failing_since, 1)

    def _tell(self, failed: Sequence[KeepingFailed]) -> None:
        for error in failed:
            log.error("checkpoint_not_kept", error=str(error), internal=error.internal)
        if not failed:
            self._failing_since = None
        elif self._failing_since is None:
            self._failing_since = self._now()

    async def _alarm(self, failed: Sequence[KeepingFailed]) -> None:
        if failed and not self._alarmed and self.failing_ms() >= TOLERATED_MS:
            self._alarmed = True
            await self._writer.submit(RaiseAlarm("checkpoint_not_kept", " ".join(error.sentence for error in failed)))
        elif not failed and self._alarmed:
            self._alarmed = False
            await self._writer.submit(RaiseAlarm("checkpoint_kept_again", "Checkpoints are kept at every place again."))
