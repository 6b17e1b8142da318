"""What every issuer of secrets must do, on a backend that answers for real. What is claimed to be gone is tried."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from issuers import Ending, Handle, IssuerError, Minted, Order, Standing, renewer_of
from tests.issuers.cloud_harnesses import aws_sts, github_app
from tests.issuers.harness import Fault, Harness
from tests.issuers.postgres_harness import postgres
from tests.issuers.vault_harness import vault
from tests.issuers.x509_harness import x509_authority

_LEEWAY_S = 10  # what a backend's engine adds, so that a clock behind refuses nobody too early

HARNESSES: dict[str, Callable[[Path], AbstractContextManager[Harness]]] = {
    "aws_sts": aws_sts,
    "github_app": github_app,
    "postgres": postgres,
    "vault": vault,
    "x509": x509_authority,
}


@pytest.fixture(scope="module", params=HARNESSES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    with HARNESSES[request.param](tmp_path_factory.mktemp(request.param)) as harness:
        yield harness


@pytest.fixture
def harness(shared: Harness) -> Iterator[Harness]:
    """It, with nothing left over from the test before, nor for the test after."""
    assert shared.existing() == set()
    yield shared
    for handle in list(shared.issuer.orphans()):
        end(shared, handle)
    assert shared.existing() == set()


@pytest.fixture
def revocable(harness: Harness) -> Harness:
    if harness.issuer.ending is not Ending.REVOCABLE:
        pytest.skip("its credentials end by expiring")
    return harness


@pytest.fixture
def renewable(harness: Harness) -> Harness:
    if not harness.renewable:
        pytest.skip("its credentials live as long as they were made for")
    return harness


def issued(harness: Harness, order: Order | None = None) -> Minted:
    order = order or harness.order()
    return harness.issuer.issue(order, harness.issuer.prepare(order))


def end(harness: Harness, handle: Handle) -> None:
    """As the broker does when a task ends."""
    harness.issuer.revoke(handle)
    harness.issuer.close(handle)


def failing(harness: Harness, fault: Fault) -> None:
    if fault not in harness.fails:
        pytest.skip("this cannot fail here")
    harness.fail_next(fault)


def test_it_declares_how_its_credentials_end(harness: Harness) -> None:
    issuer = harness.issuer
    assert issuer.kind
    assert issuer.ending in {Ending.REVOCABLE, Ending.EXPIRES_ONLY}
    assert 0 < issuer.min_ttl_s <= issuer.max_ttl_s


def test_a_credential_works_within_its_bounds(harness: Harness) -> None:
    order = harness.order()
    prepared = harness.issuer.prepare(order)
    minted = harness.issuer.issue(order, prepared)
    assert harness.use(minted.values).accepted
    assert order.iat < minted.exp <= order.exp
    assert minted.exp - order.iat <= harness.issuer.max_ttl_s
    assert prepared.items() <= minted.handle.items()
    assert harness.issuer.status(minted.handle).standing is Standing.LIVE
    end(harness, minted.handle)


def test_what_it_foresees_is_what_it_would_prepare_and_nothing_comes_of_foreseeing(harness: Harness) -> None:
    foreseen = getattr(harness.issuer, "foreseen", None)
    if foreseen is None:
        pytest.skip("it foresees nothing")
    order = harness.order()
    first = foreseen(order)
    assert harness.existing() == set()
    prepared = harness.issuer.prepare(order)
    assert first in (None, prepared)
    assert foreseen(order) == prepared  # what had to be opened is open now
    end(harness, prepared)


def test_it_lives_no_longer_than_the_issuer_allows(harness: Harness) -> None:
    order = harness.order()
    order = harness.order(exp=order.iat + harness.issuer.max_ttl_s + 1_000)
    minted = issued(harness, order)
    assert minted.exp <= order.iat + harness.issuer.max_ttl_s
    end(harness, minted.handle)


def test_no_secret_is_in_what_may_be_shown(harness: Harness) -> None:
    minted = issued(harness)
    public = set(minted.handle.values())
    shown = [repr(minted), str(minted.handle), repr(harness.issuer), repr(harness.issuer.status(minted.handle))]
    for secret in [*minted.values.values(), *harness.never_shown]:
        if len(secret) > 8 and secret not in public:  # a port and a user's name are values, and no secrets
            assert not any(secret in text for text in shown)
    end(harness, minted.handle)


def test_what_is_revoked_is_gone(revocable: Harness) -> None:
    minted, other = issued(revocable), issued(revocable)
    revocable.issuer.revoke(minted.handle)
    assert revocable.issuer.status(minted.handle).standing is Standing.GONE
    assert not revocable.use(minted.values).accepted
    assert revocable.use(other.values).accepted
    assert revocable.issuer.status(other.handle).standing is Standing.LIVE
    end(revocable, minted.handle)
    end(revocable, other.handle)
    assert revocable.existing() == set()


def test_what_cannot_be_revoked_is_never_called_gone(harness: Harness) -> None:
    if harness.issuer.ending is not Ending.EXPIRES_ONLY:
        pytest.skip("its credentials are revoked")
    minted = issued(harness)
    harness.issuer.revoke(minted.handle)
    found = harness.issuer.status(minted.handle)
    assert harness.use(minted.values).accepted
    assert found.standing is Standing.LIVE
    assert found.note


def test_it_expires_by_itself(harness: Harness) -> None:
    minted = issued(harness)
    harness.after(minted)
    assert not harness.use(minted.values).accepted
    if harness.issuer.ending is Ending.EXPIRES_ONLY:
        assert harness.issuer.status(minted.handle).standing is Standing.GONE
    end(harness, minted.handle)


def test_revoking_again_is_fine(harness: Harness) -> None:
    minted = issued(harness)
    for _ in range(3):
        harness.issuer.revoke(minted.handle)
    for _ in range(2):
        harness.issuer.close(minted.handle)
    harness.issuer.revoke(minted.handle)


def test_revoking_what_was_only_prepared_is_fine(harness: Harness) -> None:
    prepared = harness.issuer.prepare(harness.order())
    end(harness, prepared)
    end(harness, prepared)
    assert harness.existing() == set()


@pytest.mark.parametrize("fault", Fault)
def test_a_failed_creation_leaves_nothing_that_the_prepared_handle_does_not_end(
    revocable: Harness, fault: Fault
) -> None:
    order = revocable.order()
    prepared = revocable.issuer.prepare(order)
    failing(revocable, fault)
    with pytest.raises(IssuerError) as caught:
        revocable.issuer.issue(order, prepared)
    if fault is Fault.HAPPENED:
        assert caught.value.happened is None
        assert revocable.name(prepared) in revocable.existing()
    end(revocable, prepared)
    assert revocable.issuer.status(prepared).standing is Standing.GONE
    assert revocable.existing() == set()


@pytest.mark.parametrize("fault", Fault)
def test_a_failed_revocation_is_not_called_one_and_succeeds_when_repeated(revocable: Harness, fault: Fault) -> None:
    minted = issued(revocable)
    failing(revocable, fault)
    with pytest.raises(IssuerError):
        revocable.issuer.revoke(minted.handle)
    if fault is Fault.FAILED:
        assert revocable.issuer.status(minted.handle).standing is Standing.LIVE
        assert revocable.use(minted.values).accepted
    end(revocable, minted.handle)
    assert revocable.issuer.status(minted.handle).standing is Standing.GONE
    assert not revocable.use(minted.values).accepted


@pytest.mark.parametrize("fault", Fault)
def test_an_error_says_what_it_may(revocable: Harness, fault: Fault) -> None:
    minted = issued(revocable)
    failing(revocable, fault)
    with pytest.raises(IssuerError) as caught:
        revocable.issuer.revoke(minted.handle)
    error = caught.value
    assert error.sentence.endswith(".")
    # A traceback in a log shows the cause, and what was being handled unless that is suppressed.
    shown = repr(error) + str(error) + repr(error.__cause__) + ("" if error.__suppress_context__ else "context")
    for secret in [*minted.values.values(), *revocable.never_shown]:
        assert len(secret) <= 8 or secret in minted.handle.values() or secret not in shown


def renewed(harness: Harness, handle: Handle, exp: int) -> int:
    renewer = renewer_of(harness.issuer, handle)
    assert renewer is not None
    return renewer.renew(handle, exp)


def test_it_declares_whether_its_credentials_are_renewable(harness: Harness) -> None:
    order = harness.order()
    prepared = harness.issuer.prepare(order)
    minted = harness.issuer.issue(order, prepared)
    assert (renewer_of(harness.issuer, minted.handle) is not None) == harness.renewable
    assert renewer_of(harness.issuer, prepared) is None  # nothing was made that could live longer
    assert not (harness.renewable and harness.issuer.ending is not Ending.REVOCABLE)
    end(harness, minted.handle)


def test_what_is_renewed_works_longer_and_no_longer_than_was_asked(renewable: Harness) -> None:
    order = renewable.order()
    minted = issued(renewable, order._replace(deadline=order.exp + 600))
    first = renewable.lives_until(minted.values)
    until = renewed(renewable, minted.handle, order.exp + 200)
    assert order.exp < until <= order.exp + 200
    assert first + 100 < renewable.lives_until(minted.values) <= order.exp + 200 + _LEEWAY_S
    assert renewable.use(minted.values).accepted
    assert renewable.issuer.status(minted.handle).standing is Standing.LIVE
    end(renewable, minted.handle)
    assert not renewable.use(minted.values).accepted


def test_59_a_renewal_brings_back_nothing_that_has_ended(renewable: Harness) -> None:
    order = renewable.order()
    minted = issued(renewable, order._replace(deadline=order.exp + 600))
    renewable.issuer.revoke(minted.handle)
    with pytest.raises(IssuerError) as caught:
        renewed(renewable, minted.handle, order.exp + 200)
    assert caught.value.happened is False
    assert not renewable.use(minted.values).accepted
    assert renewable.issuer.status(minted.handle).standing is Standing.GONE
    end(renewable, minted.handle)


@pytest.mark.parametrize("fault", Fault)
def test_a_failed_renewal_ends_nothing_and_succeeds_when_repeated(renewable: Harness, fault: Fault) -> None:
    order = renewable.order()
    minted = issued(renewable, order._replace(deadline=order.exp + 600))
    first = renewable.lives_until(minted.values)
    failing(renewable, fault)
    with pytest.raises(IssuerError) as caught:
        renewed(renewable, minted.handle, order.exp + 200)
    assert caught.value.happened is None
    assert (renewable.lives_until(minted.values) > first) == (fault is Fault.HAPPENED)
    assert renewable.use(minted.values).accepted
    assert order.exp < renewed(renewable, minted.handle, order.exp + 300) <= order.exp + 300
    end(renewable, minted.handle)
    assert not renewable.use(minted.values).accepted


def test_orphans_are_exactly_what_exists(revocable: Harness) -> None:
    if not revocable.lists:
        pytest.skip("the backend lists nothing")
    handles = [issued(revocable).handle for _ in range(3)]
    assert {revocable.name(handle) for handle in revocable.issuer.orphans()} == revocable.existing()
    assert {revocable.name(handle) for handle in handles} <= revocable.existing()
    for orphan in list(revocable.issuer.orphans()):
        end(revocable, orphan)
        assert revocable.issuer.status(orphan).standing is Standing.GONE
    assert list(revocable.issuer.orphans()) == []
    assert {revocable.issuer.status(handle).standing for handle in handles} == {Standing.GONE}


def test_many_threads_at_once(harness: Harness) -> None:
    def life(_: int) -> tuple[str, bool, bool]:
        minted = issued(harness)
        works = harness.use(minted.values).accepted
        end(harness, minted.handle)
        gone = harness.issuer.status(minted.handle).standing is Standing.GONE
        return harness.name(minted.handle), works, gone

    with ThreadPoolExecutor(6) as pool:
        lives = list(pool.map(life, range(24)))
    assert len({name for name, _, _ in lives}) == 24
    assert all(works for _, works, _ in lives)
    assert all(gone for _, _, gone in lives) == (harness.issuer.ending is Ending.REVOCABLE)
