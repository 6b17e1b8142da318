"""The configuration: strict, overridable by environment, and honest about where a wrong value came from."""
# ruff: noqa: E501  (tables of exact messages)

import os
from pathlib import Path

import pytest

from broker.config import Config, is_loopback, load_config, render_reference, split_listen
from broker.errors import ConfigurationInvalid

MINIMAL = 'issuer = "https://taskpass.example.com"\n\n[keys]\nencryption_key_file = "keys/encryption.key"\n'


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch):
    for name in [name for name in os.environ if name.upper().startswith("TASKPASS_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "taskpass.toml"
    path.write_text(MINIMAL)
    return path


def problems_of(path):
    with pytest.raises(ConfigurationInvalid) as caught:
        load_config(path)
    return [str(problem).replace(f"{path}:", "") for problem in caught.value.problems]


def test_the_defaults(file):
    config = load_config(file)
    assert config.tokens.max_ttl_s == 300
    assert config.control_url == "https://taskpass.example.com"
    assert config.ledger_origin == "taskpass.example.com"
    assert config.registry.path == file.parent / "registry"
    assert config.keys.encryption_key_file == file.parent / "keys" / "encryption.key"


def test_the_environment_wins(file, monkeypatch):
    monkeypatch.setenv("TASKPASS_ISSUER", "https://other.example.com")
    monkeypatch.setenv("TASKPASS_TOKENS__MAX_TTL_S", "60")
    monkeypatch.setenv("TASKPASS_REGISTRY__PATH", "/etc/taskpass/registry")
    monkeypatch.setenv("TASKPASS_SERVE__TRUSTED_PROXIES", "10.0.0.0/8, ::1")
    monkeypatch.setenv("TASKPASS_LOG__LEVEL", "")  # empty is not set
    config = load_config(file)
    assert (config.issuer, config.tokens.max_ttl_s) == ("https://other.example.com", 60)
    assert config.registry.path == Path("/etc/taskpass/registry")
    assert config.serve.trusted_proxies == "10.0.0.0/8, ::1"
    assert config.log.level == "info"


def test_every_key_can_come_from_the_environment(tmp_path, monkeypatch):
    (tmp_path / "taskpass.toml").write_text("")
    monkeypatch.setenv("TASKPASS_ISSUER", "http://[::1]:8700")
    monkeypatch.setenv("TASKPASS_KEYS__ENCRYPTION_KEY", "secret-value")
    config = load_config(tmp_path / "taskpass.toml")
    assert config.keys.encryption_key is not None
    assert config.keys.encryption_key.get_secret_value() == "secret-value"
    assert "secret-value" not in repr(config)


def test_the_file_is_named_by_the_environment(file, monkeypatch):
    monkeypatch.setenv("TASKPASS_CONFIG", str(file))
    assert load_config().issuer == "https://taskpass.example.com"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colour = 1\n" + MINIMAL, ["1: colour: unknown key"]),
        (MINIMAL + "[tokens]\nmax_ttl = 5\n", ["6: tokens.max_ttl: unknown key: did you mean 'max_ttl_s'?"]),
        (MINIMAL + "\n[token]\nmax_ttl_s = 5\n", ["6: token: unknown key: did you mean 'tokens'?"]),
        (MINIMAL + "[tokens]\nmax_ttl_s = 5\n", ["6: tokens.max_ttl_s: must be at least 10"]),
        (MINIMAL + "[tokens]\nmax_ttl_s = 'five'\n", ["6: tokens.max_ttl_s: must be a whole number"]),
        (MINIMAL + "[tasks]\ndefault_deadline_s = 9\nmax_deadline_s = 8\n", [
            "5: tasks: default_deadline_s is above max_deadline_s"]),
        (MINIMAL + "[log]\nlevel = 'loud'\n", ["6: log.level: must be one of 'debug', 'info', 'warning' or 'error'"]),
        (MINIMAL + "[serve]\nlisten = ':8700'\n", ["6: serve.listen: must be host:port, e.g. 127.0.0.1:8700 or [::1]:8700"]),
        (MINIMAL + "[serve]\ntrusted_proxies = '10.0.0.1/8'\n", ["6: serve.trusted_proxies: 10.0.0.1/8 has host bits set"]),
        (MINIMAL + "encryption_key = 'c2VjcmV0'\n", ["3: keys: give exactly one of encryption_key_file and encryption_key"]),
        ("", [
            "issuer: is missing; set it here or as TASKPASS_ISSUER",
            "keys: is missing: it says how signing keys are sealed; give encryption_key_file in it"]),
        (MINIMAL.replace("https", "http"), ["1: issuer: must be https: plain http is for loopback only"]),
        (MINIMAL.replace(".com", ".com/"), [
            "1: issuer: must be a URL such as https://taskpass.example.com, without a path or a '/' at its end"]),
        (MINIMAL.replace("task", "TASK"), ["1: issuer: must be lower-case ASCII without user information"]),
    ],
)  # fmt: skip
def test_what_refuses_to_start(file, text, expected):
    file.write_text(text)
    assert [problem.removeprefix(f"{file}: ").strip() for problem in problems_of(file)] == expected


