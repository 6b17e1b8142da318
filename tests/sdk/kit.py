"""Shared by the SDK's tests: clocks that only a test moves, and asyncio without a plugin."""

import asyncio
import functools

from broker.sdk.testkit import FakeBroker

AUDIENCE = "https://invoices.test"
START_MS = 1_800_000_000_000


class Clock:
    """A wall clock and an elapsed clock. `sleep` lets both pass together; `set_back` moves the wall clock alone."""

    def __init__(self):
        self.wall_ms = START_MS
        self.elapsed_ns = 1_000_000_000_000

    def now(self):
        return self.wall_ms

    def elapsed(self):
        return self.elapsed_ns

    def sleep(self, seconds):
        self.wall_ms += int(seconds * 1000)
        self.elapsed_ns += int(seconds * 1e9)

    def set_back(self, seconds):
        self.wall_ms -= int(seconds * 1000)


async def at_once(_seconds):
    """A sleep for code that only sleeps to be polite."""
    await asyncio.sleep(0)


def asynchronous(test):
    @functools.wraps(test)
    def run(*args, **kwargs):
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 30))

    return run


def broker_and_clock():
    clock = Clock()
    return FakeBroker(now=clock.now, heartbeat_s=None), clock


def verifier_of(broker, clock, **settings):
    defaults = {"audience": AUDIENCE, "now": clock.now, "elapsed": clock.elapsed, "sleep": at_once}
    return broker.verifier(**defaults | settings)
