"""The stops that the processes of one broker share: whole or not at all, whoever dies while writing them."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from broker import stops as module
from broker.stops import LONGEST, Stops
from broker.wire import FeedKill, Match

A = {"sub": "a", "client_id": "a", "aud": "x", "task": "t", "jti": "j"}


def kill_of(agent: str) -> FeedKill:
    return FeedKill(id=f"prv_{agent}", seq=-1, matches=((Match.AGENT, agent),), provisional=True)


def test_what_one_process_writes_the_others_see(tmp_path: Path) -> None:
    control, worker = (Stops.open(tmp_path / "stops") for _ in range(2))
    assert worker.covering(A) is None
    for kills, found in (((kill_of("a"),), "prv_a"), ((kill_of("b"),), None), ((kill_of("b"), kill_of("a")), "prv_a")):
        control.write(kills)
        assert worker.covering(A) == found
    assert Stops.open(tmp_path / "stops").covering(A) == "prv_a"  # and so does one that starts later
    control.write(())
    assert worker.covering(A) is None


def test_every_kind_of_kill_stops_what_it_covers(tmp_path: Path) -> None:
    stops = Stops.open(tmp_path / "stops")
    for match, value in (
        (Match.AGENT, "a"),
        (Match.TASK, "t"),
        (Match.GRANT, "j"),
        (Match.RESOURCE, "x"),
        (Match.ALL, ""),
    ):
        stops.write([FeedKill(id="prv_1", seq=-1, matches=((match, value),), provisional=True)])
        assert stops.covering(A) == "prv_1"
        assert stops.covering(A | {"sub": "b", "client_id": "b"}) == (None if match is Match.AGENT else "prv_1")
    stops.write([FeedKill(id="prv_1", seq=-1, matches=((Match.KEY, "k"),), provisional=True)])
    assert (stops.covering(A, "k"), stops.covering(A, "other")) == ("prv_1", None)


def test_more_than_fits_stops_everything(tmp_path: Path) -> None:
    stops = Stops.open(tmp_path / "stops")
    stops.write([kill_of("b" * 1_000) for _ in range(LONGEST // 1_000 + 1)])
    assert stops.covering(A) == "prv_overflow"


@given(bytes_written=st.integers(0, 200))
def test_a_writer_that_dies_half_way_leaves_what_was_in_force(tmp_path_factory, bytes_written: int) -> None:
    path = tmp_path_factory.mktemp("stops") / "stops"
    stops = Stops.open(path)
    stops.write([kill_of("a")])

    class Dying:
        """Memory that takes so many bytes and no more."""

        left = bytes_written

        def __getitem__(self, place: slice) -> bytes:
            return bytes(memory[place])

        def __setitem__(self, place: slice, data: bytes) -> None:
            taken = data[: self.left]
            self.left -= len(taken)
            memory[place.start : place.start + len(taken)] = taken

    memory, stops._memory = stops._memory, Dying()  # type: ignore[assignment]
    stops.write([kill_of("b")])
    found = {name: Stops.open(path).covering({"sub": name, "client_id": name}) for name in "ab"}
    assert found in ({"a": "prv_a", "b": None}, {"a": None, "b": "prv_b"})


def test_a_file_in_which_nothing_is_whole_stops_everything(tmp_path: Path) -> None:
    path = tmp_path / "stops"
    for agent in "ab":
        Stops.open(path).write([kill_of(agent)])
    data = bytearray(path.read_bytes())
    for half in (0, module._HALF):
        data[half + 40] ^= 1
    path.write_bytes(data)
    assert Stops.open(path).covering(A) == "prv_overflow"
