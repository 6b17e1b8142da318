"""What a stranger is told: the registration that it nearly is, and the field that differs."""

import pytest

from broker.attest import nearest_registration
from broker.model import Identity, Workload


def workload(subject: str = "spiffe://example.org/pay/bot", trust: str = "td", **claims: str) -> Workload:
    return Workload(trust=trust, kind="spiffe", issuer="i", subject=subject, claims=claims, expires=0)


@pytest.mark.parametrize(
    ("identities", "expected"),
    [
        pytest.param({}, None, id="nobody"),
        pytest.param({"a": [Identity("other", subject="x")]}, None, id="other-row"),
        pytest.param(
            {
                "a": [Identity("td", subject="spiffe://example.org/pay/boss")],
                "b": [Identity("td", subject="spiffe://x/y")],
            },
            "Nearest is a: it needs sub 'spiffe://example.org/pay/boss', presented was 'spiffe://example.org/pay/bot'.",
            id="longest-common-beginning",
        ),
        pytest.param(
            {"a": [Identity("td", subject_prefix="spiffe://example.org/pa")]},
            "Nearest is a: it needs sub under 'spiffe://example.org/pa', presented was 'spiffe://example.org/pay/bot'.",
            id="C42-prefix-is-whole-segments",
        ),
        pytest.param(
            {"a": [Identity("td", claims={"repository_id": "7", "ref": "x", "environment": "prod"})]},
            "Nearest is a: it needs ref 'x', presented was none (and 1 more).",
            id="more-than-one-field",
        ),
        pytest.param(
            {
                "far": [Identity("td", claims={"repository_id": "8", "ref": "x"})],
                "near": [
                    Identity("td", subject="q", claims={"ref": "x"}),
                    Identity("td", claims={"repository_id": "8"}),
                ],
            },
            "Nearest is near: it needs repository_id '8', presented was '7'.",
            id="fewest-differences",
        ),
    ],
)
def test_nearest(identities, expected: str | None) -> None:
    assert nearest_registration(workload(repository_id="7"), identities) == expected


def test_a_registration_that_fits_is_not_near_but_right() -> None:
    assert nearest_registration(workload(), {"a": [Identity("td", subject="spiffe://example.org/pay/bot")]}) is None


def test_what_was_presented_is_shown_harmlessly_and_cut() -> None:
    sentence = nearest_registration(workload(subject="\x1b[2J\u202e" + "x" * 500), {"a": [Identity("td", subject="y")]})
    assert sentence is not None
    assert sentence.isprintable()
    assert len(sentence) < 400


def test_a_stranger_cannot_make_it_slow() -> None:
    seen = []

    class Counting(dict):
        def items(self):
            for pair in super().items():
                seen.append(pair[0])
                yield pair

    nearest_registration(workload(), Counting({f"a{n}": [Identity("td", subject=f"s{n}")] for n in range(5_000)}))
    assert len(seen) <= 1_001
