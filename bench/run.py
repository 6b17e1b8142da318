"""What every group of figures is given: where to write, how long to measure, and which cores are whose."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from bench.assertions import Assertions
from bench.figures import Book
from bench.load import Burst, Target, burst
from bench.machine import all_cores, cores
from bench.site import Site, make_site
from demo.ports import free_port


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the suite. `quick` trades certainty for time, for trying the suite itself out."""

    scratch: Path
    out: Path
    book: Book
    signers: Assertions
    quick: bool = False
    minutes: float = 30

    @property
    def server_core(self) -> int:
        """The core of everything that serves tokens, ours or the peer's."""
        return cores()[0]

    @property
    def load_cores(self) -> set[int]:
        """The cores of the load: all others."""
        return (all_cores() - {self.server_core}) or {self.server_core}

    def times(self, normal: int, quick: int) -> int:
        """How many rounds, seconds or events."""
        return quick if self.quick else normal

    def site(self, **options: Any) -> Site:
        """A fresh broker configuration on free ports."""
        return make_site(Path(mkdtemp(dir=self.scratch)) / "site", port=free_port(in_a_row=2), **options)

    def paired(
        self,
        targets: Sequence[Target],
        *,
        connections: int,
        rounds: int,
        seconds: int,
        load_cores: set[int] | None = None,
    ) -> list[dict[str, Burst]]:
        """Bursts at each target in turn, the order rotating, so that a slow moment of the machine hits all alike."""
        found = []
        for number in range(rounds):
            turn = number % len(targets)
            found.append(
                {
                    target.name: burst(
                        target,
                        self.signers,
                        connections=connections,
                        seconds=seconds,
                        server_core=self.server_core,
                        load_cores=load_cores or self.load_cores,
                        scratch=self.scratch,
                    )
                    for target in (*targets[turn:], *targets[:turn])
                }
            )
        return found

    def warm(self, targets: Sequence[Target], *, seconds: int = 3) -> None:
        """Load each target until compilers and caches have seen it. A peer that just started is no peer."""
        self.paired(targets, connections=16, rounds=1, seconds=self.times(seconds, 1))
