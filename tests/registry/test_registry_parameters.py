"""Parameters are taken as they are or refused with a sentence; nothing is coerced and no value is repeated."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import InvalidDetails
from broker.model import Action, Parameter, ParameterType, Resource
from broker.registry import narrow_parameters

INTEGER, STRING, BOOLEAN = ParameterType.INTEGER, ParameterType.STRING, ParameterType.BOOLEAN


def resource(**actions):
    return Resource(
        id="invoices",
        system="s",
        audience="a",
        owner="o",
        actions={name: Action(name, "write", "d", {p.name: p for p in taken}) for name, taken in actions.items()},
        data_classes=(),
        fields=(),
        leaves_boundary=False,
        retention="r",
    )


INVOICES = resource(
    propose=[
        Parameter("invoice", STRING, required=True, max_length=5),
        Parameter("amount", INTEGER, minimum=1, maximum=100),
        Parameter("count", INTEGER),
        Parameter("channel", STRING, values=("mail", "phone")),
        Parameter("urgent", BOOLEAN),
    ],
    cap=[Parameter("amount", INTEGER, required=True, maximum=10)],
    read=[],
)


def test_good_parameters_come_back_sorted():
    given = {"urgent": False, "invoice": "I-1é", "amount": 100, "channel": "mail", "count": -(2**63)}
    narrowed = narrow_parameters(INVOICES, ["propose"], given)
    assert narrowed == given
    assert list(narrowed) == sorted(given)
    assert narrow_parameters(INVOICES, ["read"], {}) == {}


INVISIBLE = "must not contain control, formatting or invisible characters"


@pytest.mark.parametrize(
    ("actions", "parameters", "sentence"),
    [
        (["fly"], {}, "Resource invoices has no action 'fly'."),
        (["propose"], {}, "Parameter 'invoice' is required."),
        (["propose", "cap"], {"invoice": "x"}, "Parameter 'amount' is required."),
        (["read"], {"invoice": "x"}, "Parameter 'invoice' is not one that the requested actions take."),
        (["propose"], {"Invoice": "x"}, "Parameter 'Invoice' is not one that the requested actions take."),
        (["propose"], {"a\x1b[2J\u202e": 1}, r"Parameter 'a\x1b[2J\u202e' is not one that the requested actions take."),
        (["propose"], {"__entity": {}}, "Parameter '__entity': names beginning with '__' are not allowed."),
        (["propose"], {"invoice": 5}, "Parameter 'invoice' must be a string."),
        (["propose"], {"invoice": None}, "Parameter 'invoice' must be a string."),
        (["propose"], {"invoice": {"__extn": {}}}, "Parameter 'invoice' must be a string."),
        (["propose"], {"invoice": "123456"}, "Parameter 'invoice' must be at most 5 characters long."),
        (["propose"], {"invoice": "a\nb"}, f"Parameter 'invoice' {INVISIBLE}."),
        (["propose"], {"invoice": "a\0b"}, f"Parameter 'invoice' {INVISIBLE}."),
        (["propose"], {"invoice": "a\u202eb"}, f"Parameter 'invoice' {INVISIBLE}."),
        (["propose"], {"invoice": "a\u200bb"}, f"Parameter 'invoice' {INVISIBLE}."),
        (["propose"], {"invoice": "\ud800"}, f"Parameter 'invoice' {INVISIBLE}."),
        (["propose"], {"invoice": "e\u0301"}, "Parameter 'invoice' must be in Unicode normal form C."),
        (["propose"], {"invoice": "x", "channel": "fax"}, "Parameter 'channel' must be one of 'mail', 'phone'."),
        (["propose"], {"invoice": "x", "amount": "5"}, "Parameter 'amount' must be a whole number."),
        (["propose"], {"invoice": "x", "amount": True}, "Parameter 'amount' must be a whole number."),
        (["propose"], {"invoice": "x", "amount": 5.0},
         "Parameter 'amount' must be a whole number: use the smallest unit, without a fraction."),
        (["propose"], {"invoice": "x", "amount": 0}, "Parameter 'amount' must be at least 1."),
        (["propose"], {"invoice": "x", "amount": 101}, "Parameter 'amount' must be at most 100."),
        (["propose", "cap"], {"invoice": "x", "amount": 50}, "Parameter 'amount' must be at most 10."),
        (["propose"], {"invoice": "x", "count": 2**63}, "Parameter 'count' must fit in 64 bits."),
        (["propose"], {"invoice": "x", "urgent": 1}, "Parameter 'urgent' must be true or false."),
        (["propose"], {"invoice": "x", "urgent": "true"}, "Parameter 'urgent' must be true or false."),
    ],
)  # fmt: skip
def test_what_is_refused(actions, parameters, sentence):
    with pytest.raises(InvalidDetails) as caught:
        narrow_parameters(INVOICES, actions, parameters)
    assert str(caught.value) == sentence


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=5,
)
names = st.sampled_from(["invoice", "amount", "count", "channel", "urgent", "other", "__entity"])


@given(st.dictionaries(names, json_values), st.sets(st.sampled_from(["propose", "cap", "read"])))
def test_what_is_taken_is_what_was_given(parameters, actions):
    try:
        narrowed = narrow_parameters(INVOICES, sorted(actions), parameters)
    except InvalidDetails:
        return
    assert narrowed == parameters
    assert {type(value) for value in narrowed.values()} <= {str, int, bool}
