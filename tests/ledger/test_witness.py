"""The client of the witness protocol, against a witness that does what C2SP tlog-witness says."""

import threading
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.keys import make_key
from broker.ledger import Ledger
from broker.ledger.checkpoint import NoteInvalid, VerifierKey, open_checkpoint
from broker.ledger.commands.custody import AcceptRestore
from broker.ledger.kept import UNKNOWN_ROOT, Kept, LedgerRolledBack
from broker.ledger.merkle import ProofInvalid, verify_consistency
from broker.ledger.witness import Witness, WitnessKey
from broker.sealing import KeySealer
from tests.ledger.kit import ORIGIN, Made, Note

NAME = "witness.example/w1"


class Host:
    """A witness for one log."""

    def __init__(self, log: VerifierKey) -> None:
        self.log, self.key = log, Ed25519PrivateKey.generate()
        self.size, self.root = 0, b""
        self.requests = 0
        self.signs = True

    @property
    def vkey(self) -> str:
        material = b"\x04" + self.key.public_key().public_bytes_raw()
        return f"{NAME}+{self._id.hex()}+{b64encode(material).decode()}"

    @property
    def _id(self) -> bytes:
        return sha256(NAME.encode() + b"\n\x04" + self.key.public_key().public_bytes_raw()).digest()[:4]

    def add(self, body: str) -> tuple[int, str]:
        self.requests += 1
        head, _, note = body.partition("\n\n")
        old, *proof = head.split("\n")
        size = int(old.removeprefix("old "))
        claim = open_checkpoint(note, keys=[self.log])
        if size > claim.size:
            return 400, ""
        if size != self.size:
            return 409, f"{self.size}\n"
        if size == claim.size and claim.root != self.root:
            return 409, f"{self.size}\n"
        try:
            if size:
                hashes = [b64decode(line) for line in proof]
                verify_consistency(size1=size, root1=self.root, size2=claim.size, root2=claim.root, proof=hashes)
            elif proof:
                return 422, ""
        except ProofInvalid:
            return 422, ""
        self.size, self.root = claim.size, claim.root
        at = 1_790_000_000
        signature = self.key.sign(f"cosignature/v1\ntime {at}\n{claim.text()}".encode())
        line = f"— {NAME} {b64encode(self._id + at.to_bytes(8) + signature).decode()}\n"
        return 200, ("— other.example AAAA\n" + line) if self.signs else "thanks\n"


@pytest.fixture
def host(made: Made) -> Host:
    return Host(made.verifier_key)


@contextmanager
def listening(host: Host) -> Iterator[str]:
    """The witness's submission prefix, while it is there."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, text = 404, ""
            if self.path == "/log/add-checkpoint":
                status, text = host.add(self.rfile.read(int(self.headers["content-length"])).decode())
            self.send_response(status)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/log"
        server.shutdown()


@pytest.fixture
def url(host: Host) -> Iterator[str]:
    with listening(host) as prefix:
        yield prefix


def kept(made: Made, ledger: Ledger, host: Host, url: str) -> Kept:
    return Kept(ledger=ledger, origin=ORIGIN, proofs=made.proofs(ledger), shelves=[Witness(url, WitnessKey(host.vkey))])


def test_it_is_shown_that_the_ledger_only_grows(made: Made, host: Host, url: str) -> None:
    ledger = made.open()
    keeping = kept(made, ledger, host, url)
    for count in (1, 3, 300):
        ledger.commit([Note() for _ in range(count)])
        made.clock.now += 2_000
        assert keeping.keep() == []
        assert host.size == ledger.head.size
    asked = host.requests
    assert keeping.keep() == []
    assert host.requests == asked + 1
    assert kept(made, ledger, host, url).check() == [], "a new process finds out what the witness knows"


def _behind(made: Made, host: Host, url: str, path: Path, *, again: int) -> Ledger:
    """A ledger of 3 events, restored after the witness saw 7 and written `again` times since."""
    ledger = made.open()
    ledger.commit([Note(), Note()])
    made.close()
    backup = made.path.read_bytes()
    ledger = made.open()
    ledger.commit([Note("lost") for _ in range(4)])
    made.clock.now += 2_000
    assert kept(made, ledger, host, url).keep() == []
    made.close()
    made.path.write_bytes(backup)
    ledger = made.open()
    ledger.commit([Note("new") for _ in range(again)])
    return ledger


@pytest.mark.parametrize("again", [0, 2, 4, 9])
def test_a_ledger_that_was_rolled_back_is_found_out(
    made: Made, host: Host, url: str, tmp_path: Path, again: int
) -> None:
    ledger = _behind(made, host, url, tmp_path, again=again)
    with pytest.raises(LedgerRolledBack):
        kept(made, ledger, host, url).check()
    keeping = kept(made, ledger, host, url)
    assert keeping.given_up() == [(7, UNKNOWN_ROOT)]
    seal = KeySealer(bytes(32))
    keys = (make_key("token", seal), make_key("token", seal))
    command = AcceptRestore(keys, make_key("session", seal), keeping.given_up(), "ops-anna", "test", hold=False)
    (accepted,) = ledger.commit([command])
    assert not isinstance(accepted, Exception), accepted
    made.close()
    ledger = made.open()
    keeping = kept(made, ledger, host, url)
    for failed in (keeping.check(), keeping.keep(), keeping.replace()):
        assert "keeps to the history that was given up" in failed[0].sentence
    assert host.size == 7


def test_an_answer_without_its_signature_counts_for_nothing(made: Made, host: Host, url: str) -> None:
    ledger = made.open()
    host.signs = False
    (failed,) = kept(made, ledger, host, url).keep()
    assert "without its signature" in failed.sentence
    other = Host(made.verifier_key)
    host.signs = True
    impostor = Kept(
        ledger=ledger, origin=ORIGIN, proofs=made.proofs(ledger), shelves=[Witness(url, WitnessKey(other.vkey))]
    )
    (failed,) = impostor.keep()
    assert "without its signature" in failed.sentence


def test_a_witness_that_is_not_there_is_told(made: Made, host: Host, url: str) -> None:
    ledger = made.open()
    for place in (url.replace("/log", "/nothing"), "http://127.0.0.1:1"):
        (failed,) = kept(made, ledger, host, place).check()
        assert "answered 404" in failed.sentence or "does not answer" in failed.sentence


@pytest.mark.parametrize("text", ["", "a", "a+b+c", "w+00000000+" + b64encode(b"\x04" + bytes(32)).decode()])
def test_what_is_no_witness_key(text: str) -> None:
    with pytest.raises(NoteInvalid):
        WitnessKey(text)


def test_a_key_for_plain_signatures_is_no_witness_key(made: Made) -> None:
    with pytest.raises(NoteInvalid):
        WitnessKey(str(made.verifier_key))
