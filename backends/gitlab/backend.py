"""The backend `gitlab`: its options, and how GitLab is asked."""

from __future__ import annotations

import email.utils
import re
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from tokenissuer import (
    Access,
    Account,
    Backend,
    BackendUnavailable,
    ConfigurationError,
    Deadline,
    Finding,
    Findings,
    InvalidCredentials,
    Secret,
    Severity,
    option,
    read_file,
    shown_url,
)
from tokenissuer_backends.gitlab.account import GitLabAccount
from tokenissuer_backends.gitlab.api import TOKEN_ROUTE, Api, is_username
from tokenissuer_backends.gitlab.client import Absent, Client, GitLabAnswer, Refused
from tokenissuer_backends.gitlab.credential import ANONYMOUS, JOB_USER, personal_access_token
from tokenissuer_backends.gitlab.project import candidates, project_route
from tokenissuer_backends.gitlab.replay import ROUTE, SERVICE, SKEW, Replay, SwitchedOff
from tokenissuer_backends.gitlab.role import NOTHING

T = TypeVar("T")

#: The longest `timeout` in seconds: docker gives a token server 15, for a login and questions about rights.
_MAX_TIMEOUT: Final = 6
#: The longest `remember` in seconds: somebody keeps a right that was taken away for so long.
_MAX_REMEMBER: Final = 300
# https://docs.gitlab.com/security/tokens/#token-prefixes
_TOKEN_PREFIX: Final = re.compile(r"gl[a-z]{2,8}-", re.ASCII)
#: Every token of GitLab's has at least so many characters.
_TOKEN_LENGTH: Final = 20


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


