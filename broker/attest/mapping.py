"""What to tell the owner of a genuine workload that nobody registered: the registration that it nearly is."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

from broker.model import Identity, Workload

_MAX_COMPARED = 1_000  # an issuer such as GitHub vouches for the whole world: the world must not make this slow
_MAX_SHOWN = 200


def nearest_registration(workload: Workload, identities: Mapping[str, Sequence[Identity]]) -> str | None:
    """A sentence naming the registration under the same trust row that differs least, and the field that differs.

    None when no registration uses this trust row. The sentence quotes registered values: it is for the log and for
    callers of the same organisation.
    """
    compared = (
        (list(_differences(workload, identity)), name)
        for name, several in identities.items()
        for identity in several
        if identity.trust == workload.trust
    )
    nearest = min(islice(compared, _MAX_COMPARED), key=_distance, default=None)
    if nearest is None or not nearest[0]:
        return None
    differences, name = nearest
    field, expected, presented = differences[0]
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    shown = "none" if presented is None else ascii(presented[:_MAX_SHOWN])
    return f"Nearest is {name}: it needs {field} {expected[:_MAX_SHOWN]!r}, presented was {shown}{more}."


Difference = tuple[str, str, str | None]
"""A field, its registered value and the presented one."""


def _differences(workload: Workload, identity: Identity) -> Iterator[Difference]:
    if identity.subject is not None and identity.subject != workload.subject:
        yield "sub", identity.subject, workload.subject
    if identity.subject_prefix is not None and not workload.subject.startswith(f"{identity.subject_prefix}/"):
        yield "sub under", identity.subject_prefix, workload.subject
    for name, value in identity.claims.items():
        if workload.claims.get(name) != value:
            yield name, value, workload.claims.get(name)


def _distance(compared: tuple[Sequence[Difference], str]) -> tuple[int, int]:
    """Fewer differing fields first, then the longer common beginning of the first that differs."""
    differences, _ = compared
    if not differences:
        return 0, 0
    _, expected, presented = differences[0]
    common = next(
        (index for index, (one, other) in enumerate(zip(expected, presented or "", strict=False)) if one != other),
        min(len(expected), len(presented or "")),
    )
    return len(differences), -common
