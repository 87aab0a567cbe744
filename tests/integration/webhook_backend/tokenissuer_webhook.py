"""A backend in its own package: it asks a web service of yours who somebody is.

The service receives `{"username": …, "password": …}`. It answers 200 with `{"name": …, "groups": […]}`, 401 for a wrong
password, 404 for a name it does not know. Everything else counts as an outage.
"""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass

from tokenissuer import (
    Account,
    Backend,
    BackendUnavailable,
    ConfigurationError,
    InvalidCredentials,
    UnknownAccount,
    option,
)


@dataclass(frozen=True, slots=True)
class WebhookOptions:
    """The keys of the `[[backends]]` table."""

    url: str = option("where to ask, https:// (http:// only on this machine)")
    timeout: int = option("seconds to wait for an answer", default=5)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        """Follow no redirect: it would carry the password to somebody else."""


class WebhookBackend(Backend):
    """Asks a web service."""

    Options = WebhookOptions

    def __init__(self, options: WebhookOptions) -> None:
        if not options.url.startswith(("https://", "http://127.0.0.1:")):
            raise ConfigurationError(f"the url is '{options.url}'; passwords need https://")
        self._options = options
        self._opener = urllib.request.build_opener(_NoRedirect)

    def authenticate(self, username: str, password: str) -> Account:
        """Ask the service."""
        body = json.dumps({"username": username, "password": password}).encode("ascii")
        request = urllib.request.Request(self._options.url, body, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=self._options.timeout) as response:
                answer = json.loads(response.read(65536))
            return Account(str(answer["name"]), frozenset(map(str, answer["groups"])))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                raise UnknownAccount from None
            if error.code == 401:
                raise InvalidCredentials from None
            raise BackendUnavailable(f"the web service answered {error.code}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackendUnavailable(f"the web service does not answer as it should: {type(error).__name__}") from None
