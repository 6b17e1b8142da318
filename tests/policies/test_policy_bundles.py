"""What loads, what does not, and where the loader says the fault is."""

import dataclasses

import pytest
from policy_kit import PERMIT_ALL, VOCABULARY

from policies import Action, Agent, Parameter, PolicyInvalid, Resource
from policies.bundle import diff, load_directory, load_files
from policies.text import MAX_FILE, MAX_OPERATORS, MAX_POLICY

GOOD = {
    "permits/p.cedar": "// a; comment\n" + PERMIT_ALL,
    "gates/g.cedar": '@id("g")\n@approvers("dba")\nforbid(principal, action in Action::"write", resource);\n',
    "nevers/n.cedar": '@id("n") forbid(principal, action, resource in System::"bank");\n',
}


def problems(files, vocabulary=VOCABULARY):
    with pytest.raises(PolicyInvalid) as refused:
        load_files(files, vocabulary)
    return [str(problem) for problem in refused.value.problems]


def test_a_bundle_gives_back_its_files_and_its_policies_with_their_places():
    bundle = load_files(GOOD, VOCABULARY)
    assert dict(bundle.files) == GOOD
    assert {id_: (policy.file, policy.line) for id_, policy in bundle.policies.items()} == {
        "all": ("permits/p.cedar", 2),
        "g": ("gates/g.cedar", 1),
        "n": ("nevers/n.cedar", 1),
    }
    with pytest.raises(TypeError):
        bundle.files["x"] = ""


def test_an_empty_bundle_loads():
    assert not load_files({}, VOCABULARY).policies
    assert not load_files({"permits/p.cedar": "", "nevers/n.cedar": "// nothing yet"}, VOCABULARY).policies


REFUSED = {
    "forbid in permits": (
        "permits",
        '\n@id("x") forbid(principal, action, resource);',
        2,
        "permits/ holds only `permit`",
    ),
    "permit in gates": (
        "gates",
        '@id("x") @approvers("a") permit(principal, action, resource);',
        1,
        "gates/ holds only",
    ),
    "permit in nevers": ("nevers", '@id("x") permit(principal, action, resource);', 1, "nevers/ holds only `forbid`"),
    "gate without approvers": (
        "gates",
        '\n\n@id("x") forbid(principal, action, resource);',
        3,
        "must name who approves",
    ),
    "gate with empty approvers": (
        "gates",
        '@id("x") @approvers forbid(principal, action, resource);',
        1,
        "must name who",
    ),
    "unknown annotation on a gate": (
        "gates",
        '@id("x") @approvers("a") @qourum("2") forbid(principal, action, resource);',
        1,
        "unknown annotation @qourum",
    ),
    "approvers on a never": (
        "nevers",
        '@id("x") @approvers("a") forbid(principal, action, resource);',
        1,
        "unknown annotation",
    ),
    "quorum of none": (
        "gates",
        '@id("x") @approvers("a") @quorum("0") forbid(principal, action, resource);',
        1,
        "@quorum",
    ),
    "quorum in words": (
        "gates",
        '@id("x") @approvers("a") @quorum("two") forbid(principal, action, resource);',
        1,
        "@quorum",
    ),
    "max_age without unit": (
        "gates",
        '@id("x") @approvers("a") @max_age("15") forbid(principal, action, resource);',
        1,
        "@max_age",
    ),
    "no id": ("permits", "\n\n\npermit(principal, action, resource);", 4, '@id("...") is missing'),
    "bare id": ("permits", "@id permit(principal, action, resource);", 1, "@id"),
    "id with a newline": ("permits", '@id("a\\nb") permit(principal, action, resource);', 1, "@id"),
    "id twice in one policy": (
        "permits",
        '@id("x") @id("y") permit(principal, action, resource);',
        1,
        "duplicate annotation",
    ),
    "id of another file": (
        "permits",
        '@id("g") permit(principal, action, resource);',
        1,
        "is taken by the policy at gates/g.cedar:1",
    ),
    "parse error": (
        "permits",
        '@id("x")\npermit(principal, action, resource) when { context. };',
        1,
        "Cedar cannot read",
    ),
    "half a file": ("nevers", '@id("x") forbid(principal,\n action', 1, "does not end"),
    "half a string": ("nevers", '\n@id("x) forbid(principal, action, resource);', 2, ""),
    "template": ("permits", '@id("x") permit(principal == ?principal, action, resource);', 1, "templates are not used"),
    "misspelled attribute": (
        "permits",
        '\n@id("x") permit(principal, action, resource) when { context.amont > 1 };',
        2,
        "amont",
    ),
    "misspelled action": (
        "nevers",
        '\n@id("x") forbid(principal, action == Action::"payments:trnsfer", resource);',
        2,
        "payments:trnsfer",
    ),
    "misspelled agent": (
        "nevers",
        '@id("x") forbid(principal == Agent::"dispute_bot", action, resource);',
        1,
        "Agent 'dispute_bot'",
    ),
    "misspelled owner": ("nevers", '@id("x") forbid(principal in Owner::"ope", action, resource);', 1, "Owner 'ope'"),
    "misspelled system": (
        "nevers",
        '@id("x") forbid(principal, action, resource in System::"bnk");',
        1,
        "System 'bnk'",
    ),
    "misspelled data class": (
        "nevers",
        '@id("x") forbid(principal, action, resource) when { resource.data_classes.contains("personl") };',
        1,
        "personl",
    ),
    "misspelled data classes": (
        "nevers",
        '@id("x") forbid(principal, action, resource) when { resource.data_classes.containsAny(["personal", "q"]) };',
        1,
        "'q'",
    ),
    "misspelled trigger": (
        "nevers",
        '@id("x") forbid(principal, action, resource) unless { "usr" == context.trigger };',
        1,
        "'usr'",
    ),
    "outside a closed set": (
        "nevers",
        (
            '@id("x") forbid(principal, action == Action::"credits:propose", resource) '
            'when { context.parameters has reason && context.parameters.reason == "eror" };'
        ),
        1,
        "context.parameters.reason is never 'eror'",
    ),
    "optional parameter unguarded": (
        "nevers",
        (
            '@id("x") forbid(principal, action == Action::"invoices:note", resource) '
            'when { context.parameters.note == "a" };'
        ),
        1,
        "note",
    ),
    "type error": ("nevers", '@id("x") forbid(principal, action, resource) when { context.depth == "0" };', 1, ""),
    "unknown entity type": ("nevers", '@id("x") forbid(principal is User, action, resource);', 1, "User"),
    "direction override": ("nevers", '@id("x")\n// \u202e\nforbid(principal, action, resource);', 2, "cannot be seen"),
    "bare carriage return": ("nevers", '// off\r@id("x") forbid(principal, action, resource);', 1, "cannot be seen"),
    "null character": ("nevers", "\n\0", 2, "cannot be seen"),
    "byte order mark": ("nevers", '\ufeff@id("x") forbid(principal, action, resource);', 1, "cannot be seen"),
    "file too large": ("nevers", " " * (MAX_FILE + 1), None, "larger than"),
    "policy too long": (
        "nevers",
        f'\n@id("x") forbid(principal, action, resource) when {{ "{"a" * MAX_POLICY}" == "" }};',
        2,
        "longer than",
    ),
    "too many operators": (
        "nevers",
        f'@id("x") forbid(principal, action, resource) when {{ {"(" * MAX_OPERATORS}true{")" * MAX_OPERATORS} }};',
        1,
        "operators",
    ),
    "nested too deep for a tree": (
        "nevers",
        f'@id("x") forbid(principal, action, resource) when {{ true{" && true" * 150} }};',
        1,
        "Cedar cannot read",
    ),
}


