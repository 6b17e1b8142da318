import base64
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.ledger.checkpoint import (
    LONGEST_NOTE,
    Checkpoint,
    NoteInvalid,
    VerifierKey,
    open_checkpoint,
    open_note,
    sign_checkpoint,
    sign_note,
    unverified_checkpoint,
)
from broker.ledger.merkle import EMPTY_ROOT

# The example in the signed-note specification.
PUBLISHED_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
PUBLISHED_NOTE = (
    "This is an example message.\n\n— example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
)

KEY = Ed25519PrivateKey.generate()
NAME = "ledger.example/test"
KNOWN = VerifierKey.of(NAME, KEY)
CHECKPOINT = Checkpoint(NAME, 1234, hashlib.sha256(b"root").digest())


def test_the_published_example() -> None:
    key = VerifierKey.parse(PUBLISHED_KEY)
    assert str(key) == PUBLISHED_KEY
    assert open_note(PUBLISHED_NOTE, keys=[key]) == "This is an example message.\n"
    with pytest.raises(NoteInvalid, match="is wrong"):
        open_note(PUBLISHED_NOTE.replace("example message", "exemplary message"), keys=[key])


def test_a_checkpoint_comes_back() -> None:
    note = sign_checkpoint(CHECKPOINT, KEY)
    lines = note.split("\n")
    assert lines[:4] == [NAME, "1234", base64.b64encode(CHECKPOINT.root).decode(), ""]
    assert lines[4].startswith(f"— {NAME} ")
    assert open_checkpoint(note, keys=[KNOWN], origin=NAME) == unverified_checkpoint(note) == CHECKPOINT
    with pytest.raises(NoteInvalid, match="not of"):
        open_checkpoint(note, keys=[KNOWN], origin="ledger.example/other")


def test_extension_lines_are_signed_and_kept() -> None:
    extended = Checkpoint(NAME, 1, CHECKPOINT.root, ("one", "two"))
    assert open_checkpoint(sign_checkpoint(extended, KEY), keys=[KNOWN]) == extended


@settings(deadline=None)
@given(st.data())
def test_no_single_character_can_change(data: st.DataObject) -> None:
    note = sign_checkpoint(CHECKPOINT, KEY)
    place = data.draw(st.integers(0, len(note) - 1))
    other = data.draw(st.characters(exclude_categories=["Cs"]).filter(lambda character: character != note[place]))
    with pytest.raises(NoteInvalid):
        open_checkpoint(note[:place] + other + note[place + 1 :], keys=[KNOWN], origin=NAME)


def test_signatures_of_unknown_keys_are_ignored_and_one_good_one_is_needed() -> None:
    stranger = Ed25519PrivateKey.generate()
    note = sign_checkpoint(CHECKPOINT, KEY)
    foreign = sign_note(CHECKPOINT.text(), name="witness.example", key=stranger).split("\n")[-2] + "\n"
    assert open_checkpoint(note + foreign, keys=[KNOWN]) == CHECKPOINT
    for keys in ([], [VerifierKey.of(NAME, stranger)], [VerifierKey("ledger.example/other", KNOWN.public)]):
        with pytest.raises(NoteInvalid, match="no signature of a known key"):
            open_checkpoint(note, keys=keys)
    both = [KNOWN, VerifierKey.of("witness.example", stranger)]
    assert open_checkpoint(note + foreign, keys=both) == CHECKPOINT


def test_a_bad_signature_of_a_known_key_condemns_the_note() -> None:
    note = sign_checkpoint(CHECKPOINT, KEY)
    raw = KNOWN.id + bytes(64)
    with pytest.raises(NoteInvalid, match="is wrong"):
        open_checkpoint(note + f"— {NAME} {base64.b64encode(raw).decode()}\n", keys=[KNOWN])


def test_sixteen_signatures_are_read() -> None:
    note = sign_checkpoint(CHECKPOINT, KEY)
    foreign = f"— other {base64.b64encode(bytes(4000)).decode()}\n"
    assert open_checkpoint(note + foreign * 5, keys=[KNOWN]) == CHECKPOINT
    small = f"— other {base64.b64encode(bytes(68)).decode()}\n"
    assert open_checkpoint(note + small * 15, keys=[KNOWN]) == CHECKPOINT
    with pytest.raises(NoteInvalid):
        open_checkpoint(note + small * 32, keys=[KNOWN])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"{NAME}\n5\n",
        f"{NAME}\n5\nAAAA\n",
        f"{NAME}\n05\n{{root}}\n",
        f"{NAME}\n-5\n{{root}}\n",
        f"{NAME}\n5 \n{{root}}\n",
        f"{NAME}\n\u0665\n{{root}}\n",
        f"{NAME}\n{'9' * 30}\n{{root}}\n",
        "\n5\n{root}\n",
        f"{NAME}\n5\n{{root}}\n\nmore\n",
        f"{NAME}\n5\n{{root}}",
        f"{NAME}\n0\n{{root}}\n",
        f"{NAME}\n5\n{base64.b64encode(EMPTY_ROOT).decode()}\n",
        f"{NAME}\n5\n {{root}}\n",
    ],
)
def test_what_is_no_checkpoint(text: str) -> None:
    with pytest.raises(NoteInvalid):
        Checkpoint.parse(text.replace("{root}", base64.b64encode(CHECKPOINT.root).decode()))


def test_base64_has_one_spelling() -> None:
    root = base64.b64encode(CHECKPOINT.root).decode()
    sloppy = root[:-2] + chr(ord(root[-2]) + 1) + "="
    assert base64.b64decode(sloppy) == CHECKPOINT.root
    with pytest.raises(NoteInvalid, match="canonical"):
        Checkpoint.parse(f"{NAME}\n5\n{sloppy}\n")


@pytest.mark.parametrize(
    "note",
    [
        "",
        "x",
        "x\n",
        "x\n\n",
        "x\n\n\n",
        "x\n\n— a\n",
        "x\n\n— a b c\n",
        "x\n\n- a AAAAAAAA\n",
        "x\n\n— a AAAA\n",
        "x\n\n— a+b AAAAAAAA\n",
        "x\r\n\n— a AAAAAAAA\n",
        "x\x00\n\n— a AAAAAAAA\n",
        "x\n\n— a AAAAAAAA",
        "\ud800\n\n— a AAAAAAAA\n",
        "x" * LONGEST_NOTE + "\n\n— a AAAAAAAA\n",
    ],
)
def test_what_is_no_note(note: str) -> None:
    with pytest.raises(NoteInvalid):
        open_note(note, keys=[KNOWN])


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb", "a\u2003b", "x" * 256])
def test_what_is_no_key_name(name: str) -> None:
    with pytest.raises(NoteInvalid):
        VerifierKey(name, KNOWN.public)


def test_what_is_no_verifier_key() -> None:
    name, id_, material = PUBLISHED_KEY.split("+")
    ecdsa = base64.b64encode(b"\x02" + base64.b64decode(material)[1:]).decode()
    for text in (
        "",
        name,
        f"{name}+{id_}",
        f"{name}+00000000+{material}",
        f"{name}+{id_}+{ecdsa}",
        f"x+{id_}+{material}",
    ):
        with pytest.raises(NoteInvalid):
            VerifierKey.parse(text)


def test_what_no_note_can_hold_is_not_signed() -> None:
    for text in ("no newline", "tab\there\n", "\ud800\n", "x" * LONGEST_NOTE + "\n"):
        with pytest.raises(NoteInvalid):
            sign_note(text, name=NAME, key=KEY)
