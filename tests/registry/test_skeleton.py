"""What `taskpass init` writes loads as it is, and so do the examples that it leaves commented out."""

import base64
import re
import shutil
import stat
from datetime import date
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from broker import rules
from broker.cli.init import write_skeleton
from broker.config import Config, load_config
from broker.errors import ConfigurationInvalid
from broker.jose import public_jwk
from broker.model import Right
from broker.registry import load, narrow_parameters
from policies.bundle import load_directory
from policies.cases import read_cases, run_cases
from policies.engine import Engine

TODAY = date(2026, 6, 1)
NOW = 1_780_272_000_000


@pytest.fixture
def skeleton(tmp_path, monkeypatch):
    monkeypatch.delenv("TASKPASS_CONFIG", raising=False)
    directory = tmp_path / "new"
    return directory, write_skeleton(directory, issuer="https://taskpass.example.com", today=TODAY)


def test_everything_loads_without_a_problem(skeleton):
    directory, written = skeleton
    config = load_config(directory / "taskpass.toml")
    assert config.issuer == "https://taskpass.example.com"
    assert config.ledger.path.parent.is_dir()
    registry = load(config.registry.path)
    assert registry.problems(NOW) == ()
    assert registry.operators["break-glass"].break_glass
    assert registry.operators["break-glass"].rights == {Right.KILL}
    assert narrow_parameters(
        registry.resources["credits"], ["credits:propose"], {"invoice": "INV-1", "amount_cents": 1}
    )
    assert (config.policies.path / "cases.yaml").is_file()
    assert {path.parent.name for path in written if path.suffix == ".cedar"} == {"permits", "gates", "nevers"}
    assert sorted(path for path in directory.rglob("*") if path.is_file()) == written


def test_keys_are_private_and_match_the_registry(skeleton):
    directory, _ = skeleton
    registry = load(directory / "registry")
    assert stat.S_IMODE((directory / "keys").stat().st_mode) == 0o700
    for path in (directory / "keys").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for name in ("operator", "break-glass"):
        private = load_pem_private_key((directory / "keys" / f"{name}.pem").read_bytes(), None)
        assert registry.operators[name].keys == (public_jwk(private.public_key()),)
    assert len(base64.b64decode((directory / "keys" / "encryption.key").read_bytes())) == 32


def test_the_examples_in_comments_load_too(skeleton):
    directory, _ = skeleton
    trust = directory / "registry" / "trust.yaml"
    text, count = re.subn(r"^#(  .*)", r"\1", trust.read_text(), flags=re.MULTILINE)
    assert count > 10
    trust.write_text(text)
    assert {row.kind for row in load(trust.parent).trust.values()} == {"oidc", "spiffe", "kubernetes", "github", "key"}


def test_nothing_is_overwritten(skeleton):
    directory, _ = skeleton
    shutil.rmtree(directory / "keys")
    agents = directory / "registry" / "agents.yaml"
    agents.write_text("mine")
    with pytest.raises(ConfigurationInvalid, match="Nothing was written") as caught:
        write_skeleton(directory, issuer="https://taskpass.example.com", today=TODAY)
    assert f"{agents}: exists already" in str(caught.value)
    assert agents.read_text() == "mine"
    assert not (directory / "keys").exists()


def test_without_operator_keys_the_operators_are_examples(tmp_path):
    written = write_skeleton(tmp_path, issuer="https://taskpass.example.com", operator_keys=False, today=TODAY)
    assert [path.name for path in written if path.parent.name == "keys"] == ["encryption.key"]
    assert load(tmp_path / "registry").operators == {}


def test_a_loopback_skeleton_has_its_control_process_beside_it(tmp_path, monkeypatch):
    monkeypatch.delenv("TASKPASS_CONFIG", raising=False)
    write_skeleton(
        tmp_path, issuer="http://127.0.0.1:9000", demo=True, today=TODAY,
        idp_issuer="http://127.0.0.1:9009", idp_jwks={"file": "../idp.json"},
    )  # fmt: skip
    config = load_config(tmp_path / "taskpass.toml")
    assert (config.serve.listen, config.serve.control_listen) == ("127.0.0.1:9000", "127.0.0.1:9001")
    assert config.control_url == "http://127.0.0.1:9001"
    assert load(config.registry.path).trust["idp"].jwks.file == str(tmp_path / "idp.json")


@pytest.mark.parametrize(
    "issuer", ["http://taskpass.example.com", "https://x.example.com/", 'https://x"\n', "", "https://a@b"]
)
def test_an_issuer_that_would_not_load_writes_nothing(tmp_path, issuer):
    with pytest.raises(ConfigurationInvalid, match="The issuer must be"):
        write_skeleton(tmp_path / "new", issuer=issuer)
    assert not (tmp_path / "new").exists()


def test_the_template_mentions_every_key(skeleton):
    text = (skeleton[0] / "taskpass.toml").read_text()
    for name, field in Config.model_fields.items():
        section = field.annotation
        assert name == "issuer" or f"[{name}]" in text or f"[{name}." in text
        for key in getattr(section, "model_fields", {}):
            assert re.search(rf"^(# )?{key} =|\({key}\)", text, re.MULTILINE), key


def test_a_value_cannot_leave_its_place(tmp_path):
    write_skeleton(
        tmp_path, issuer="https://t.example.com", idp_issuer='x"\n  evil: {', idp_jwks={"file": "a: b #\n"}, today=TODAY
    )
    trust = yaml.safe_load((tmp_path / "registry" / "trust.yaml").read_text())["trust"]
    assert set(trust) == {"idp"}
    assert trust["idp"]["issuer"] == 'x"\n  evil: {'


def test_package_data_is_where_the_writer_looks():
    assert (Path(write_skeleton.__code__.co_filename).parent / "skeleton" / "taskpass.toml").is_file()


def test_the_baseline_policies_fit_the_registry(skeleton):
    directory, _ = skeleton
    vocabulary = rules.vocabulary(load(directory / "registry"))
    engine = Engine(bundle=load_directory(directory / "policies", vocabulary))
    cases = read_cases((directory / "policies" / "cases.yaml").read_text(), vocabulary)
    assert run_cases(engine, cases).passed
