"""Broken files: every problem is named with its file and line, and stops as much as it must and no more."""
# ruff: noqa: E501, ISC004  (tables of exact messages)

import os

import pytest

from broker.errors import ConfigurationInvalid
from broker.registry import load
from broker.registry.nodes import MAX_DEPTH

NOW = 1_780_000_000_000  # 2026-05-28
ID_RULE = "not an id: 1 to 63 of a-z, 0-9, '.', '_', '-', beginning with a letter or digit"


def problems_of(directory):
    with pytest.raises(ConfigurationInvalid) as caught:
        load(directory)
    return [str(problem) for problem in caught.value.problems]


def test_a_sound_registry_has_no_problems(registry):
    assert registry.problems(NOW) == ()
    assert registry.agents["bot"].boundary == {"invoices": frozenset({"invoices:read"})}
    assert registry.operators["ada"].owners is None
    assert registry.trust["mesh"].id == "mesh"


OWNER = "owners: {finance: {name: F, contact: c, backup: b, escalation: e%s}}"

REFUSED = [
    # --- the file as such
    ("not utf-8", {"x": b"owners:\n  \xff: 1\n"}, ["registry/x.yaml:2: not UTF-8"]),
    ("utf-16", {"x": "owners: {}".encode("utf-16")}, ["registry/x.yaml:1: not UTF-8"]),
    ("nul", {"x": b"# a\n# \x00\n"}, ["registry/x.yaml:2: the character U+0000 is not allowed"]),
    ("escape", {"x": b"# \x1b[2J\n"}, ["registry/x.yaml:1: the character U+001B is not allowed"]),
    ("bidi in a comment", {"x": "\n# \u202e evil\n"}, ["registry/x.yaml:2: the character U+202E is not allowed"]),
    ("escaped bidi", {"x": 'owners: {a: "\\u202e"}'}, ["registry/x.yaml:1: the character U+202E is not allowed"]),
    ("lone carriage return", {"x": b"# a\r# b\n"}, ["registry/x.yaml:1: the character U+000D is not allowed"]),
    ("a list", {"x": "- owners\n"}, [
        "registry/x.yaml:1: must be a mapping of kinds: owners, agents, resources, operators, verifiers, trust"]),
    ("anchor", {"x": "owners:\n  a: &a {}\n  b: *a\n"}, [
        "registry/x.yaml:2: anchors and aliases are not allowed: write the value out"]),
    ("tag", {"x": "owners: !!python/object:os.system {}\n"}, [
        "registry/x.yaml:1: tags are not allowed: remove 'tag:yaml.org,2002:python/object:os.system'"]),
    ("two documents", {"x": "---\nowners: {}\n---\nowners: {}\n"}, [
        "registry/x.yaml:3: one file holds one document: remove the '---'"]),
    ("deep", {"x": "a: " + "[" * 5000}, [f"registry/x.yaml:1: nested more than {MAX_DEPTH} levels deep"]),
    ("number key", {"x": "1: {}\n"}, ["registry/x.yaml:1: a key must be text: write it in quotes"]),
    ("merge key", {"x": "owners: {<<: {a: {}}}\n"}, [
        f"registry/x.yaml:1: owner '<<': {ID_RULE}"]),
    ("float", {"x": "owners: {a: 1.5}\n"}, [
        "registry/x.yaml:1: numbers with a fraction are not allowed: use whole units, or quotes for text"]),
    ("65 bits", {"x": "owners: {a: 9223372036854775808}\n"}, ["registry/x.yaml:1: the number does not fit in 64 bits"]),
    # --- kinds and ids
    ("unknown kind", {"x": "agnets: {}\n"}, ["registry/x.yaml:1: unknown key 'agnets': did you mean 'agents'?"]),
    ("kind twice", {"x": "owners: {}\nowners: {}\n"}, [
        "registry/x.yaml:2: owners is given twice, first in line 1"]),
    ("kind is a list", {"x": "owners: []\n"}, ["registry/x.yaml:1: owners must be a mapping of ids"]),
    ("upper case id", {"x": "owners:\n  Finance: {}\n"}, [f"registry/x.yaml:2: owner 'Finance': {ID_RULE}"]),
    ("newline in an id", {"x": 'owners: {"a\\nb": {}}'}, [f"registry/x.yaml:1: owner 'a\\nb': {ID_RULE}"]),
    ("homoglyph id", {"x": "owners: {fin\u0430nce: {}}"}, [f"registry/x.yaml:1: owner 'fin\u0430nce': {ID_RULE}"]),
    ("long id", {"x": f"owners: {{{'a' * 64}: {{}}}}"}, [f"registry/x.yaml:1: owner '{'a' * 59}…': {ID_RULE}"]),
    ("reserved id", {"x": "agents: {taskpass: {}}"}, ["registry/x.yaml:1: agent 'taskpass': this id is reserved"]),
    ("reserved trust id", {"x": "trust: {operator.ada: {}}"}, [
        "registry/x.yaml:1: trust 'operator.ada': ids beginning with 'operator.' are reserved"]),
    ("id twice in a file", {"owners": OWNER % "" + "\n", "x": "owners:\n  b: {}\n  b: {}\n"}, [
        "registry/x.yaml:2: owner b: 'backup' is missing",
        "registry/x.yaml:2: owner b: 'contact' is missing",
        "registry/x.yaml:2: owner b: 'escalation' is missing",
        "registry/x.yaml:2: owner b: 'name' is missing",
        "registry/x.yaml:3: owner 'b': is given twice, first in registry/x.yaml:2"]),
    ("id twice in two files", {"x": OWNER % ""}, [
        "registry/x.yaml:1: owner finance: is given twice, first in registry/owners.yaml:2"]),
    # --- entries outside agents
    ("unknown key", {"owners": OWNER % ", backupp: x"}, ["registry/owners.yaml:1: owner finance: unknown key 'backupp'"
                                                        ": did you mean 'backup'?"]),
    ("key twice", {"owners": OWNER % ", name: x"}, [
        "registry/owners.yaml:1: owner finance: key 'name' is given twice"]),
    ("two lines of name", {"owners": 'owners: {finance: {name: "a\\nb", contact: c, backup: b, escalation: e}}'}, [
        "registry/owners.yaml:1: owner finance: name: must be one line of text"]),
    ("misspelt audience", {"trust": """\
        trust:
          idp:
            kind: oidc
            issuer: https://idp.example.com
            audience: taskpass
            jwks:
              url: http://idp.example.com
          hub: {kind: githup}
          mesh: {jwks: {file: x}}
        """}, [
        "registry/trust.yaml:5: trust idp: unknown key 'audience'",
        "registry/trust.yaml:6: trust idp: jwks: url must be https",
        "registry/trust.yaml:8: trust hub: kind must be one of 'spiffe', 'kubernetes', 'github', 'oidc', 'key'",
        "registry/trust.yaml:9: trust mesh: 'kind' is missing",
    ]),
    ("two rows for one issuer", {"x": """\
        trust:
          again: {kind: kubernetes, issuer: "https://idp.example.com", jwks: {file: x}}
          mesh2: {kind: spiffe, trust_domain: example.org, jwks: {file: x}}
          ada-key: {kind: key, subject: ada, jwks: {file: x}}
          own: {id: own, kind: oidc, issuer: i, jwks: {keys: [{kty: oct, k: AAAA}]}}
        """}, [
        "registry/x.yaml:2: trust again: trust idp speaks for 'https://idp.example.com' already",
        "registry/x.yaml:3: trust mesh2: trust mesh speaks for 'spiffe://example.org' already",
        "registry/x.yaml:4: trust ada-key: operator ada speaks for 'ada' already",
        "registry/x.yaml:5: trust own: unknown key 'id'",
    ]),
    ("resources", {"resources": """\
        resources:
          invoices:
            system: A
            audience: https://invoices.example.com
            owner: nobody
            data_classes: []
            leaves_boundary: no
            retention: r
            actions: {"invoices:read": {access: read, description: d}}
        """}, ["registry/resources.yaml:7: resource invoices: leaves_boundary: must be true or false"]),
    ("resource references", {"x": """\
        resources:
          other:
            system: A
            audience: https://INVOICES.example.com
            owner: nobody
            data_classes: []
            leaves_boundary: false
            retention: r
            actions:
              Invoices:Read: {access: read, description: d}
              x:y: {access: read, description: d}
              X:y: {access: read, description: d}
        """}, [
        "registry/x.yaml:4: resource other: resource invoices has this audience already",
        "registry/x.yaml:5: resource other: there is no owner 'nobody'",
        "registry/x.yaml:9: resource other: two actions differ only in upper and lower case",
        "registry/x.yaml:10: resource other: resource invoices has the action Invoices:Read already",
    ]),
    ("resource values", {"x": """\
        resources:
          other:
            system: A
            audience: "https://x.example.com/#f"
            owner: finance
            data_classes: [Personal]
            leaves_boundary: false
            retention: r
            actions:
              "has space": {access: read, description: d}
              a:b:
                access: delete
                description: d
                parameters:
                  __entity: {type: string}
                  amount: {type: float}
                  count: {type: integer, minimum: 5, maximum: 4}
                  note: {type: string, minimum: 1}
                  flag: {type: boolean, values: [a]}
        """}, [
        "registry/x.yaml:4: resource other: audience: must not have a fragment ('#')",
        "registry/x.yaml:6: resource other: data_classes.0: 'Personal' is not allowed here: 1 to 63 of a-z, 0-9, '.', "
        "'_', '-', beginning with a letter or digit",
        "registry/x.yaml:10: resource other: actions: 'has space' is not allowed here: printable ASCII without space, "
        "'\"' and '\\', at most 100",
        "registry/x.yaml:12: resource other: actions.a:b.access: must be one of 'read' or 'write'",
        "registry/x.yaml:15: resource other: actions.a:b.parameters: '__entity' is not allowed here: letters, digits and "
        "'_', not beginning with '__' or a digit",
        "registry/x.yaml:16: resource other: actions.a:b.parameters.amount.type: must be one of 'string', 'integer' or "
        "'boolean'",
        "registry/x.yaml:17: resource other: actions.a:b.parameters.count: minimum is above maximum",
        "registry/x.yaml:18: resource other: actions.a:b.parameters.note: minimum and maximum are for integers",
        "registry/x.yaml:19: resource other: actions.a:b.parameters.flag: values and max_length are for strings",
    ]),
    ("operators", {"operators": """\
        operators:
          a: {name: A, keys: [], rights: [kill], owners: all}
          b: {name: B, keys: [{file: none.json}], rights: [fly], owners: some}
          c: {name: C, keys: [{kty: oct, k: AAAA}], rights: [kill], owners: [finance]}
        """}, [
        "registry/operators.yaml:2: operator a: keys: must not be empty",
        "registry/operators.yaml:3: operator b: keys.0: cannot be read: No such file or directory",
        "registry/operators.yaml:3: operator b: owners: must be a list",
        "registry/operators.yaml:3: operator b: rights.0: must be one of 'read', 'kill', 'resume', 'approve', 'reload' "
        "or 'rotate'",
        "registry/operators.yaml:4: operator c: keys.0: not a public key for ES256: A symmetric key among "
        "public keys: a shared secret would verify.",
    ]),
    ("verifier references", {"verifiers": """\
        verifiers:
          v:
            owner: nobody
            identities:
              - {trust: none, subject: x}
              - {trust: idp}
            audiences: [https://other.example.com]
        """}, [
        "registry/verifiers.yaml:3: verifier v: there is no owner 'nobody'",
        "registry/verifiers.yaml:5: verifier v: there is no trust 'none'",
        "registry/verifiers.yaml:6: verifier v: would match everything that trust idp vouches for: give a subject or claims",
        "registry/verifiers.yaml:7: verifier v: no resource has the audience 'https://other.example.com'",
    ]),
    ("two verifiers with one identity", {"x": """\
        verifiers:
          other:
            owner: finance
            identities: [{trust: idp, subject: billing}]
            audiences: [https://invoices.example.com]
        """}, [
        "registry/verifiers.yaml:4: verifier billing: a workload could be this and verifier other: name a subject or claim "
        "that differs",
        "registry/x.yaml:4: verifier other: a workload could be this and verifier billing: name a subject or claim that "
        "differs",
    ]),
    ("a reference to a broken entry is not a second problem", {"owners": "owners: {finance: {}}"}, [
        "registry/owners.yaml:1: owner finance: 'backup' is missing",
        "registry/owners.yaml:1: owner finance: 'contact' is missing",
        "registry/owners.yaml:1: owner finance: 'escalation' is missing",
        "registry/owners.yaml:1: owner finance: 'name' is missing",
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("files", "expected"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_what_refuses_the_registry(write, files, expected):
    assert problems_of(write(**files)) == expected


def test_broken_yaml_names_its_line(write):
    (problem,) = problems_of(write(x="owners:\n  a: [\n"))
    assert problem.startswith("registry/x.yaml:3: not YAML: ")


def test_break_glass_may_only_kill_for_everyone(write):
    key = load(write()).operators["ada"].keys[0]
    entry = f"{{name: B, break_glass: true, rights: [kill, resume], owners: all, keys: [{{kty: EC, crv: P-256, x: {key['x']}, y: {key['y']}}}]}}"
    (problem,) = problems_of(write(operators=f"operators: {{glass: {entry}}}"))
    assert problem == "registry/operators.yaml:1: operator glass: a break-glass key has rights: [kill] and owners: all"


def test_two_operators_cannot_share_a_key(write):
    key = load(write()).operators["ada"].keys[0]
    entry = f"{{name: B, rights: [kill], owners: [finance, none], keys: [{{kty: EC, crv: P-256, x: {key['x']}, y: {key['y']}}}]}}"
    assert problems_of(write(x=f"operators: {{bob: {entry}}}")) == [
        "registry/x.yaml:1: operator bob: operator ada has this key already",
        "registry/x.yaml:1: operator bob: there is no owner 'none'",
    ]


AGENT = """\
    agents:
      bot:
        owner: {owner}
        purpose: Works disputes
        workflow: w
        identities: {identities}
        boundary: {boundary}
        review: {review}
        limits: {limits}
    """
GOOD = {
    "owner": "finance",
    "identities": "[{trust: idp, subject: bot}]",
    "boundary": '{invoices: ["invoices:read"]}',
    "review": "{reviewer: Ada, reviewed: 2026-01-01, expires: 2026-12-31}",
    "limits": "{}",
}
AMBIGUOUS = "a workload could be this and {}: name a subject or claim that differs"

BLOCKED = [
    ({"owner": ""}, ["3: agent bot: owner: must be text"]),
    ({"owner": "nobody"}, ["3: agent bot: there is no owner 'nobody'"]),
    ({"owner": '"a\\rb"'}, None),
    ({"identities": "[]"}, ["6: agent bot: 'identities' is missing or empty"]),
    ({"identities": "[{trust: none, subject: x}]"}, ["6: agent bot: there is no trust 'none'"]),
    ({"identities": "[{trust: idp, subject: x, subject_prefix: y}]"}, [
        "6: agent bot: identities.0: give subject or subject_prefix, not both"]),
    ({"identities": "[{trust: idp, subject_prefix: x}]"}, [
        "6: agent bot: subject_prefix is for SPIFFE only: give the whole subject"]),
    ({"identities": "[{trust: idp, claims: {a: 1}}]"}, [
        "6: agent bot: identities.0.claims.a: must be text: write it in quotes"]),
    ({"identities": "[{trust: mesh, subject: 'spiffe://example.org.evil/a'}]"}, [
        "6: agent bot: subject must begin with spiffe://example.org/ and name a path"]),
    ({"identities": "[{trust: mesh, subject_prefix: 'spiffe://example.org/'}]"}, [
        "6: agent bot: subject_prefix must begin with spiffe://example.org/ and name a path"]),
    ({"identities": "[{trust: mesh, subject_prefix: 'spiffe://example.org/a/'}]"}, [
        "6: agent bot: subject_prefix must not end in '/'"]),
    ({"identities": "[{trust: hub, subject: 'repo:org/app:ref:refs/heads/main'}]"}, [
        "6: agent bot: bind GitHub on the claims repository_id and repository_owner_id: names can be taken over"]),
    ({"identities": "[{trust: hub, claims: {repository_id: '1'}}]"}, [
        "6: agent bot: bind GitHub on the claims repository_id and repository_owner_id: names can be taken over"]),
    ({"identities": "[{trust: signer, subject: other}]"}, [
        "6: agent bot: trust signer is the key of one client: give only 'trust'"]),
    ({"identities": "[{trust: idp, subject: billing}]"}, ["6: agent bot: " + AMBIGUOUS.format("verifier billing")]),
    ({"boundary": "{none: [a]}"}, ["7: agent bot: there is no resource 'none'"]),
    ({"boundary": '{invoices: ["invoices:write"]}'}, ["7: agent bot: resource invoices has no action 'invoices:write'"]),
    ({"boundary": "{invoices: []}"}, ["7: agent bot: lists no action of invoices"]),
    ({"review": ""}, ["8: agent bot: 'review' is missing: who reviewed the boundary, and until when?"]),
    ({"review": "{reviewer: Ada, reviewed: 2026-02-30, expires: soon}"}, [
        "8: agent bot: review.expires: must be a date such as 2026-12-31",
        "8: agent bot: review.reviewed: must be a date such as 2026-12-31"]),
    ({"review": "{reviewer: Ada, reviewed: 2026-02-02, expires: 2026-02-01}"}, [
        "8: agent bot: review: expires before it was reviewed"]),
    ({"limits": '{token_ttl_s: "300"}'}, ["9: agent bot: limits.token_ttl_s: must be a whole number"]),
    ({"limits": "{token_ttl_s: 99999, task_tll_s: 5}"}, [
        "9: agent bot: limits.token_ttl_s: must be at most 3600",
        "9: agent bot: limits: unknown key 'task_tll_s': did you mean 'task_ttl_s'?"]),
]  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), BLOCKED, ids=[str(case[0]) for case in BLOCKED])
def test_what_blocks_one_agent_only(write, change, expected):
    other = AGENT.format(**{**GOOD, "identities": "[{trust: idp, subject: other}]"}).replace("bot:", "other:")
    directory = write(agents=AGENT.format(**{**GOOD, **change}), x=other)
    if expected is None:  # not one agent's problem: the file cannot be read
        assert problems_of(directory) == ["registry/agents.yaml:3: the character U+000D is not allowed"]
        return
    registry = load(directory)
    assert [str(problem) for problem in registry.agents["bot"].problems] == [
        f"registry/agents.yaml:{e}" for e in expected
    ]
    assert registry.agent_problems(registry.agents["bot"], NOW) == registry.agents["bot"].problems
    assert registry.agent_problems(registry.agents["other"], NOW) == ()


def test_an_agent_that_cannot_be_understood_is_still_there(write):
    registry = load(write(agents="agents:\n  bot: []\n  half: {owner: finance, purpose: 5, extra: 1, extra: 2}\n"))
    assert [str(problem) for problem in registry.agents["bot"].problems] == [
        "registry/agents.yaml:2: agent bot: must be a mapping"
    ]
    assert [problem.message for problem in registry.agents["half"].problems] == [
        "agent half: 'boundary' is missing or empty",
        "agent half: 'identities' is missing or empty",
        "agent half: 'review' is missing: who reviewed the boundary, and until when?",
        "agent half: 'workflow' is missing or empty",
        "agent half: key 'extra' is given twice",
        "agent half: purpose: must be text: write it in quotes",
        "agent half: unknown key 'extra'",
    ]
    assert registry.agents_of("finance") == ("half",)  # its owner's kill still reaches it


def test_a_broken_registry_lists_the_agents_problems_too(write):
    change = {**GOOD, "owner": "nobody"}
    assert problems_of(write(agents=AGENT.format(**change), x="what: {}")) == [
        "registry/agents.yaml:3: agent bot: there is no owner 'nobody'",
        "registry/x.yaml:1: unknown key 'what'",
    ]


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        ("{trust: idp, subject: a}", "{trust: idp, subject: a}", True),
        ("{trust: idp, subject: a}", "{trust: idp, subject: b}", False),
        ("{trust: idp, subject: a}", "{trust: idp, subject: a, claims: {env: prod}}", True),
        ("{trust: idp, subject: a, claims: {env: dev}}", "{trust: idp, subject: a, claims: {env: prod}}", False),
        ("{trust: idp, subject: a}", "{trust: idp, claims: {project: '1'}}", True),
        ("{trust: mesh, subject_prefix: 'spiffe://example.org/a'}", "{trust: mesh, subject: 'spiffe://example.org/a/b'}", True),
        ("{trust: mesh, subject_prefix: 'spiffe://example.org/a'}", "{trust: mesh, subject: 'spiffe://example.org/ab'}", False),
        ("{trust: mesh, subject_prefix: 'spiffe://example.org/a'}", "{trust: mesh, subject_prefix: 'spiffe://example.org/a/b'}", True),
        ("{trust: mesh, subject_prefix: 'spiffe://example.org/a'}", "{trust: mesh, subject_prefix: 'spiffe://example.org/c'}", False),
        ("{trust: signer}", "{trust: signer, subject: nightly}", True),
        ("{trust: idp, subject: a}", "{trust: mesh, subject: 'spiffe://example.org/a'}", False),
    ],
)  # fmt: skip
def test_two_agents_that_one_workload_could_be_are_both_blocked(write, one, other, meet):
    first = AGENT.format(**{**GOOD, "identities": f"[{one}]"})
    second = AGENT.format(**{**GOOD, "identities": f"[{other}]"}).replace("bot:", "twin:")
    registry = load(write(agents=first, x=second))
    expected = [f"registry/agents.yaml:6: agent bot: {AMBIGUOUS.format('agent twin')}"] if meet else []
    assert [str(problem) for problem in registry.agents["bot"].problems] == expected
    assert bool(registry.agents["twin"].problems) is meet


