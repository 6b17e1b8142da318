import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.ledger import Address, make_id, parse_id


@given(
    st.text("abcdefghijklmnopqrstuvwxyz", min_size=3, max_size=3),
    st.text("0123456789abcdef", min_size=8, max_size=8),
    st.integers(0, 10**18 - 1),
)
def test_an_id_is_an_address(kind: str, epoch: str, seq: int) -> None:
    assert parse_id(make_id(kind, epoch, seq)) == Address(kind, epoch, seq)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "grt",
        "grt_7f3a9c1e_",
        "grt_7f3a9c1e_01",
        "grt_7f3a9c1e_-1",
        "grt_7f3a9c1e_1_",
        "grt_7F3A9C1E_1",
        "grt_7f3a9c1_1",
        "GRT_7f3a9c1e_1",
        "grant_7f3a9c1e_1",
        "grt_7f3a9c1e_1\n",
        "grt_7f3a9c1e_\u0661",
        "grt_7f3a9c1e_" + "9" * 19,
        "grt_7f3a9c1e_1" + "0" * 5000,
    ],
)
def test_what_make_id_cannot_make_is_no_id(text: str) -> None:
    with pytest.raises(ValueError, match="identifier"):
        parse_id(text)


def test_a_kind_can_be_demanded() -> None:
    assert parse_id("tsk_7f3a9c1e_5", kind="tsk").seq == 5
    with pytest.raises(ValueError, match="not a tsk identifier"):
        parse_id("grt_7f3a9c1e_5", kind="tsk")
