"""The view under any sequence of kills, heartbeats, lost connections, floors and restores, against a plain model."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.sdk.view import FeedBroken, RevocationView, Then
from broker.wire import Cursor, FeedKill, Match

from .kit import Clock

AGENTS = st.sampled_from(["ada", "bob", "cyd"])


class FeedMachine(RuleBasedStateMachine):
    """A broker, one wire that may be cut with events on it, and a view at its end."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.view = RevocationView(now=self.clock.now, elapsed=self.clock.elapsed)
        self.wire = None  # events under way, None while disconnected
        self.serial = 0
        self.begin_epoch()

    def begin_epoch(self):
        self.serial += 1
        self.epoch, self.position, self.floor = f"{self.serial:08x}", 0, 0
        self.kills, self.provisional, self.tokens = [], {}, []
        self.ever_covered = set()
        self.promised = set()  # tokens that were dead when a heartbeat was made that has since arrived

    # --- The broker's side ---

    def next(self):
        self.position += 1
        return self.position

    def send(self, event, body, promised=()):
        if self.wire is not None:
            self.wire.append((self.epoch, event, body, frozenset(promised)))

    def dead(self):
        return {
            (agent, seq)
            for agent, seq in self.tokens
            if seq < self.floor
            or agent in self.provisional.values()
            or any(kill.seq > seq and (Match.AGENT, agent) in kill.matches for kill in self.kills)
        }

    @rule(agent=AGENTS)
    def mint(self, agent):
        self.tokens.append((agent, self.next()))
        if agent in self.provisional.values():
            self.ever_covered.add(self.tokens[-1])

    @rule(agent=AGENTS)
    def kill(self, agent):
        kill = FeedKill(f"kil_{self.next()}", self.position, ((Match.AGENT, agent),))
        self.kills.append(kill)
        self.cover(agent)
        self.send("kill", kill.to_wire())

    @rule(agent=AGENTS)
    def kill_provisionally(self, agent):
        self.serial += 1
        id_ = f"prv_{self.serial}"
        self.provisional[id_] = agent
        self.cover(agent)
        self.send("kill", FeedKill(id_, 0, ((Match.AGENT, agent),), provisional=True).to_wire())

    @precondition(lambda self: self.provisional)
    @rule(confirm=st.booleans())
    def end_provisional(self, confirm):
        id_, agent = self.provisional.popitem()
        kill = None
        if confirm:
            kill = FeedKill(f"kil_{self.next()}", self.position, ((Match.AGENT, agent),))
            self.kills.append(kill)
        else:  # such a promise ends with it
            self.promised = {token for token in self.promised if token[0] != agent or token in self.dead()}
            if self.wire is not None:
                self.wire = [(e, n, b, frozenset(p & self.dead())) for e, n, b, p in self.wire]
        self.send("withdrawn", {"id": id_, "kill": kill and kill.to_wire()})

    def cover(self, agent):
        self.ever_covered |= {token for token in self.tokens if token[0] == agent}

    @rule(part=st.floats(0, 1))
    def raise_floor(self, part):
        self.floor = max(self.floor, int(self.position * part))

    @rule()
    def heartbeat(self):
        body = {"epoch": self.epoch, "position": self.position, "floor": self.floor}
        self.send("heartbeat", body | {"time": self.clock.now(), "stamp": self.view._last_stamp}, self.dead())

    @rule()
    def restore(self):
        self.wire = None
        self.begin_epoch()

    # --- The wire ---

    @rule()
    def connect(self):
        cursor = self.view.cursor()
        self.view.connecting(cursor)
        self.view.stamp()
        self.wire = []
        self.send("hello", {"epoch": self.epoch})
        if cursor is None or cursor.epoch != self.epoch or cursor.position < self.floor:
            kills = [kill.to_wire() for kill in self.kills if kill.seq > self.floor]
            kills += [
                FeedKill(id_, 0, ((Match.AGENT, agent),), provisional=True).to_wire()
                for id_, agent in self.provisional.items()
            ]
            body = {"epoch": self.epoch, "position": self.position, "floor": self.floor, "time": self.clock.now()}
            self.send("snapshot", body | {"kills": kills})
        else:
            for id_, agent in self.provisional.items():
                self.send("kill", FeedKill(id_, 0, ((Match.AGENT, agent),), provisional=True).to_wire())
            for kill in self.kills:
                if kill.seq > cursor.position:
                    self.send("kill", kill.to_wire())

    @precondition(lambda self: self.wire)
    @rule(count=st.integers(1, 10))
    def deliver(self, count):
        for epoch, event, body, promised in self.wire[:count]:
            then = self.view.apply(event, body)
            assert (Then.FORGET_TOKENS in then) <= (event == "hello")
            if epoch == self.epoch:
                self.promised |= promised
        del self.wire[:count]

    @rule()
    def cut(self):
        self.wire = None

    @rule(seconds=st.integers(0, 20))
    def wait(self, seconds):
        self.clock.sleep(seconds)

    # --- What must hold after every step ---

    def refuses(self, agent, seq):
        claims = {"sub": agent, "client_id": agent, "seq": seq}
        return seq < self.view.floor or self.view.kills.dead(claims, "kid") is not None

    @invariant()
    def nothing_at_or_below_the_cursor_is_missing(self):
        applied = self.view.applied()
        if applied is None or applied.epoch != self.epoch:
            return
        for kill in self.kills:
            if kill.seq <= applied.position:
                ((_, agent),) = kill.matches
                assert all(self.refuses(*token) for token in self.tokens if token[0] == agent and token[1] < kill.seq)

    @invariant()
    def what_was_dead_at_a_heartbeat_that_arrived_is_refused(self):
        if self.view.epoch == self.epoch:
            assert all(self.refuses(*token) for token in self.promised)

    @invariant()
    def what_was_never_covered_is_not_refused(self):
        if self.view.epoch != self.epoch:
            return
        # A provisional kill holds until its end is heard of, and covers what is minted meanwhile.
        held = {value for kill in self.view._provisional.values() for _, value in kill.matches}
        for agent, seq in set(self.tokens) - self.ever_covered:
            assert seq < self.floor or agent in held or not self.refuses(agent, seq)

    @invariant()
    def age_never_understates(self):
        age = self.view.age_ns()
        assert age is None or age >= 0


