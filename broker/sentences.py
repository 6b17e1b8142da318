"""What a pydantic model refused, in the words of our messages and without the refused value (it may be a secret)."""

import difflib
from collections.abc import Callable, Collection, Mapping
from typing import Any

_SENTENCES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "missing": lambda error: f"{str(error['loc'][-1])!r} is missing",
    "string_type": lambda error: f"must be text{': write it in quotes' if isinstance(error['input'], int) else ''}",
    "int_type": lambda _: "must be a whole number",
    "int_parsing": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "bool_type": lambda _: "must be true or false",
    "bool_parsing": lambda _: "must be true or false",
    "tuple_type": lambda _: "must be a list",
    "list_type": lambda _: "must be a list",
    "dict_type": lambda _: "must be a mapping",
    "model_type": lambda _: "must be a mapping",
    "model_attributes_type": lambda _: "must be a mapping",
    "literal_error": lambda error: f"must be one of {error['ctx']['expected']}",
    "enum": lambda error: f"must be one of {error['ctx']['expected']}",
    "union_tag_not_found": lambda _: "'kind' is missing",
    "union_tag_invalid": lambda error: f"kind must be one of {error['ctx']['expected_tags']}",
    "greater_than_equal": lambda error: f"must be at least {error['ctx']['ge']}",
    "less_than_equal": lambda error: f"must be at most {error['ctx']['le']}",
    "string_pattern_mismatch": lambda error: f"has another form than {error['ctx']['pattern']}",
    "string_too_short": lambda _: "must not be empty",
    "string_too_long": lambda error: f"must be at most {error['ctx']['max_length']} characters long",
    "too_short": lambda _: "must not be empty",
    "value_error": lambda error: str(error["ctx"]["error"]),
}


def sentence_of(error: Mapping[str, Any]) -> str:
    """What one entry of `ValidationError.errors()` means."""
    known = _SENTENCES.get(error["type"])
    return known(error) if known is not None else str(error["msg"])


def meant(word: str, known: Collection[str]) -> str:
    """`: did you mean 'x'?` when exactly a misspelling stands between `word` and something known, else nothing."""
    near = [] if word in known else difflib.get_close_matches(word, known, n=1, cutoff=0.7)
    return f": did you mean {near[0]!r}?" if near else ""