def test_many_twins_are_blamed_once_each(write):
    twins = [AGENT.format(**GOOD).replace("bot:", f"bot{number}:").replace("    agents:\n", "") for number in range(50)]
    registry = load(write(agents="    agents:\n" + "".join(twin.rstrip(" ") for twin in twins)))
    messages = {agent.id: [problem.message for problem in agent.problems] for agent in registry.agents.values()}
    assert messages["bot0"] == [f"agent bot0: {AMBIGUOUS.format('agent bot1')}"]
    assert all(len(told) == 1 for told in messages.values())


def test_a_retired_agent_stays_and_its_successor_takes_over_its_identity(write):
    retired = AGENT.format(**{**GOOD, "owner": "left-long-ago"}) + "    retired: true\n"
    successor = AGENT.format(**GOOD).replace("bot:", "bot2:")
    registry = load(write(agents=retired, x=successor))
    assert registry.problems(NOW) == ()
    assert [p.message for p in registry.agent_problems(registry.agents["bot"], NOW)] == ["agent bot: it is retired"]
    assert registry.agent_problems(registry.agents["bot2"], NOW) == ()


def test_a_review_holds_through_its_last_day(registry):
    bot = registry.agents["bot"]
    last_day = 1_798_761_599_999  # 2026-12-31T23:59:59.999Z
    assert registry.agent_problems(bot, last_day) == ()
    assert [str(problem) for problem in registry.agent_problems(bot, last_day + 1)] == [
        "registry/agents.yaml:8: agent bot: its review by Ada expired after 2026-12-31: review it again"
    ]
    assert registry.problems(last_day + 1) == registry.agent_problems(bot, last_day + 1)