TestFeedMachine = FeedMachine.TestCase
TestFeedMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def connected_view(epoch="00000001", **snapshot):
    clock = Clock()
    view = RevocationView(now=clock.now, elapsed=clock.elapsed)
    view.connecting(None)
    view.stamp()
    view.apply("hello", {"epoch": epoch})
    view.apply("snapshot", {"epoch": epoch, "position": 5, "floor": 0, "time": clock.now(), "kills": []} | snapshot)
    return view, clock


def heartbeat(view, **changes):
    body = {"epoch": view.epoch, "position": 9, "floor": 0, "time": 1, "stamp": view._last_stamp}
    return view.apply("heartbeat", body | changes)


def test_a_heartbeat_moves_no_cursor():
    view, _ = connected_view()
    heartbeat(view, position=100)
    assert view.applied() == Cursor("00000001", 5)


def test_age_counts_from_the_asking_not_from_the_hearing():
    view, clock = connected_view()
    clock.sleep(7)
    heartbeat(view)  # it sat in a buffer all the time
    assert view.age_ns() == 7_000_000_000
    old = view._last_stamp
    view.stamp()
    heartbeat(view)
    assert view.age_ns() == 0
    clock.sleep(1)
    heartbeat(view, stamp=old)  # an older echo takes nothing back
    assert view.age_ns() == 1_000_000_000


def test_a_reader_never_sees_a_gap_while_a_provisional_kill_gives_way():
    view, _ = connected_view()
    provisional = FeedKill("prv_1", 0, ((Match.ALL, ""),), provisional=True)
    view.apply("kill", provisional.to_wire())
    before = view.kills
    generation = view.generation
    kill = FeedKill("kil_6", 6, ((Match.ALL, ""),))
    view.apply("withdrawn", {"id": "prv_1", "kill": kill.to_wire()})
    assert before.dead({"seq": 1}, None)
    assert view.kills.dead({"seq": 1}, None) == "kil_6"
    assert view.generation > generation


def test_a_provisional_kill_asks_for_a_snapshot_at_the_next_connection():
    view, _ = connected_view()
    assert view.cursor() == Cursor("00000001", 5)
    view.apply("kill", FeedKill("prv_1", 0, ((Match.ALL, ""),), provisional=True).to_wire())
    assert view.cursor() is None
    assert view.applied() == Cursor("00000001", 5)


def test_an_older_snapshot_takes_no_kill_back():
    kill = FeedKill("kil_4", 4, ((Match.AGENT, "ada"),))
    view, clock = connected_view(kills=[kill.to_wire()])
    view.connecting(None)
    view.apply("hello", {"epoch": "00000001"})
    view.apply("snapshot", {"epoch": "00000001", "position": 3, "floor": 0, "time": clock.now(), "kills": []})
    assert view.kills.dead({"sub": "ada", "seq": 1}, None) == "kil_4"
    assert view.position == 5


