"""Receipts as text: a person must see at once what is proven and what is not."""

from typing import Any

from broker.cli.receipts import kill_receipt
from broker.cli.text import clean, clock, facts, moment, table

AT = 1_790_000_000_123
"""2026-09-21 14:13:20.123 UTC."""


def receipt(**changes: Any) -> dict[str, Any]:
    body = {
        "id": "kil_00000000_9",
        "position": 9,
        "durable": True,
        "at": AT,
        "target": "agent",
        "value": "dispute-bot",
        "actor": "operator",
        "reason": "odd credits",
        "issuance": {"stopped": True, "stopped_at": 9, "hold": "hld_00000000_9", "final": False},
        "ended": {
            "tokens": 2,
            "tasks": 1,
            "by_resource": {"invoices": 2},
            "by_agent": {},
            "latest_expiry": AT + 300_000,
        },
        "verifiers": {
            "expected": 2,
            "applied": 1,
            "slowest_ms": 12,
            "instances": [
                {
                    "instance": "aa",
                    "verifier": "billing",
                    "mode": "strict",
                    "state": "reported applied",
                    "applied_ms": 12,
                    "acknowledged_at": 10,
                },
                {
                    "instance": "bb",
                    "verifier": "billing",
                    "mode": "best_effort",
                    "state": "missing",
                    "refuses_by": AT + 5_000,
                },
            ],
            "missing": ["bb"],
        },
        "complete": False,
        "worst_case": {"until": AT + 300_000, "sentence": "1 silent verifier(s) refuse by 14:13:25Z."},
    }
    return {**body, **changes}


def test_what_is_missing_stands_out() -> None:
    assert kill_receipt(receipt()).splitlines() == [
        "kil_00000000_9: killed agent dispute-bot",
        "  reason     odd credits",
        "  committed  2026-09-21 14:13:20.123Z at position 9, by operator",
        "  issuance   stopped at position 9 (hold hld_00000000_9)",
        "  ended      2 tokens (2 for invoices), 1 task, the last would have lived until 2026-09-21 14:18:20.123Z",
        "  verifiers  1 of 2 reported applied, the slowest after 12 ms",
        "             billing aa (strict): reported applied after 12 ms, on record at position 10",
        "             billing bb (best effort): MISSING, refuses by 2026-09-21 14:13:25.123Z",
        "  bound      1 silent verifier(s) refuse by 14:13:25Z.",
    ]


def test_what_is_still_being_counted_is_not_called_nothing() -> None:
    assert "  ended      3 tasks; its tokens are still being counted" in kill_receipt(
        receipt(ended={"tokens": None, "tasks": 3})
    )


def test_a_provisional_kill_claims_no_more_than_it_is() -> None:
    body = {
        "id": "prv_1",
        "durable": False,
        "complete": False,
        "position": None,
        "at": AT,
        "target": "all",
        "value": "",
        "actor": "operator",
        "reason": "disk full",
        "issuance": {"stopped": True, "stopped_at": None, "hold": None, "where": "this broker"},
        "spooled": True,
        "sentence": "In force here, not yet durable.",
    }
    text = kill_receipt(body)
    assert text.startswith("prv_1: NOT YET DURABLE: killing everything\n")
    assert "position" not in text


def test_text_is_aligned_and_harmless() -> None:
    assert table(["A", "LONG"], [["xx", None], ["y", "z"]]) == "A   LONG\nxx  -\ny   z"
    assert facts([("a", 1), ("none", None), ("longer", "x")]) == ["  a       1", "  longer  x"]
    assert clean("a\x1b[31mb\nc\u202ed\u00e9") == "a[31mb cd\u00e9"
    assert moment(AT) == "2026-09-21 14:13:20.123Z"
    assert clock(None) == "-"


def test_what_went_to_the_archive_is_said_not_to_be_counted() -> None:
    assert "secrets issued before position 768 were gone" in kill_receipt(
        receipt(external={"made": 0, "counted_from": 768})
    )
    assert "archive" not in kill_receipt(receipt(external={"made": 0}))
