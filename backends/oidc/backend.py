"""The backend `oidc`: https://openid.net/specs/openid-connect-core-1_0.html#IDToken and RFC 7519.

The ID token comes as the password.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import jwt

from tokenissuer import Account, Backend, BackendUnavailable, Finding, Findings, Severity, UnknownAccount
from tokenissuer_backends.oidc.claims import (
    claim_pattern,
    expiry,
    filled,
    listed,
    refused,
    shown,
    unverified,
    values_of,
)
from tokenissuer_backends.oidc.keys import FileKeys, ProviderKeys
from tokenissuer_backends.oidc.options import OidcOptions

#: Seconds by which the provider's clock may be ahead of ours. A token's end counts to the second.
LEEWAY: Final = 30
_NEEDED: Final = ("exp", "iat", "iss", "aud", "sub")


class OidcBackend(Backend):
    """Workloads that an OpenID provider vouches for. They get no refresh tokens: their platform gives new ID tokens."""

    Options = OidcOptions

    def __init__(self, options: OidcOptions) -> None:
        self._options: Final = options
        self._keys: Final[FileKeys | ProviderKeys] = (
            FileKeys(options.jwks_file) if options.jwks_file else ProviderKeys(options.provider, options.ca_file)
        )
        self._require: Final = {
            claim: [claim_pattern(text) for text in listed(wanted)] for claim, wanted in options.require.items()
        }

    def authenticate(self, username: str, password: str) -> Account:
        """Prove that the password is a valid ID token for us.

        Raises:
            UnknownAccount: if it is no ID token or another provider's, or comes with another name than 'username': the
                next backend is asked.
            InvalidCredentials: if it is not valid; the log says which check failed.
            BackendUnavailable: if the provider's keys cannot be had.
        """
        if self._options.username and username != self._options.username:
            raise UnknownAccount(reason="another user name than 'username'", is_guess=False)
        header, claimed = unverified(password)
        if claimed.get("iss") != self._options.provider:
            raise UnknownAccount(reason="the ID token is of another issuer", is_guess=False)
        claims = self._verified(password, header, claimed)
        for claim, patterns in self._require.items():
            found = values_of(claims, claim)
            if not any(text is not None and pattern.fullmatch(text) for pattern in patterns for text in found):
                raise refused(f"its '{claim}' is {shown(found)}, not as 'require' wants it")
        # After the rest: only who would be let in reads that the token has expired.
        ends = expiry(claims)
        names = filled(self._options.name_template, claims)
        if len(names) != 1 or names[0] is None:
            raise refused("a claim that 'account' names is missing, or cannot be in a name")
        # In a rule, `{group}` is what is behind the last colon: no claim may move it.
        groups = [group for template in self._options.group_templates for group in filled(template, claims, ":")]
        return Account(
            names[0],
            frozenset(group for group in groups if group is not None),
            # A denial must not depend on a name that the job has chosen.
            groups_known=None not in groups,
            credential_ends=ends,
        )

    def check(self) -> None:
        """Prove that there are keys."""
        self._keys.current()

    def diagnose(self, account: str = "", repository: str = "") -> Findings:
        """Report on the provider and its keys."""
        subject = f"provider {self._options.provider}"
        if account:
            yield Finding(Severity.INFO, subject, "accounts are there only while their platform's ID token is valid")
        if account or repository:
            return
        try:
            count = len(self._keys.current())
        except BackendUnavailable as error:
            yield Finding(
                Severity.ERROR,
                subject,
                f"its keys cannot be had: {error.reason}",
                "check issuer, ca_file and the network",
            )
            return
        yield Finding(Severity.INFO, subject, f"it has {count} keys")
        if not self._options.require:
            # The presets are for platforms of your own, where this is what people want.
            yield Finding(
                Severity.INFO if self._options.preset else Severity.WARNING,
                subject,
                "whoever gets a token from it can log in, because there is no 'require'",
                "" if self._options.preset else 'say whose tokens count; require = { sub = "*" } for all',
            )

    def _verified(self, token: str, header: Mapping[str, Any], claimed: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the claims of a token that the provider has signed for us; it may have expired."""
        key_id, algorithm = header.get("kid", ""), header.get("alg")
        if not isinstance(key_id, str) or str(header.get("typ", "JWT")).upper() != "JWT" or "crit" in header:
            raise refused(f"its header, {shown(header)}, is not an ID token's: see its 'typ', 'kid' and 'crit'")
        for key in self._keys.candidates(key_id):
            if algorithm not in key.algorithms:
                continue
            try:
                claims: Mapping[str, Any] = jwt.decode(
                    token,
                    key.public,
                    algorithms=list(key.algorithms),
                    audience=self._options.audience,
                    issuer=self._options.provider,
                    leeway=LEEWAY,
                    options={"require": list(_NEEDED), "verify_exp": False},
                )
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidAudienceError:
                raise refused(f"its 'aud' is {shown(claimed['aud'])}, not 'audience'") from None
            except jwt.ImmatureSignatureError:
                raise refused("its 'nbf' or 'iat' is in the future; compare the clocks") from None
            except jwt.MissingRequiredClaimError as error:
                raise refused(f"it has no '{error.claim}'") from None
            except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError) as error:
                raise refused(f"it is malformed ({type(error).__name__})") from None
            return claims
        raise refused(f"no key of the provider has signed it (kid {shown(key_id)}, alg {shown(algorithm)})")
