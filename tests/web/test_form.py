"""Form bodies: read as the standard library reads them, and refused where it would guess."""

from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import Malformed
from broker.web.http import parse_form

FORM = "application/x-www-form-urlencoded"
PAIRS = st.lists(st.tuples(st.text(max_size=20), st.text(max_size=60)), max_size=20)


@given(PAIRS)
def test_what_a_client_encodes_is_what_is_read(pairs: list[tuple[str, str]]) -> None:
    assert parse_form(FORM, urlencode(pairs).encode()) == pairs


@given(st.text(alphabet="ab=&%+2F0c3zé", max_size=60))
def test_reads_nothing_that_the_library_reads_otherwise(text: str) -> None:
    try:
        pairs = parse_form(FORM, text.encode())
    except Malformed:
        return
    strict = bool(text)
    assert pairs == parse_qsl(text, keep_blank_values=True, strict_parsing=strict, errors="strict")


@pytest.mark.parametrize("body", [b"a", b"a=1&", b"&a=1", b"a=1&&b=2", b"a=%ff", b"a=\xff", b"&".join([b"a=1"] * 33)])
def test_refuses(body: bytes) -> None:
    with pytest.raises(Malformed):
        parse_form(FORM, body)
