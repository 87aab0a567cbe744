"""What a GitLab says of itself: for `tokenissuer check`, and whether it can be asked now."""

from __future__ import annotations

import email.utils
import time
from typing import Final

from tokenissuer import Access, BackendUnavailable, Deadline, Finding, Findings, Severity
from tokenissuer_backends.gitlab.api import TOKEN_ROUTE, Api
from tokenissuer_backends.gitlab.client import Absent, Client, GitLabAnswer, Refused
from tokenissuer_backends.gitlab.credential import ANONYMOUS, Credential
from tokenissuer_backends.gitlab.options import GitLabOptions
from tokenissuer_backends.gitlab.project import candidates, project_route
from tokenissuer_backends.gitlab.replay import ROUTE, SERVICE, SKEW


class Report:
    """Asks a GitLab about itself.

    Args:
        options: the table of the configuration.
        client: asks.
        own: the configured token; else the anonymous caller.
        api: looks users up.
    """

    def __init__(self, options: GitLabOptions, client: Client, own: Credential, api: Api) -> None:
        self._options: Final = options
        self._client: Final = client
        self._own: Final = own
        self._api: Final = api

    def findings(self) -> Findings:
        """Report on GitLab itself."""
        try:
            date = self.greeting()
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

    def repository_findings(self, repository: str) -> Findings:
        """Report on the project of a repository."""
        access = Access("repository", repository, frozenset())
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

    def greeting(self) -> str:
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

    def has_endpoint(self) -> bool:
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
            is_there = self.has_endpoint()
        except BackendUnavailable as error:
            yield self._finding(Severity.ERROR, f"its token endpoint does not answer: {error.reason}")
            return
        if is_there:
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

    def _finding(self, severity: Severity, fact: str, remedy: str = "") -> Finding:
        return Finding(severity, f"GitLab {self._options.url}", fact, remedy)

    def _deadline(self) -> Deadline:
        return Deadline.after(self._options.timeout)