def test_a_wrong_variable_is_named_instead_of_the_file(file, monkeypatch):
    monkeypatch.setenv("TASKPASS_TOKENS__MAX_TTL_S", "soon")
    monkeypatch.setenv("TASKPASS_TOKENS__MAX_TTLS", "60")
    monkeypatch.setenv("TASKPASS_TOKEN__MAX_TTL_S", "60")
    assert problems_of(file) == [
        "TASKPASS_TOKEN__MAX_TTL_S: unknown section: did you mean 'tokens'?",
        "TASKPASS_TOKENS__MAX_TTL_S: must be a whole number",
        "TASKPASS_TOKENS__MAX_TTLS: unknown key: did you mean 'max_ttl_s'?",
    ]


def test_a_secret_is_never_in_an_error(file, monkeypatch):
    monkeypatch.setenv("TASKPASS_KEYS__ENCRYPTION_KEY", "hunter2hunter2")
    with pytest.raises(ConfigurationInvalid) as caught:
        load_config(file)
    assert "hunter2" not in f"{caught.value}{caught.value.body()}"


def test_files_that_cannot_be_read(tmp_path):
    path = tmp_path / "taskpass.toml"
    assert problems_of(path) == [
        f"{path}: cannot be read: No such file or directory; `taskpass init` writes one".replace(f"{path}:", "")
    ]
    path.write_bytes(b"\xff")
    assert problems_of(path) == [" not UTF-8"]
    path.write_bytes(b"#" * ((256 << 10) + 1))
    assert problems_of(path) == [" larger than 262144 bytes"]
    path.write_text("issuer = \n")
    assert problems_of(path) == [" not TOML: Invalid value (at line 1, column 10)"]
    path.unlink()
    os.mkfifo(path)
    assert problems_of(path) == [" not a regular file"]


def test_listen_addresses():
    assert split_listen("[::1]:80") == ("::1", 80)
    assert split_listen("localhost:0") == ("localhost", 0)
    for wrong in ("8700", "::1:80", "host:", "host:65536", "host:-1"):
        with pytest.raises(ValueError, match="must be host:port"):
            split_listen(wrong)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("localhost.evil", False),
        ("127.1", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_the_reference_describes_every_key():
    table = render_reference().splitlines()[2:]
    assert len(table) == sum(len(getattr(f.annotation, "model_fields", [1])) for f in Config.model_fields.values())
    assert "| `tokens.max_ttl_s` | `TASKPASS_TOKENS__MAX_TTL_S` | `300` |" in render_reference()
    for row in table:
        assert row.split("|")[-2].strip().endswith("."), row


def test_a_ledger_lies_in_one_place(file, monkeypatch):
    secret = "postgresql://broker:hunter2@db.example.com/taskpass"
    file.write_text(f'{MINIMAL}\n[ledger]\nurl = "{secret}"\nstate_path = "state"\n')
    config = load_config(file)
    assert config.ledger.url.get_secret_value() == secret
    assert "hunter2" not in repr(config)
    assert config.ledger.side_file(".spool") == file.parent / "state" / "ledger.spool"
    file.write_text(f'{MINIMAL}\n[ledger]\nurl = "{secret}"\npath = "ledger.db"\n')
    assert problems_of(file) == ["6: ledger: give path (SQLite) or url (PostgreSQL), not both"]
    file.write_text(f'{MINIMAL}\n[ledger]\nurl = "mysql://broker:hunter2@db/taskpass"\n')
    (problem,) = problems_of(file)
    assert "postgresql://user" in problem
    assert "hunter2" not in problem
    file.write_text(MINIMAL)
    assert load_config(file).ledger.side_file(".spool") == file.parent / "data" / "ledger.db.spool"
