"""Which workload an identity means, and whether two identities could mean the same one."""

from broker.model import Identity, Workload


def matches(identity: Identity, workload: Workload) -> bool:
    """Whether `workload` is meant by `identity`: the same trust row, and every listed fact equal, exactly."""
    if workload.trust != identity.trust:
        return False
    if identity.subject is not None and workload.subject != identity.subject:
        return False
    if identity.subject_prefix is not None and not _under(identity.subject_prefix, workload.subject):
        return False
    return all(workload.claims.get(name) == value for name, value in identity.claims.items())


def overlap(one: Identity, other: Identity) -> bool:
    """Whether some workload could match both. Errs on the side of yes: only a stated difference tells them apart."""
    if one.trust != other.trust or not _subjects_meet(one, other):
        return False
    return all(other.claims.get(name, value) == value for name, value in one.claims.items())


def _subjects_meet(one: Identity, other: Identity) -> bool:
    if one.subject is not None and other.subject is not None:
        return one.subject == other.subject
    if one.subject_prefix is not None and other.subject_prefix is not None:
        prefixes = one.subject_prefix, other.subject_prefix
        return prefixes[0] == prefixes[1] or _under(*prefixes) or _under(prefixes[1], prefixes[0])
    prefix = one.subject_prefix or other.subject_prefix
    subject = one.subject or other.subject
    return prefix is None or subject is None or _under(prefix, subject)


def _under(prefix: str, subject: str) -> bool:
    """Whole path segments: `spiffe://example.org/pay` is not above `spiffe://example.org/payments`."""
    return subject.startswith(f"{prefix}/")
