"""The wire format of events. The golden files pin the bytes: a released one is never edited, only added to."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.ledger.event_types import EVENT_TYPES
from broker.ledger.events import LONGEST_EVENT, EventMalformed, commit_to, commitment, encode, parse

GOLDEN = Path(__file__).parent / "golden"


def test_every_type_has_its_golden_bytes() -> None:
    assert {file.stem for file in GOLDEN.glob("*.json")} == set(EVENT_TYPES)


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_golden_bytes(name: str) -> None:
    data = (GOLDEN / f"{name}.json").read_bytes()
    event = parse(data)
    assert event.type == name
    assert event.data == data
    assert event.body.keys() == EVENT_TYPES[name].fields, "a golden event has every field that is registered"
    assert encode(event.seq, event.t, event.type, event.body) == data


def test_what_is_required_stays_required() -> None:
    pinned = dict(line.split(":") for line in (GOLDEN / "required.txt").read_text().splitlines())
    assert {name: set(fields.split()) for name, fields in pinned.items()} == {
        name: set(known.required) for name, known in EVENT_TYPES.items()
    }


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_a_body_has_what_is_registered_and_nothing_else(name: str) -> None:
    body = parse((GOLDEN / f"{name}.json").read_bytes()).body
    for field in EVENT_TYPES[name].required:
        with pytest.raises(ValueError, match=rf"missing.*{field}"):
            encode(0, 0, name, {key: value for key, value in body.items() if key != field})
    with pytest.raises(ValueError, match=r"not registered.*surprise"):
        encode(0, 0, name, {**body, "surprise": 1})
    with pytest.raises(ValueError, match="not a registered event type"):
        encode(0, 0, name + "x", body)
    for envelope in ("seq", "t", "type"):
        with pytest.raises(ValueError, match="not registered"):
            encode(0, 0, name, {**body, envelope: 1})


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_escapes_from_its_string(text: str) -> None:
    data = encode(7, 9, "failed", {"jti": text, "task": "t", "why": text})
    assert parse(data).body["why"] == text
    assert not any(byte < 0x20 for byte in data)
    assert data.startswith(b'{"seq":7,"t":9,"type":"failed",')
    assert json.loads(data)["jti"] == text


def test_what_no_json_can_hold_is_refused() -> None:
    for why in ("\ud800", b"bytes", {1, 2}):
        with pytest.raises((ValueError, TypeError)):
            encode(0, 0, "failed", {"jti": "j", "task": "t", "why": why})
    with pytest.raises(ValueError, match="bytes; the most"):
        encode(0, 0, "failed", {"jti": "j", "task": "t", "why": "x" * LONGEST_EVENT})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"seq":1,"t":2}',
        b'{"t":2,"seq":1,"type":"x"}',
        b'{"seq":1,"t":2,"type":"x","seq":3}',
        b'{"seq":1, "t":2,"type":"x"}',
        b'{"seq":true,"t":2,"type":"x"}',
        b'{"seq":1.0,"t":2,"type":"x"}',
        b'{"seq":-1,"t":2,"type":"x"}',
        b'{"seq":1,"t":-2,"type":"x"}',
        b'{"seq":1,"t":2,"type":3}',
        b'{"seq":1,"t":2,"type":"x"}x',
        b'{"seq":1,"t":2,"type":"\xff"}',
        b'{"seq":1,"t":2,"type":"x"' + b" " * LONGEST_EVENT + b"}",
    ],
)
def test_what_encode_cannot_have_written(data: bytes) -> None:
    with pytest.raises(EventMalformed):
        parse(data)


def test_an_unknown_type_is_read_all_the_same() -> None:
    event = parse(b'{"seq":1,"t":2,"type":"from.the.future","new":[]}')
    assert (event.seq, event.t, event.type, event.body) == (1, 2, "from.the.future", {"new": []})


def test_a_commitment_is_to_its_text_and_hides_it() -> None:
    salt, digest = commitment("refund Ms Noether")
    assert digest == hashlib.sha256(salt + b"refund Ms Noether").hexdigest() == commit_to(salt, "refund Ms Noether")
    assert len(salt) == 16
    assert commitment("refund Ms Noether")[1] != digest
    assert commit_to(salt, "refund Mr Noether") != digest
