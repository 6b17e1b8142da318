"""Text that people read: what may stand in it, and how to show what may not.

A reviewer must see the bytes that are in force, so characters that hide, reorder or fake text (control and escape
characters, bidirectional overrides, zero-width ones) are refused wherever a person writes a name or a sentence, and
escaped wherever a message repeats what was refused.
"""

import re

_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)


def unsafe_character(text: str) -> str | None:
    """The first character of `text` that must not be shown to a person, written out as e.g. `U+202E`, or None.

    Newlines and tabs are not unsafe in themselves: callers that want one line look for those.
    """
    found = _UNSAFE.search(text)
    return None if found is None else f"U+{ord(found[0]):04X}"


def unsafe_offset(text: str) -> int | None:
    """Where the first unsafe character stands, or None."""
    found = _UNSAFE.search(text)
    return None if found is None else found.start()


def shown(text: str, limit: int = 60) -> str:
    """`text` quoted for a message: escaped, on one line, cut at `limit` characters."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
