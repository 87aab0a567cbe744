"""README says what is so."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tokenissuer.accounts.backend import load_backend
from tokenissuer.accounts.cache import CacheOptions
from tokenissuer.accounts.throttle import ThrottleOptions
from tokenissuer.cli import _parser
from tokenissuer.config import load_config
from tokenissuer.monitoring.metrics import MetricsOptions
from tokenissuer.policy import AccessOptions
from tokenissuer.sessions.tokens import RefreshOptions
from tokenissuer.signing.issuer import IssuerOptions
from tokenissuer.signing.keys import SigningOptions
from tokenissuer.web.proxies import ServerOptions

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "tests" / "integration" / "webhook_backend"


def code(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


LDAP_PAGE = (ROOT / "docs" / "ldap.md").read_text(encoding="utf-8")


def section(heading: str) -> str:
    """A section's text, up to the next heading of the same kind."""
    manual = README + LDAP_PAGE
    found = re.search(rf"^{re.escape(heading)}[^\n]*\n(.*?)(?=^#|^\*\*`type|\Z)", manual, re.MULTILINE | re.DOTALL)
    assert found, f"the manual has no {heading}"
    return found[1]


def test_the_two_commands_stand_on_the_first_screen() -> None:
    """Trying and testing are the first things a reader sees."""
    first_screen = "\n".join(README.splitlines()[:30])
    assert "tokenissuer quickstart" in first_screen
    assert "\ntests/run\n" in first_screen


def test_the_example_backend_is_the_one_that_is_tested() -> None:
    """Nothing in the manual drifts away from what runs."""
    page = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")
    assert f"```python\n{(EXAMPLE / 'tokenissuer_webhook.py').read_text()}```" in page
    assert f"```ini\n# setup.cfg\n{(EXAMPLE / 'setup.cfg').read_text()}```" in page


def test_the_configuration_example_loads(tmp_path: Path) -> None:
    """What the manual shows can be used."""
    path = tmp_path / "tokenissuer.toml"
    path.write_text(code("toml")[0])
    assert load_config(path).issuer.name == tomllib.loads(path.read_text())["issuer"]["name"]


@pytest.mark.parametrize(
    ("heading", "options"),
    [
        ("### `[issuer]`", IssuerOptions),
        ("### `[signing]`", SigningOptions),
        ("### `[server]`", ServerOptions),
        ("### `[cache]`", CacheOptions),
        ("### `[refresh]`", RefreshOptions),
        ("### `[throttle]`", ThrottleOptions),
        ("### `[metrics]`", MetricsOptions),
        ("### `[[access]]`", AccessOptions),
        ('**`type = "htpasswd"`**', load_backend("htpasswd").Options),
        ("## Every key", load_backend("ldap").Options),
        ('**`type = "gitlab"`**', load_backend("gitlab").Options),
    ],
    ids=[
        "issuer",
        "signing",
        "server",
        "cache",
        "refresh",
        "throttle",
        "metrics",
        "access",
        "htpasswd",
        "ldap",
        "gitlab",
    ],
)
def test_every_key_is_in_the_reference(heading: str, options: Any) -> None:
    """A key that is not in the manual does not exist for its readers, and the other way round."""
    cells = re.findall(r"^\| (`.*?) \|", section(heading), re.MULTILINE)
    # `bind_password_file` is another way to give `bind_password`, and `user.base` is in the table `user`.
    names = [name.partition(".")[0] for cell in cells for name in re.findall(r"`([\w.]+)`", cell)]
    documented = {name.removesuffix("_file") if name != "ca_file" else name for name in names}
    assert sorted(documented) == sorted(field.name for field in dataclasses.fields(options))


def test_every_command_is_in_the_reference() -> None:
    """The table of commands is the command line's own."""
    (choices,) = (action.choices for action in _parser()._actions if action.dest == "command")
    assert choices is not None
    documented = re.findall(r"^\| `(\w+)", section("## Commands"), re.MULTILINE)

    assert set(documented) == set(choices)


def test_every_option_is_in_its_commands_row() -> None:
    """What can be given can be found."""
    (choices,) = (action.choices for action in _parser()._actions if action.dest == "command")
    assert isinstance(choices, dict)
    rows = dict(re.findall(r"^\| `(\w+)(.*)$", section("## Commands"), re.MULTILINE))
    for name, parser in choices.items():
        for action in parser._actions:
            for option in action.option_strings:
                if option.startswith("--") and option not in ("--help", "--config"):
                    assert f"`{option}" in rows[name], f"{name} {option}"


def test_every_promise_of_the_security_page_has_its_test() -> None:
    """A test that is renamed or deleted takes its promise with it."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 20
    assert named <= defined
