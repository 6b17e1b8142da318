"""Passwords made ahead. That PostgreSQL takes what they verify as is in `test_postgres`: every login there is one."""

import re
from concurrent.futures import ThreadPoolExecutor

from issuers.scram import Password, Passwords


def test_nobody_gets_one_twice_whoever_asks_at_the_same_time() -> None:
    passwords = Passwords(ready=3)

    def take(_: int) -> Password:
        passwords.refill()
        return passwords.take()

    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(take, range(100)))
    passwords.close()
    assert len({each.clear for each in taken}) == len({each.verifier for each in taken}) == 100
    for each in taken:
        assert len(each.clear) >= 43
        assert re.fullmatch(r"SCRAM-SHA-256\$4096:[\w+/]{22}==\$[\w+/]{43}=:[\w+/]{43}=", each.verifier)


def test_it_is_not_shown() -> None:
    passwords = Passwords(ready=1)
    taken = passwords.take()
    passwords.close()
    assert taken.clear not in repr(taken) + str(taken)
    assert taken.verifier not in repr(taken)