def test_yaml_words_that_are_text(write):
    registry = load(write(x="""\
        owners:
          odd: {name: no, contact: on, backup: 2026-01-01, escalation: 1_000}
        """))  # fmt: skip
    assert registry.owners["odd"].name == "no"
    assert registry.owners["odd"].backup == "2026-01-01"


def test_file_kinds(write, tmp_path):
    directory = write()
    (directory / "notes.txt").write_text("not read")
    (directory / ".hidden.yaml").write_text("not read: [")
    (directory / "sub").mkdir()
    (directory / "sub" / "empty.yaml").write_text("# nothing\n")
    load(directory)
    (directory / "sub" / "late.yml").write_text("")
    os.mkfifo(directory / "pipe.yaml")
    (directory / "big.yaml").write_bytes(b"#" * ((1 << 20) + 1))
    (directory / "a\nb.yaml").write_text("x: {}")
    (directory / "gone.yaml").symlink_to(tmp_path / "nowhere")
    assert problems_of(directory) == [
        "'registry/a\\nb.yaml':1: unknown key 'x'",
        "registry/big.yaml: larger than 1048576 bytes",
        "registry/gone.yaml: cannot be read: No such file or directory",
        "registry/pipe.yaml: not a regular file",
        "registry/sub/late.yml: would be ignored: rename it to end in .yaml",
    ]


def test_no_registry(tmp_path):
    assert problems_of(tmp_path / "none") == [f"{tmp_path}/none: not a directory"]
    assert problems_of(tmp_path) == [f"{tmp_path}: holds no *.yaml file"]