def test_a_key_that_was_killed_stays_so_above_every_floor_and_asks_for_new_keys():
    view, _ = connected_view()
    kill = FeedKill("kil_6", 6, ((Match.KEY, "stolen"),))
    assert Then.REFETCH_KEYS in view.apply("kill", kill.to_wire())
    heartbeat(view, floor=1000)
    view.apply("withdrawn", {"id": "prv_none", "kill": None})  # builds the map anew
    assert view.kills.dead({"seq": 1 << 50}, "stolen") == "kil_6"


SNAPSHOT = {"epoch": "00000001", "position": 5, "floor": 0, "time": 1, "kills": []}
KILL = FeedKill("kil_6", 6, ((Match.AGENT, "ada"),)).to_wire()

BROKEN = {
    "kill before hello": [("kill", KILL)],
    "snapshot before hello": [("snapshot", SNAPSHOT)],
    "heartbeat before hello": [("heartbeat", {})],
    "kill before snapshot": [("hello", {"epoch": "00000001"}), ("kill", KILL)],
    "heartbeat before snapshot": [("hello", {"epoch": "00000001"}), ("heartbeat", {})],
    "a second hello": [("hello", {"epoch": "00000001"}), ("hello", {"epoch": "00000002"})],
    "hello without epoch": [("hello", {})],
    "hello with an odd epoch": [("hello", {"epoch": 7})],
    "snapshot of another epoch": [("hello", {"epoch": "00000002"}), ("snapshot", SNAPSHOT)],
    "kills not a list": [("hello", {"epoch": "00000001"}), ("snapshot", SNAPSHOT | {"kills": 7})],
    "a kill that is none": [("hello", {"epoch": "00000001"}), ("snapshot", SNAPSHOT | {"kills": [{"id": "x"}]})],
    "an unknown selector": [
        ("hello", {"epoch": "00000001"}),
        ("snapshot", SNAPSHOT | {"kills": [KILL | {"matches": [["planet", "earth"]]}]}),
    ],
    "position as text": [("hello", {"epoch": "00000001"}), ("snapshot", SNAPSHOT | {"position": "5"})],
    "position below zero": [("hello", {"epoch": "00000001"}), ("snapshot", SNAPSHOT | {"position": -5})],
    "floor as true": [("hello", {"epoch": "00000001"}), ("snapshot", SNAPSHOT | {"floor": True})],
}


@pytest.mark.parametrize("events", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_not_the_protocol_breaks_the_connection_and_refreshes_nothing(events):
    clock = Clock()
    view = RevocationView(now=clock.now, elapsed=clock.elapsed)
    view.connecting(None)
    view.stamp()
    *good, (event, body) = events
    for name, content in good:
        view.apply(name, content)
    with pytest.raises(FeedBroken):
        view.apply(event, body)
    assert view.age_ns() is None
    assert view.applied() is None


@pytest.mark.parametrize(
    "changes",
    [{"stamp": None}, {"stamp": 1 << 52}, {"stamp": "1"}, {"epoch": "00000002"}, {"time": None}, {"floor": -1}],
)
def test_a_heartbeat_that_cannot_be_is_not_believed(changes):
    view, _ = connected_view()
    with pytest.raises(FeedBroken):
        heartbeat(view, **changes)
    assert view.age_ns() is None


def test_a_new_epoch_leaves_nothing_to_resume_from_and_nothing_fresh():
    kill = FeedKill("kil_4", 4, ((Match.AGENT, "ada"),))
    view, _ = connected_view(kills=[kill.to_wire()])
    heartbeat(view)
    view.connecting(view.cursor())
    assert view.apply("hello", {"epoch": "00000002"}) == Then.REFETCH_KEYS | Then.FORGET_TOKENS
    assert (view.applied(), view.cursor(), view.age_ns(), view.position) == (None, None, None, 0)
    assert view.kills.dead({"sub": "ada", "seq": 1}, None) is None  # its positions mean nothing here


def test_a_new_connection_has_to_say_hello_again():
    view, _ = connected_view()
    view.connecting(view.cursor())
    with pytest.raises(FeedBroken):
        heartbeat(view)


def test_an_event_of_a_later_version_is_passed_over():
    view, _ = connected_view()
    assert view.apply("weather", {"sunny": True}) is Then.NOTHING
