"""The registry's configuration file, read as the registry reads it, with the line of each key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tokenissuer.diagnosis import Finding, Findings, Severity
from tokenissuer.errors import ConfigurationError
from tokenissuer.files import read_text
from tokenissuer.options import near_match

_REQUIRED: Final = ("realm", "service", "issuer")
_TRUST: Final = ("rootcertbundle", "jwks")
_TEXTS: Final = (*_REQUIRED, *_TRUST, "autoredirectpath")
_KNOWN: Final = (*_TEXTS, "autoredirect", "signingalgorithms")
_OTHER_KINDS: Final = ("htpasswd", "silly", "none")
# What a registry's file may have at its top (Distribution 2.x and 3.x).
_SECTIONS: Final = (
    *("version", "log", "loglevel", "storage", "auth", "middleware", "reporting", "http", "notifications", "redis"),
    *("health", "proxy", "compatibility", "validation", "policy", "catalog"),
)

# The keys that lead to a value.
_Place = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RegistryFile:
    """What a registry's configuration file says.

    Args:
        path: the file.
        content: everything in it.
        lines: the line of each key.
    """

    path: Path
    content: Mapping[str, Any]
    lines: Mapping[_Place, int]

    @classmethod
    def load(cls, path: Path) -> RegistryFile:
        """Read the file.

        Raises:
            ConfigurationError: if it cannot be read, or is not YAML with keys.
        """
        text = read_text(path)
        try:
            content = yaml.safe_load(text)
            node = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            where = f", line {mark.line + 1}" if mark else ""
            raise ConfigurationError(f"{path}{where}: not YAML: {getattr(error, 'problem', None) or error}") from None
        except (ValueError, RecursionError):
            raise ConfigurationError(f"{path}: it has a value that cannot be read") from None
        if not isinstance(content, dict):
            raise ConfigurationError(f"{path}: it has no keys; name the registry's configuration file")
        return cls(path, content, dict(_lines(node)))

    @property
    def token(self) -> Mapping[str, Any]:
        """The keys of `auth.token`; none if there is no such section."""
        auth = self.content.get("auth")
        token = auth.get("token") if isinstance(auth, dict) else None
        return token if isinstance(token, dict) else {}

    def text(self, key: str) -> str:
        """Return a key of `auth.token`; empty if it is not there or is no string."""
        value = self.token.get(key)
        return value if isinstance(value, str) else ""

    @property
    def asks_for_tokens(self) -> bool:
        """Whether a registry that starts with this file asks for tokens: without `auth` it asks for nothing."""
        auth = self.content.get("auth")
        return "auth" in self.content and not (isinstance(auth, dict) and any(kind in auth for kind in _OTHER_KINDS))

    @property
    def redirects(self) -> bool:
        """Whether the registry makes the realm from the address that its clients use."""
        return self.token.get("autoredirect") is True

    @property
    def algorithms(self) -> Sequence[str]:
        """The algorithms that a registry 3.x accepts; empty for all."""
        found = self.token.get("signingalgorithms")
        return [str(each) for each in found] if isinstance(found, list) else []

    @property
    def url(self) -> str:
        """Where the registry listens, for somebody on its machine; empty if the file does not say."""
        http = self.content.get("http")
        if not isinstance(http, dict):
            return ""
        if isinstance(host := http.get("host"), str) and host:
            return host
        if not self.address:
            return ""
        host, _, port = self.address.rpartition(":")
        here = "127.0.0.1" if host in ("", "0.0.0.0", "[::]") else host
        return f"{'https' if http.get('tls') else 'http'}://{here}:{port}"

    @property
    def address(self) -> str:
        """The host and port where the registry listens, as the file has it; empty if it does not say."""
        http = self.content.get("http")
        address = http.get("addr") if isinstance(http, dict) and http.get("net") != "unix" else None
        return address if isinstance(address, str) else ""

    def where(self, *place: str) -> str:
        """Name the file and the line of a key."""
        line = self.lines.get(place)
        return f"{self.path}, line {line}" if line else str(self.path)

    def findings(self) -> Findings:
        """Report on keys that the registry does not read, and on those that it misses."""
        auth = self.content.get("auth")
        if "auth" not in self.content:
            yield self._no_auth()
            return
        if not isinstance(auth, dict) or not auth:
            yield self._error("auth", "'auth' has nothing below it", "put token: below it, indented")
            return
        if "token" not in auth:
            yield self._no_token(auth)
            return
        if not self.token:
            yield self._error(
                "auth.token",
                "'token' has no keys below it",
                "indent realm, service, issuer and rootcertbundle below it",
            )
            return
        yield from self._key_findings()

    def _no_auth(self) -> Finding:
        if "token" in self.content:
            return self._error(
                "token",
                "'token' stands at the top, where no registry reads it, and so the registry asks for no tokens",
                "put it below auth:, indented",
            )
        similar = [str(key) for key in self.content if str(key) not in _SECTIONS and _is_near(str(key), ("auth",))]
        if similar:
            return self._error(
                similar[0],
                f"the section '{similar[0]}' is read by no registry, and there is no 'auth': it asks for no tokens",
                "write auth:",
            )
        return self._error("", "it has no section 'auth', and so the registry asks for no tokens", "add auth: token:")

    def _no_token(self, auth: Mapping[Any, Any]) -> Finding:
        misplaced = [key for key in _KNOWN if key in auth]
        if misplaced:
            return self._error(
                f"auth.{misplaced[0]}",
                f"'{misplaced[0]}' stands directly below 'auth'; the registry reads it only below 'auth: token:'",
                "put token: between them, and indent what is below it",
            )
        name = str(next(iter(auth)))
        if name in _OTHER_KINDS:
            return self._error(
                f"auth.{name}", f"the registry checks logins itself (auth.{name})", "replace it by auth: token:"
            )
        return self._error(f"auth.{name}", f"'{name}' is no kind of auth", f"{near_match(name, ('token',))}")

    def _key_findings(self) -> Findings:
        unknown = [str(key) for key in self.token if key not in _KNOWN]
        missing = [key for key in _REQUIRED if key not in self.token]
        if not any(key in self.token for key in _TRUST):
            missing.append("rootcertbundle")
        for key in unknown:
            meant = next((each for each in missing if _is_near(key, (each,))), "")
            if meant:
                missing.remove(meant)
                yield self._error(
                    f"auth.token.{key}",
                    f"unknown key '{key}' in auth.token, and '{meant}' is missing: the registry does not start",
                    f"write {meant}: in its place",
                )
            else:
                yield Finding(
                    Severity.WARNING,
                    self.where("auth", "token", key),
                    f"unknown key '{key}' in auth.token: the registry does not read it",
                    near_match(key, _KNOWN),
                )
        for key in missing:
            yield self._error(
                "auth.token", f"the key '{key}' is missing in auth.token: the registry does not start", f"add {key}:"
            )
        for key in _TEXTS:
            value = self.token.get(key)
            if key in self.token and (not isinstance(value, str) or not value):
                yield self._error(
                    f"auth.token.{key}",
                    f"auth.token.{key} is {value!r} and no text: the registry does not start",
                    f'write it in quotes: {key}: "{"" if value is None else value}"',
                )

    def _error(self, place: str, fact: str, remedy: str) -> Finding:
        return Finding(Severity.ERROR, self.where(*place.split(".")), fact, remedy)


def _is_near(word: str, known: Sequence[str]) -> bool:
    return near_match(word.lower(), known).startswith("did you mean")


def _lines(node: yaml.Node | None, place: _Place = ()) -> Iterator[tuple[_Place, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                here = (*place, str(key.value))
                yield here, key.start_mark.line + 1
                # Deeper than any key that is looked at.
                if len(here) < 4:
                    yield from _lines(value, here)
