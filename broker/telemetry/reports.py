"""How the processes of one broker hand their metrics to the control process, which is the one that is scraped.

Each writes its own to a small file beside the ledger every few seconds, whole or not at all. No shared memory: a file
that is mapped and not yet on disk kills its process when the disk is full, and a full disk is when the kill switch must
work. Every sample keeps the name of its process, so a restart is an ordinary counter reset.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson
from prometheus_client import Metric
from prometheus_client.registry import Collector

EVERY_S = 5.0
_FORGET_AFTER_S = 600.0
_LARGEST = 4 << 20


class Reports:
    """The directory of the processes' metrics."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def clear(self) -> None:
        """Forget what processes of an earlier life reported. Raises OSError."""
        for path in self._directory.glob("*.json*"):
            path.unlink(missing_ok=True)

    def write(self, process: str, counted: Iterable[Metric]) -> None:
        """Hand over what `process` has counted. Raises OSError, and leaves the last report as it was."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        whole = self._directory / f"{process}.json"
        part = whole.with_suffix(".json.part")
        part.write_bytes(orjson.dumps([_row(family) for family in counted]))
        part.replace(whole)

    def read(self, now_s: float) -> Iterator[tuple[str, float, list[Metric]]]:
        """Every process that has reported: its name, the report's age in seconds, what it says."""
        for path in sorted(self._directory.glob("*.json")):
            try:
                age = max(0.0, now_s - path.stat().st_mtime)
                data = path.read_bytes() if path.stat().st_size <= _LARGEST else b"[]"
                if age <= _FORGET_AFTER_S:
                    yield path.stem, age, [_family(row) for row in orjson.loads(data)]
            except (OSError, ValueError):  # it is just being started, or its disk is full
                continue


class Merged(Collector):
    """Families of several processes as one exposition, every sample with its process."""

    def __init__(self, processes: Iterable[tuple[str, Iterable[Metric]]]) -> None:
        self._processes = processes

    def collect(self) -> Iterator[Metric]:
        """One family for each name."""
        families: dict[str, Metric] = {}
        for process, found in self._processes:
            for family in found:
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    if not sample.name.endswith("_created"):
                        merged.add_sample(sample.name, {**sample.labels, "process": process}, sample.value)
        yield from families.values()


def _row(family: Metric) -> list[object]:
    samples = [[sample.name, sample.labels, sample.value] for sample in family.samples]
    return [family.name, family.documentation, family.type, samples]


def _family(row: list[object]) -> Metric:
    name, documentation, kind, samples = row
    family = Metric(str(name), str(documentation), str(kind))
    assert isinstance(samples, list)
    for sample_name, labels, value in samples:
        family.add_sample(sample_name, labels, value)
    return family