@pytest.mark.parametrize(("folder", "text", "line", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_name_file_and_line(folder, text, line, message):
    file = f"{folder}/bad.cedar"
    found = problems({**GOOD, file: text})
    where = f"{file}:{line}: " if line else f"{file}: "
    assert any(problem.startswith(where) and message in problem for problem in found), found


def test_every_problem_is_named_not_only_the_first():
    found = problems(
        {"permits/a.cedar": "permit(principal,", "nevers/b.cedar": '@id("x") permit(principal, action, resource);'}
    )
    assert len(found) == 2


@pytest.mark.parametrize(
    "name", ["x.cedar", "permit/x.cedar", "nevers/../x.cedar", "nevers/x.txt", "/nevers/x.cedar", "nevers/a/b.cedar"]
)
def test_file_names_are_one_of_three_folders_and_a_name(name):
    assert problems({name: ""}) == [f"{name}: is no permits/*.cedar, gates/*.cedar or nevers/*.cedar file"]


def test_a_policy_that_fails_on_a_plain_request_does_not_load():
    text = (
        '@id("x") forbid(principal, action == Action::"credits:propose", resource) '
        "when { context.parameters.amount_cents - 9223372036854775807 - 2 < 0 };"
    )
    assert problems({**GOOD, "nevers/x.cedar": text})[0].startswith("self-test of action credits:propose: x: ")


# --- Directories ------------------------------------------------------------------------------------------------------


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_a_directory_and_its_content_are_the_same_bundle(tmp_path):
    write(tmp_path, {**GOOD, "cases.yaml": "cases: []", "README.md": "hello", "..data/nevers/x.cedar": "not read"})
    from_disk = load_directory(tmp_path, VOCABULARY)
    assert from_disk.hash == load_files(GOOD, VOCABULARY).hash
    assert load_files(from_disk.files, VOCABULARY).hash == from_disk.hash


@pytest.mark.parametrize(
    "stray", ["never/x.cedar", "nevers/x.cedar.bak", "nevers/deep/x.cedar", "x.cedar", "nevers/README", "x.CEDAR"]
)
def test_policy_that_would_not_be_read_is_a_problem(tmp_path, stray):
    write(tmp_path, {**GOOD, stray: ""})
    with pytest.raises(PolicyInvalid, match=f"{stray}: is no permits"):
        load_directory(tmp_path, VOCABULARY)


def test_a_directory_that_is_none_or_has_no_folder_or_is_not_text(tmp_path):
    with pytest.raises(PolicyInvalid, match="no such directory"):
        load_directory(tmp_path / "absent", VOCABULARY)
    with pytest.raises(PolicyInvalid, match="none of the folders"):
        load_directory(tmp_path, VOCABULARY)
    (tmp_path / "nevers").mkdir()
    assert not load_directory(tmp_path, VOCABULARY).policies
    (tmp_path / "nevers" / "x.cedar").write_bytes(b"\xff")
    with pytest.raises(PolicyInvalid, match=r"nevers/x\.cedar: cannot be read as UTF-8"):
        load_directory(tmp_path, VOCABULARY)


# --- Hash and difference ----------------------------------------------------------------------------------------------


def test_the_hash_is_stable_and_covers_text_names_and_schema():
    bundle = load_files(GOOD, VOCABULARY)
    assert bundle.hash == load_files(dict(reversed(GOOD.items())), VOCABULARY).hash
    renamed = {("nevers/m.cedar" if name == "nevers/n.cedar" else name): text for name, text in GOOD.items()}
    actions = {**VOCABULARY.actions, "invoices:close": Action("invoices", "write", {"final": Parameter("boolean")})}
    others = [
        load_files({**GOOD, "permits/p.cedar": GOOD["permits/p.cedar"] + "\n"}, VOCABULARY),
        load_files(renamed, VOCABULARY),
        load_files(GOOD, dataclasses.replace(VOCABULARY, actions=actions)),
    ]
    assert len({bundle.hash, *(other.hash for other in others)}) == 4


def test_the_hash_does_not_depend_on_the_order_of_the_vocabulary():
    turned = dataclasses.replace(
        VOCABULARY,
        agents=dict(reversed(VOCABULARY.agents.items())),
        actions={
            id_: dataclasses.replace(action, parameters=dict(reversed(action.parameters.items())))
            for id_, action in reversed(VOCABULARY.actions.items())
        },
    )
    assert load_files(GOOD, turned).hash == load_files(GOOD, VOCABULARY).hash


def test_a_difference_names_policies_by_what_they_mean():
    old = load_files(GOOD, VOCABULARY)
    new = load_files(
        {
            "permits/q.cedar": "// moved\n\n" + PERMIT_ALL,
            "gates/g.cedar": GOOD["gates/g.cedar"].replace("dba", "finance"),
            "nevers/n.cedar": '@id("m") forbid(principal, action, resource in System::"bank");\n',
        },
        VOCABULARY,
    )
    assert diff(old, new).as_dict() == {"added": ["m"], "removed": ["n"], "changed": ["g"]}
    assert diff(None, old).added == ("all", "g", "n")
    assert not diff(old, old)


# --- Vocabularies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agents": {"": Agent("x")}}, "Agent id ''"),
        ({"agents": {"a\u200bb": Agent("x")}}, "not printable"),
        ({"agents": {"a": Agent("x", {"__entity": 1})}}, "name of an attribute"),
        ({"agents": {"a": Agent("x", {"tier": 1.5})}}, "must be a string"),
        ({"agents": {"a": Agent("x", {"tier": 1}), "b": Agent("x", {"tier": "1"})}}, "another type"),
        ({"agents": {"a": Agent("x", {"tier": 2**63})}}, "does not load"),
        ({"actions": {"read": Action("credits", "read")}}, "belongs to a group"),
        ({"actions": {"x": Action("nowhere", "read")}}, "is not registered"),
        ({"actions": {"x": Action("credits", "admin")}}, "read or write"),
        ({"actions": {"x": Action("credits", "read", {"__extn": Parameter("string")})}}, "name of a parameter"),
        ({"actions": {"x": Action("credits", "read", {"p": Parameter("float")})}}, "has no type"),
        ({"actions": {"x": Action("credits", "read", {"p": Parameter("integer", values=("1",))})}}, "only strings"),
        ({"resources": {"r": Resource("s" * 257, "a", "o")}, "actions": {}}, "System id"),
        ({"triggers": frozenset()}, "trigger"),
    ],
)
def test_a_vocabulary_that_contradicts_itself_does_not_load(change, message):
    assert any(message in problem for problem in problems({}, dataclasses.replace(VOCABULARY, **change)))


def test_attributes_that_not_every_agent_has_must_be_asked_for():
    vocabulary = dataclasses.replace(VOCABULARY, agents={"a": Agent("x", {"tier": 1}), "b": Agent("x")})
    text = '@id("x") permit(principal, action, resource) when { %s principal.tier > 0 };'
    assert "tier" in problems({"permits/p.cedar": text % ""}, vocabulary)[0]
    load_files({"permits/p.cedar": text % "principal has tier &&"}, vocabulary)
