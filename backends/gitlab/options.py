"""The options of the backend `gitlab`."""

from __future__ import annotations

import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tokenissuer import InvalidCredentials, Secret, option, shown_url
from tokenissuer_backends.gitlab.credential import personal_access_token

#: The longest `timeout` in seconds: docker gives a token server 15, for a login and questions about rights.
_MAX_TIMEOUT: Final = 6
#: The longest `remember` in seconds: somebody keeps a right that was taken away for so long.
_MAX_REMEMBER: Final = 300


@dataclass(frozen=True, slots=True)
class GitLabOptions:
    """The keys of a `[[backends]]` table with `type = "gitlab"`."""

    url: str = option("GitLab's address, with the path it is installed under if any")
    mode: Literal["api", "jwt"] = option(
        "'api': personal, project and group access tokens and CI jobs, over the REST API; "
        "'jwt': everything that GitLab's own registry accepts, over GitLab's token endpoint",
        default="api",
    )
    grants: bool = option("whether roles in GitLab's projects allow pull, push and delete", default=False)
    groups: bool = option("whether accounts get their GitLab groups, for access rules (mode 'api')", default=True)
    token: Secret | None = option(
        "an access token with scope read_api of a user without rights, for questions on nobody's behalf (mode 'api')",
        default=None,
    )
    issuer: str | None = option(
        "the `iss` of GitLab's own tokens: its setting registry.issuer (needed in mode 'jwt')",
        default=None,
    )
    certificate: Path | None = option(
        "the certificate of the key GitLab signs with, PEM: its own registry's rootcertbundle", default=None
    )
    ca_file: Path | None = option("certificates to trust instead of the system's, PEM", default=None)
    plain_http: bool = option("true: use an http: address, on which passwords can be read", default=False)
    timeout: int = option("seconds after which one login, or one question about rights, fails; at most 6", default=5)
    connections: int = option("requests to GitLab at once", default=10)
    anonymous_requests: int = option("requests to GitLab in a minute for anonymous callers, at least 1", default=40)
    remember: int = option("seconds an answer about a project is remembered; at most 300, 0 for not at all", default=30)

    def __post_init__(self) -> None:
        _check_url(self.url, self.plain_http)
        if self.mode == "jwt" and not self.issuer:
            raise ValueError(
                "mode 'jwt' needs 'issuer': gitlab.yml's registry.issuer (Omnibus: gitlab_rails['registry_issuer'])"
            )
        if self.token is not None:
            if self.mode == "jwt":
                raise ValueError("'token' is for mode 'api'; mode 'jwt' asks with nothing but the caller's credential")
            _check_token(self.token)
        for name, value, low, high in (
            ("timeout", self.timeout, 1, _MAX_TIMEOUT),
            ("connections", self.connections, 1, 1000),
            ("anonymous_requests", self.anonymous_requests, 1, 1_000_000),
            ("remember", self.remember, 0, _MAX_REMEMBER),
        ):
            if not low <= value <= high:
                raise ValueError(f"'{name}' is {value}; use {low} to {high}")


def _check_url(url: str, plain_http: bool) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0 and url.isascii() and url.isprintable()
    except ValueError:
        usable = False
    if not usable or parts.scheme not in ("https", "http") or " " in url:
        raise ValueError(f"'url' is '{shown_url(url)}'; use GitLab's whole address, such as https://gitlab.example.com")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError("'url' has a user, query or fragment; leave it out")
    if parts.scheme == "http" and not plain_http:
        raise ValueError(f"'url' is '{url}', on which passwords can be read; use https, or set plain_http = true")
    if parts.path.rstrip("/").endswith("/api/v4"):
        raise ValueError(f"'url' is '{url}'; leave out /api/v4")


def _check_token(token: Secret) -> None:
    try:
        personal_access_token(token.reveal())
    except InvalidCredentials as error:
        raise ValueError(f"'token': {error.reason}") from None
