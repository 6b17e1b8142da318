"""Number theory that tells weak public keys from sound ones."""

from functools import cache

_ROCA_GENERATOR = 65_537
_ROCA_PRIMES = tuple(n for n in range(3, 168) if all(n % d for d in range(2, n)))

_P = 2**255 - 19
_D = -121_665 * pow(121_666, -1, _P) % _P


@cache
def _roca_residues() -> tuple[tuple[int, frozenset[int]], ...]:
    """For each small prime, the residues that powers of the generator reach; primes where that is all of them say
    nothing and are left out.
    """
    found = []
    for prime in _ROCA_PRIMES:
        residues = frozenset(pow(_ROCA_GENERATOR, power, prime) for power in range(prime - 1))
        if len(residues) < prime - 1:
            found.append((prime, residues))
    return tuple(found)


def is_roca(n: int) -> bool:
    """Whether a modulus looks made by the flawed generator of CVE-2017-15361.

    Both of its primes were powers of 65537 modulo a product of small primes, so the modulus is one too. A sound modulus
    passes for one with a probability of less than one in a hundred million.
    """
    return all(n % prime in residues for prime, residues in _roca_residues())


def is_sound_ed25519(raw: bytes) -> bool:
    """Whether 32 bytes are the one encoding of a point of the curve whose order is not small.

    Under a key of small order one signature verifies for many messages.
    """
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    if y >= _P:
        return False
    y2 = y * y % _P
    # y = ±1 and y = 0 have order 1, 2 and 4; the last factor vanishes for the points that double to y = 0: order 8.
    if y * (y2 - 1) * (_D * y2 * y2 + 2 * y2 - 1) % _P == 0:
        return False
    x2 = (y2 - 1) * pow(_D * y2 + 1, -1, _P) % _P
    return pow(x2, (_P - 1) // 2, _P) == 1
