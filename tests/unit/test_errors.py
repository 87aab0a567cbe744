"""Every error knows its status, its codes and its description."""

from __future__ import annotations

import re

import pytest

from tokenissuer import errors
from tokenissuer.diagnosis import Finding, Severity
from tokenissuer.errors import BackendUnavailable, InvalidCredentials, MethodNotAllowed, RequestError, UnknownAccount


def kinds(base: type[RequestError]) -> list[type[RequestError]]:
    return [kind for each in base.__subclasses__() for kind in (each, *kinds(each))]


KINDS = [kind for kind in kinds(RequestError) if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_can_be_written_as_it_is(kind: type[RequestError]) -> None:
    """A status that is one, codes in their alphabets, a description that OAuth allows."""
    # Some make their description from their arguments.
    description = getattr(kind, "description", MethodNotAllowed(("GET",)).description)
    assert 400 <= kind.status <= 599
    assert re.fullmatch(r"[A-Z_]+", kind.docker_code)
    assert re.fullmatch(r"[a-z_]+", kind.oauth_error)
    assert re.fullmatch(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+", description)


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.docker_code in ("UNKNOWN", "UNAVAILABLE", "TOOMANYREQUESTS")]
)
def test_only_what_may_pass_is_called_temporary(kind: type[RequestError]) -> None:
    """go-containerregistry tries these codes again."""
    assert kind.status in (429, 500, 503)


def test_wrong_credentials_have_one_description() -> None:
    """Whatever the cause: it is told to the log alone."""
    assert UnknownAccount(reason="x").description == InvalidCredentials(reason="y").description
    assert UnknownAccount.status == InvalidCredentials.status == 401
    assert str(InvalidCredentials(reason="y")) == "y"


def test_an_outage_is_no_refusal() -> None:
    """The two can never be caught as one."""
    assert not issubclass(BackendUnavailable, InvalidCredentials)
    assert BackendUnavailable("down", retry_after=9).retry_after == 9
    assert "down" not in BackendUnavailable("down").description


@pytest.mark.parametrize(
    ("finding", "line"),
    [
        (Finding(Severity.ERROR, "auth.key", "it is gone", "make one"), "error: auth.key: it is gone; make one"),
        (Finding(Severity.WARNING, "x", "it is old"), "warning: x: it is old"),
    ],
)
def test_a_finding_is_one_line(finding: Finding, line: str) -> None:
    """What, where, and what to do."""
    assert str(finding) == line
