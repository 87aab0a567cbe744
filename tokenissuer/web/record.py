"""One request as log and metrics see it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

from tokenissuer.errors import AccessDenied, RequestError
from tokenissuer.scope import Access, scope_text
from tokenissuer.service import Password, TokenRequest, TokenResponse

#: Characters kept of a field, and of a field that lists resources.
MAX_FIELD: Final = 500
MAX_LIST: Final = 1500
_LISTS: Final = frozenset({"requested", "granted", "denied", "reason"})

#: What an answer means to those who watch for attacks and outages.
_SECURITY: Final = {401: "login_refused", 403: "denied", 429: "throttled", 500: "defect", 503: "outage"}

#: Characters of the shortest token that is recognised.
_TOKEN_LENGTH: Final = 20
# People paste a token where something else belongs. Known beginnings of tokens, and what is as long as one.
_TOKEN: Final = re.compile(
    r"(?<![A-Za-z0-9])(?:gl(?:pat|dt|rtr|rt|cbt|ptt|ft|imt|agent|wt|soat|ffct)-|gh[a-z]_|github_pat_|dckr_[a-z]+_|tir_|eyJ)"
    r"[\w.=+/-]{16,}|(?<![^\s'\"])[A-Za-z0-9_+/=-]{40,}(?![^\s'\"])",
    re.ASCII,
)

_PLAIN: Final = re.compile(r"[!#-<>-\[\]-~]+", re.ASCII)


@dataclass(slots=True)
class Exchange:
    """One request and its answer, filled in from its arrival to its end.

    Args:
        endpoint: the name of the page; `none` if there is no such page.
        request: the token request, once it is read.
        result: the token response, or the error that became the answer.
        status: the HTTP status of the answer.
        seconds: how long it took.
    """

    endpoint: str = "none"
    request: TokenRequest | None = None
    result: TokenResponse | RequestError | None = None
    status: int = 0
    seconds: float = 0.0

    @property
    def security(self) -> str:
        """What it means to those who watch for attacks and outages; empty if nothing."""
        if isinstance(self.result, TokenResponse) and self.request is not None:
            if self.result.subject:
                return "login"
            return "denied" if self.denied else ""
        if self.endpoint == "revoke" and self.status == 200:
            return "session_revoked"
        return _SECURITY.get(self.outcome, "")

    @property
    def outcome(self) -> int:
        """The status of what happened: a browser that is asked to log in reads another one."""
        return self.result.status if isinstance(self.result, RequestError) else self.status

    @property
    def denied(self) -> str:
        """What was requested and is not granted, as scopes."""
        if self.request is None or not isinstance(self.result, TokenResponse | AccessDenied):
            return ""
        granted = self.result.granted if isinstance(self.result, TokenResponse) else ()
        if granted == self.request.requested:
            return ""
        actions = {(access.type, access.name): access.actions for access in granted}
        missing = (
            (access, access.actions - actions.get((access.type, access.name), frozenset()))
            for access in self.request.requested
        )
        # `*` is granted as the actions that it stands for.
        return scope_text(
            Access(access.type, access.name, less)
            for access, less in missing
            if less - {"*"} or (less and (access.type, access.name) not in actions)
        )

    def fields(self) -> dict[str, object]:
        """Return what the log line says about request and answer."""
        fields: dict[str, object] = {}
        if (request := self.request) is not None:
            credentials = request.credentials
            fields["username"] = without_tokens(credentials.username if isinstance(credentials, Password) else "")
            fields["service"] = without_tokens(request.service)
            fields["client_id"] = without_tokens(request.client_id)
            fields["requested"] = scope_text(request.requested)
        match self.result:
            case TokenResponse() as response:
                fields["account"] = response.subject
                fields["backend"] = response.backend
                fields["granted"] = scope_text(response.granted)
                fields["reason"] = response.reason
                fields["jti"] = response.token.jti
            case RequestError() as error:
                # A denial quotes nothing but what was requested.
                shown = str if isinstance(error, AccessDenied) else without_tokens
                fields["error"] = shown(error.description)
                fields["reason"] = shown(error.reason)
                if error.backend:
                    fields["backend"] = error.backend
        if denied := self.denied:
            fields["denied"] = denied
        fields["duration_ms"] = round(self.seconds * 1000)
        return fields


class LogLine(dict[str, object]):
    """The fields of one log line; as text, `name=value` with quotes where they are needed."""

    def __str__(self) -> str:
        return " ".join(f"{name}={quoted(shortened(name, value))}" for name, value in self.items())


def shortened(name: str, value: object) -> Any:
    """Return a field's value, cut off where it is too long for a log line."""
    if isinstance(value, int):
        return value
    text = str(value)
    longest = MAX_LIST if name in _LISTS else MAX_FIELD
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def quoted(value: object) -> str:
    """Write a value in quotes if it could be read as more than one, or could break the line."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def timestamp(seconds: float) -> str:
    """Write a time in UTC, to the millisecond (RFC 3339).

    Args:
        seconds: since 1970.
    """
    return f"{_second(int(seconds))}.{int(seconds % 1 * 1000):03d}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def without_tokens(text: str) -> str:
    """Return a text that a client has sent, with only the beginning of whatever looks like a token."""
    if len(text) < _TOKEN_LENGTH:
        return text
    return _TOKEN.sub(lambda found: f"{found[0][:8]}... ({len(found[0])} characters, perhaps a token)", text)
