"""What a registry is, apart from its files: the same hash however it is laid out, the same registry from the ledger."""
# ruff: noqa: E501  (tables)

import hashlib
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import ConfigurationInvalid
from broker.model import Workload
from broker.registry import Registry, diff, load
from tests.registry.conftest import JWK, SOUND


def workload(subject, trust="idp", **claims):
    return Workload(trust=trust, kind="oidc", issuer="i", subject=subject, claims=claims, expires=0)


def sound():
    return {kind: yaml.safe_load(text) for kind, text in SOUND.items()}


def shuffled(value, random):
    if isinstance(value, dict):
        items = [(key, shuffled(member, random)) for key, member in value.items()]
        random.shuffle(items)
        return dict(items)
    return value


@given(st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=40, deadline=None)
def test_the_hash_does_not_depend_on_the_layout(random: random.Random, flow: bool):
    documents = sound()
    documents["agents"]["agents"]["bot"]["review"] = {
        key: str(value) for key, value in documents["agents"]["agents"]["bot"]["review"].items()
    }
    documents["agents"]["agents"]["broken"] = {"owner": "nobody"}
    entries = [
        (kind, entry)
        for document in documents.values()
        for kind, entries in document.items()
        for entry in entries.items()
    ]
    random.shuffle(entries)
    with TemporaryDirectory() as first, TemporaryDirectory() as second:
        for directory, mixed in ((first, False), (second, True)):
            Path(directory, "bundle").mkdir()
            for number, (kind, (entry_id, entry)) in enumerate(entries):
                data = {kind: {entry_id: shuffled(entry, random) if mixed else entry}}
                text = yaml.safe_dump(data, default_flow_style=flow if mixed else False, sort_keys=not mixed)
                folder = Path(directory, random.choice("abc")) if mixed else Path(directory)
                folder.mkdir(exist_ok=True)
                (folder / f"{number if mixed else kind + entry_id}.yaml").write_text(f"# {random.random()}\n{text}")
        one, other = (
            Registry.from_content(load(Path(d)).to_content().replace(d.encode(), b"")) for d in (first, second)
        )
    assert one.hash == other.hash
    assert diff(one, other) == []
    assert [p.message for p in one.agents["broken"].problems] == [p.message for p in other.agents["broken"].problems]


def test_the_content_comes_back_whole(write):
    registry = load(write(x="agents: {lost: {owner: nobody}}"))
    again = Registry.from_content(registry.to_content())
    assert again.to_content() == registry.to_content()
    assert again.hash == registry.hash
    for name in ("owners", "agents", "resources", "operators", "verifiers", "trust"):
        assert getattr(again, name) == getattr(registry, name)
    late = 1_900_000_000_000
    assert again.problems(late) == registry.problems(late)
    assert json.loads(registry.to_content())["rows"]["trust"]["mesh"]["jwks"]["file"].endswith("/registry/bundle.json")


def test_the_hash_is_of_what_is_registered_and_blocked(registry):
    body = orjson.loads(registry.to_content())
    del body["places"]
    body["blocked"] = {key: sorted(message for message, _, _ in found) for key, found in body["blocked"].items()}
    assert registry.hash == hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


@pytest.mark.parametrize("change", [
    {"x": "agents: {lost: {owner: nobody}}"},
    {"owners": SOUND["owners"].replace("on call", "off")},
    {"agents": SOUND["agents"].replace("finance", "nobody")},
])  # fmt: skip
def test_any_change_changes_the_hash(write, registry, change):
    assert load(write(**change)).hash != registry.hash


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format":2}', b'{"format":1,"rows":{"agents":{"A":{}}},"blocked":{},"places":{}}']
)
def test_other_content_is_refused(content):
    with pytest.raises(ConfigurationInvalid, match="cannot be read by this version"):
        Registry.from_content(content)


