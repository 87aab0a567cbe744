"""The keys of its table, and what the platforms' tokens say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from tokenissuer import option, shown_url
from tokenissuer_backends.oidc.claims import PLACEHOLDER, listed
from tokenissuer_backends.oidc.keys import is_https

_GITHUB: Final = "https://token.actions.githubusercontent.com"
#: Where anybody can get a token with any audience, and the claims that say whose it is.
_OPEN_TO_ALL: Final[Mapping[str, Sequence[str]]] = {
    _GITHUB: ("repository_owner", "repository_owner_id", "repository", "repository_id", "enterprise_id", "sub"),
    "https://gitlab.com": ("namespace_path", "namespace_id", "project_path", "project_id", "sub"),
}


@dataclass(frozen=True, slots=True)
class Preset:
    """What a platform's tokens say.

    Args:
        account: the template of account names.
        groups: the templates of groups.
        issuer: the platform's only issuer; empty if each installation has its own.
    """

    account: str
    groups: tuple[str, ...]
    issuer: str = ""


#: https://docs.github.com/actions/reference/openid-connect-reference,
#: https://docs.gitlab.com/ci/secrets/id_token_authentication/ and
#: https://kubernetes.io/docs/reference/access-authn-authz/service-accounts-admin/. No branch is in a group: groups are
#: compared without regard to capitals, and `Main` is another branch than `main`.
PRESETS: Final[Mapping[str, Preset]] = {
    "github": Preset(
        "github:{repository}:{ref}",
        (
            "github:{repository}",
            "github-owner:{repository_owner}",
            "github-protected-{ref_protected}:{repository}",
            "github-environment-{environment}:{repository}",
        ),
        _GITHUB,
    ),
    "gitlab": Preset(
        "gitlab-ci:{project_path}:{ref_path}",
        (
            "gitlab-ci:{project_path}",
            "gitlab-ci-namespace:{namespace_path}",
            "gitlab-ci-protected-{ref_protected}:{project_path}",
        ),
    ),
    "kubernetes": Preset("kubernetes:{sub}", ("kubernetes:{kubernetes.io/namespace}",)),
}


@dataclass(frozen=True, slots=True)
class OidcOptions:
    """The keys of a `[[backends]]` table with `type = "oidc"`."""

    audience: str = option("whom tokens must be for: their `aud`; a name of your own, such as your registry's")
    preset: Literal["github", "gitlab", "kubernetes", ""] = option(
        "'github' (Actions), 'gitlab' (CI) or 'kubernetes' (service accounts): sets account, groups, for github issuer",
        default="",
    )
    issuer: str = option("the provider's URL: the `iss` of its tokens (default: that of the preset)", default="")
    account: str = option("the account's name, with {claim}; it needs a word and a colon at its beginning", default="")
    groups: tuple[str, ...] | None = option(
        "groups, with {claim}; one whose claim is missing is left out", default=None
    )
    require: Mapping[str, tuple[str, ...] | str] = option(
        'claims and what they must be, such as { repository_owner = "example" }; `*` is any text, a list any of these',
        default_factory=dict,
    )
    username: str = option("the user name that clients must give (default: any)", default="")
    jwks_file: Path | None = option("the provider's keys (a JWK Set), if it cannot be reached", default=None)
    ca_file: Path | None = option("certificates to trust instead of the system's, PEM", default=None)

    def __post_init__(self) -> None:
        if not self.audience:
            raise ValueError("'audience' is empty; without it, tokens that are meant for others would count")
        issuer = self.provider
        if not is_https(issuer) or any(sign in issuer for sign in "?#@"):
            raise ValueError(
                f"'issuer' is '{shown_url(issuer)}'; use the provider's https URL, letter by letter as in its tokens"
            )
        for claim, wanted in self.require.items():
            if not wanted or "" in listed(wanted):
                raise ValueError(f"'require' does not say what '{claim}' must be; '*' is any text")
        owners = _OPEN_TO_ALL.get(issuer.rstrip("/"))
        if owners and not any(_is_whole(self.require[owner]) for owner in owners if owner in self.require):
            raise ValueError(
                f"anybody can get tokens from {issuer}; say in full whose count, such as "
                f'require = {{ {owners[0]} = "example" }}'
            )
        if not re.match(r"[A-Za-z0-9_-]+:.*\{", self.name_template):
            raise ValueError(
                f"'account' is '{self.name_template}'; begin it with a word and a colon, so that no other account has "
                'the name, and name a claim, such as account = "ci:{sub}"'
            )
        for template in (self.name_template, *self.group_templates):
            literals = PLACEHOLDER.split(template)[::2]
            if "" in literals[1:-1] or any(brace in literal for literal in literals for brace in "{}"):
                raise ValueError(f"'{template}' has no form such as 'ci:{{a}}:{{b}}': claims in braces, text between")

    @property
    def provider(self) -> str:
        """The issuer's URL."""
        return self.issuer or (PRESETS[self.preset].issuer if self.preset else "")

    @property
    def name_template(self) -> str:
        """The template of account names."""
        return self.account or (PRESETS[self.preset].account if self.preset else "")

    @property
    def group_templates(self) -> tuple[str, ...]:
        """The templates of groups."""
        return self.groups if self.groups is not None else PRESETS[self.preset].groups if self.preset else ()


def _is_whole(wanted: Sequence[str] | str) -> bool:
    """Whether patterns name an owner in full: `example*` is `example-of-somebody-else` too."""
    return all("*" not in text or "/" in text.partition("*")[0] for text in listed(wanted))