class GitLabBackend(Backend):
    """Accounts of a GitLab, or of a server that speaks its API."""

    Options = GitLabOptions
    users_make_groups = True

    def __init__(self, options: GitLabOptions) -> None:
        self._options: Final = options
        self._own: Final = personal_access_token(options.token.reveal()) if options.token else ANONYMOUS
        self._client: Final = Client(options.url, options.ca_file, options.connections, options.anonymous_requests)
        key = None if options.certificate is None else _public_key(options.certificate)
        self._replay: Final = Replay(self._client, options.issuer, key, options.remember)
        root = urllib.parse.urlsplit(options.url).path.rstrip("/")
        self._api: Final = Api(
            self._client,
            self._replay,
            self._own,
            root,
            options.remember,
            options.connections,
            groups=options.groups,
            grants=options.grants,
        )

    @property
    def may_grant(self) -> bool:
        """Whether roles in projects count."""
        return self._options.grants

    def authenticate(self, username: str, password: str) -> Account:
        """Prove that the token is this user's.

        Raises:
            UnknownAccount: if no GitLab user can have this name.
            InvalidCredentials: if GitLab refuses.
        """
        try:
            return self._ask(lambda deadline: self._authenticate(username, password, deadline))
        except InvalidCredentials as error:
            error.is_guess = not _is_token(username, password)
            raise

    def lookup(self, name: str, password: str) -> Account:
        """Prove again that the token of the login is this user's.

        Raises:
            InvalidCredentials: if it no longer is.
        """
        # A deploy token's user name cannot be had back from the account's name.
        if not password or not is_username(name):
            raise InvalidCredentials(reason="GitLab says who somebody is only to the holder of their token")
        if self._options.mode == "jwt":
            return self._ask(lambda deadline: self._replay.authenticate(name, password, deadline))
        return self._ask(lambda deadline: self._api.lookup(name, password, deadline, wanted=self.groups_wanted))

    def grants(self, account: Account | None, access: Access) -> frozenset[str]:
        """Return what GitLab's own registry would allow, if the option `grants` is set."""
        if not self._options.grants:
            return NOTHING
        return self._ask(lambda deadline: self._grants(account, access, deadline))

    def check(self) -> None:
        """Prove that GitLab answers, and not tokenissuer in its place."""
        self._greeting()
        if self._options.grants and self._options.mode == "api":
            self._endpoint()

    def diagnose(self, account: str = "", repository: str = "") -> Findings:
        """Report on GitLab itself, or on the project of a repository."""
        if account:
            yield from super().diagnose(account)
        if repository:
            yield from self._repository_findings(Access("repository", repository, frozenset()))
        if account or repository:
            return
        try:
            date = self._greeting()
        except BackendUnavailable as error:
            yield self._finding(
                Severity.ERROR, f"GitLab does not answer: {error.reason}", "check url, token, ca_file and the network"
            )
            return
        yield from self._clock_findings(date)
        if self._options.mode == "jwt":
            yield from self._jwt_findings()
        else:
            yield from self._token_findings()
            yield from self._lookup_findings()
            if self._options.grants:
                yield from self._endpoint_findings()

    def _authenticate(self, username: str, password: str, deadline: Deadline) -> Account:
        if self._options.mode == "jwt":
            return self._replay.authenticate(username, password, deadline)
        return self._api.authenticate(username, password, deadline, wanted=self.groups_wanted)

    def _grants(self, account: Account | None, access: Access, deadline: Deadline) -> frozenset[str]:
        if account is not None and not isinstance(account, GitLabAccount):
            return NOTHING
        if self._options.mode == "api":
            if account is None:
                return self._api.public_grants(access, deadline)
            return self._api.grants(account, access, deadline)
        try:
            if account is None:
                return self._replay.public_grants(ANONYMOUS.for_anonymous(), access, deadline)
            return self._replay.grants(account.credential, access, deadline)
        except SwitchedOff:
            raise BackendUnavailable("GitLab's own container registry is switched off") from None

    def _ask(self, question: Callable[[Deadline], T]) -> T:
        try:
            return question(self._deadline())
        except TimeoutError:
            raise BackendUnavailable("GitLab did not answer in time") from None

    def _repository_findings(self, access: Access) -> Findings:
        paths = candidates(access)
        if not paths:
            yield self._finding(
                Severity.INFO,
                f"{access.name} is not a name of a GitLab project's image",
                "use group/project[/image]",
            )
            return
        viewer = "the configured token" if self._options.token else "the anonymous caller"
        for path in paths:
            try:
                table = self._client.get(project_route(path), self._own, self._deadline()).table()
            except (Absent, Refused):
                continue
            except BackendUnavailable as error:
                yield self._finding(Severity.ERROR, f"GitLab does not answer for {path}: {error.reason}")
                return
            seen = [f"{key} {table[key]}" for key in ("visibility", "container_registry_access_level") if key in table]
            facts = ", ".join([f"number {table.get('id')}", *seen])
            yield self._finding(Severity.INFO, f"{access.name} belongs to the project {path} ({facts})")
            return
        yield self._finding(
            Severity.INFO,
            f"{access.name} belongs to the first of these that is a project: {', '.join(paths)}; "
            f"{viewer} sees none of them",
            "only its members see a private project",
        )

    def close(self) -> None:
        """Close all connections."""
        self._api.close()
        self._client.close()

    def _deadline(self) -> Deadline:
        return Deadline.after(self._options.timeout)

    def _finding(self, severity: Severity, fact: str, remedy: str = "") -> Finding:
        return Finding(severity, f"GitLab {self._options.url}", fact, remedy)

    def _greeting(self) -> str:
        """Prove that GitLab answers, and return its time."""
        route, query = ("/api/v4/version", []) if self._options.mode == "api" else (ROUTE, [("service", SERVICE)])
        try:
            answer = self._client.get(route, self._own, self._deadline(), query)
            answer.table()
        except Refused as refusal:
            # A GitLab that works answers the anonymous caller like this.
            if self._own is ANONYMOUS:
                return refusal.date
            raise BackendUnavailable(f"GitLab refuses the configured token: {refusal}") from None
        except Absent as absence:
            what = "a GitLab" if self._options.mode == "api" else "a GitLab with its own registry switched on"
            raise BackendUnavailable(f"{absence}; is this the address of {what}?") from None
        return answer.date

    def _endpoint(self) -> bool:
        """Whether GitLab has a token endpoint of its own, which it has while its own registry is switched on."""
        try:
            self._client.get(ROUTE, ANONYMOUS, self._deadline(), [("service", SERVICE)])
        except Refused:
            return True
        except Absent:
            return False
        return True

    def _endpoint_findings(self) -> Findings:
        try:
            has_endpoint = self._endpoint()
        except BackendUnavailable as error:
            yield self._finding(Severity.ERROR, f"its token endpoint does not answer: {error.reason}")
            return
        if has_endpoint:
            yield self._finding(Severity.INFO, f"it answers at {ROUTE} itself")
        else:
            yield self._finding(
                Severity.WARNING,
                f"it does not answer at {ROUTE}, so tokens with only registry scopes get nothing",
                "switch GitLab's own registry on, or have users add the scope read_api to their tokens",
            )

    def _clock_findings(self, date: str) -> Findings:
        try:
            difference = round(email.utils.parsedate_to_datetime(date).timestamp() - time.time())
        except (ValueError, OverflowError):
            return
        if abs(difference) > SKEW:
            yield self._finding(
                Severity.WARNING,
                f"its clock is {difference:+d} seconds from ours",
                "set both by NTP, or tokens end at the wrong time",
            )
        else:
            yield self._finding(Severity.INFO, f"its clock is {difference:+d} seconds from ours")

    def _jwt_findings(self) -> Findings:
        if self._options.certificate is None:
            yield self._finding(
                Severity.WARNING,
                "the signatures of its tokens are not verified; the tokens are trusted because they come from there",
                "set 'certificate' to the rootcertbundle of GitLab's own registry",
            )

    def _token_findings(self) -> Findings:
        if self._options.token is None:
            yield self._finding(Severity.INFO, "it tells its version only to users", "set 'token' to check the version")
            return
        try:
            version = self._client.get("/api/v4/version", self._own, self._deadline()).table().get("version")
            scopes = self._client.get(TOKEN_ROUTE, self._own, self._deadline()).table().get("scopes")
        except Absent:
            yield self._finding(Severity.ERROR, "it does not describe tokens", "update GitLab to 15.5 or newer")
            return
        except (GitLabAnswer, BackendUnavailable) as error:
            yield self._finding(Severity.ERROR, f"GitLab refuses the configured token: {error}", "make a new one")
            return
        yield self._finding(Severity.INFO, f"its version is {str(version)[:50]}")
        if not isinstance(scopes, list) or "read_api" not in scopes or len(scopes) > 1:
            yield self._finding(
                Severity.WARNING,
                f"the configured token has the scopes {scopes}",
                "give it read_api and nothing else",
            )

    def _lookup_findings(self) -> Findings:
        try:
            self._api.find_user("root", self._deadline())
        except (GitLabAnswer, BackendUnavailable) as error:
            yield self._finding(
                Severity.WARNING,
                f"it does not look up users by name ({error}), so tokens with only registry scopes are refused",
                "set 'token', or have users add the scope read_user to their tokens",
            )
        else:
            yield self._finding(Severity.INFO, "it looks up users by name, so tokens with only registry scopes work")


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


def _is_token(username: str, password: str) -> bool:
    """Whether a machine has made this password, so that it cannot be a guess."""
    looks_made = username == JOB_USER or _TOKEN_PREFIX.match(password) is not None
    return looks_made and len(password) >= _TOKEN_LENGTH


def _check_token(token: Secret) -> None:
    try:
        personal_access_token(token.reveal())
    except InvalidCredentials as error:
        raise ValueError(f"'token': {error.reason}") from None


def _public_key(path: Path) -> RSAPublicKey:
    try:
        key = x509.load_pem_x509_certificate(read_file(path, "'certificate'")).public_key()
    except ValueError:
        raise ConfigurationError(f"'certificate': {path} has no PEM certificate") from None
    if not isinstance(key, RSAPublicKey):
        raise ConfigurationError(f"'certificate': {path} has no RSA key, but GitLab signs with RS256")
    return key