def test_diff(write, registry):
    assert diff(None, registry)[0].to_event() == {
        "kind": "agent", "id": "bot", "change": "added", "fields": [],
    }  # fmt: skip
    changed = load(write(
        agents=SOUND["agents"].replace("owner: finance", "owner: gone").replace("Works disputes", "Other work"),
        x=SOUND["owners"].replace("finance:", "new:").replace("finance@", "new@"),
    ))  # fmt: skip
    assert [change.to_event() for change in diff(registry, changed)] == [
        {"kind": "agent", "id": "bot", "change": "changed", "fields": ["blocked", "owner", "purpose"]},
        {"kind": "owner", "id": "new", "change": "added", "fields": []},
    ]
    assert [(c.kind, c.id, c.change) for c in diff(changed, registry)] == [
        ("agent", "bot", "changed"), ("owner", "new", "removed"),
    ]  # fmt: skip


def test_look_ups(registry):
    assert registry.by_audience("https://invoices.example.com").id == "invoices"
    assert registry.by_audience("https://invoices.example.com/") is None
    assert registry.by_action("credits:propose").id == "invoices"
    assert registry.by_action("credits") is None
    assert registry.agents_of("finance") == ("bot",)


@pytest.mark.parametrize(
    ("identity", "who", "found"),
    [
        ("{trust: idp, subject: bot}", workload("bot"), True),
        ("{trust: idp, subject: bot}", workload("Bot"), False),
        ("{trust: idp, subject: bot}", workload("bot "), False),
        ("{trust: idp, subject: bot}", workload("bot", trust="hub"), False),
        ("{trust: idp, subject: bot, claims: {env: prod}}", workload("bot", env="prod"), True),
        ("{trust: idp, subject: bot, claims: {env: prod}}", workload("bot", env=["prod"]), False),
        ("{trust: idp, subject: bot, claims: {env: prod}}", workload("bot"), False),
        ("{trust: idp, subject: bot, claims: {env: 'true'}}", workload("bot", env=True), False),
        ("{trust: mesh, subject_prefix: 'spiffe://example.org/pay'}", workload("spiffe://example.org/pay/a", "mesh"), True),
        ("{trust: mesh, subject_prefix: 'spiffe://example.org/pay'}", workload("spiffe://example.org/pay", "mesh"), False),
        ("{trust: mesh, subject_prefix: 'spiffe://example.org/pay'}", workload("spiffe://example.org/payments", "mesh"), False),
        ("{trust: signer}", workload("nightly", "signer"), True),
        ("{trust: hub, claims: {repository_id: '1', repository_owner_id: '2'}}", workload("x", "hub", repository_id="1", repository_owner_id="2"), True),
        ("{trust: hub, claims: {repository_id: '1', repository_owner_id: '2'}}", workload("x", "hub", repository_id=1, repository_owner_id="2"), False),
    ],
)  # fmt: skip
def test_which_workload_is_which_agent(write, identity, who, found):
    registry = load(write(agents=SOUND["agents"].replace("{trust: idp, subject: bot}", identity)))
    assert [agent.id for agent in registry.agents_for(who)] == (["bot"] if found else [])


def test_a_workload_that_two_agents_claim_is_both_and_they_are_blocked(write):
    registry = load(write(x=SOUND["agents"].replace("bot:", "twin:")))
    assert [agent.id for agent in registry.agents_for(workload("bot"))] == ["bot", "twin"]
    assert all(registry.agent_problems(agent, 0) for agent in registry.agents_for(workload("bot")))


def test_verifiers_are_found_by_their_identity(registry):
    assert [verifier.id for verifier in registry.verifiers_for(workload("billing"))] == ["billing"]
    assert registry.verifiers_for(workload("bot")) == ()


def test_operator_keys_are_read_from_files(write):
    directory = write(
        operators="operators: {ada: {name: A, keys: [{file: ../ada.json}], rights: [kill], owners: [finance]}}"
    )
    (directory.parent / "ada.json").write_bytes(orjson.dumps(JWK))
    ada = load(directory).operators["ada"]
    assert ada.keys == (JWK,)
    assert ada.owners == {"finance"}
    (directory.parent / "ada.json").write_bytes(orjson.dumps({**JWK, "d": "AAAA"}))
    with pytest.raises(ConfigurationInvalid, match=r"operators.yaml:1: operator ada: keys.0: not a public key"):
        load(directory)
    (directory.parent / "ada.json").write_bytes(b"-----BEGIN")
    with pytest.raises(ConfigurationInvalid, match=r"operators.yaml:1: operator ada: keys.0: the file is not a JWK"):
        load(directory)
