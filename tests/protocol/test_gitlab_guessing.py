"""What GitLab's backend says of a password that cannot be a guess."""

from __future__ import annotations

import pytest

from tests.support.gitlab import asking, serving
from tokenissuer.accounts.throttle import Throttle, ThrottleOptions
from tokenissuer.errors import InvalidCredentials
from tokenissuer.options import Secret


def throttle(account: int = 3, address: int = 9, redis: str = "") -> Throttle:
    options = ThrottleOptions(account, address, 60, Secret(redis) if redis else None)
    return Throttle(options, b"k" * 32)


@pytest.mark.parametrize(
    ("name", "password", "guessable"),
    [
        ("gitlab-ci-token", "glcbt-64_" + "x" * 20, False),
        ("gitlab-ci-token", "x" * 20, False),
        ("alice", "glpat-" + "x" * 20, False),
        ("alice", "glpat-short", True),
        ("gitlab-ci-token", "short", True),
        ("alice", "a-long-password-that-is-remembered", True),
        ("alice", "glorious.password." + "x" * 20, True),
        ("alice", "Glpat-" + "x" * 20, True),
    ],
)
def test_gitlab_knows_its_tokens(name: str, password: str, guessable: bool) -> None:
    """By their prefixes, and those of jobs by the name, which older versions gave no prefix."""
    with serving() as gitlab, asking(gitlab) as backend:
        with pytest.raises(InvalidCredentials) as caught:
            backend.authenticate(name, password)
        assert caught.value.is_guess is guessable
