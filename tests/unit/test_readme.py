"""README and the reference say what is so."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.support import reference
from tokenissuer.accounts.backend import load_backend
from tokenissuer.accounts.throttle import ThrottleOptions
from tokenissuer.config import load_config
from tokenissuer.errors import RequestError
from tokenissuer.policy import AccessOptions
from tokenissuer.policy.expectation import TestOptions
from tokenissuer.sessions.tokens import RefreshOptions
from tokenissuer.web import routes

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "tests" / "integration" / "webhook_backend"


def page(name: str) -> str:
    """The text of a page of the manual."""
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """A section's text, up to the next heading."""
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"there is no {heading}"
    return found[1]


def keys(text: str) -> list[str]:
    """The keys in the first column of a table."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    # `user.base` is in the table `user`, and `bind_password_file` is another way to give `bind_password`.
    names = [name.partition(".")[0] for cell in cells for name in re.findall(r"`([\w.]+)`", cell)]
    return sorted({name.removesuffix("_file") if name not in ("ca_file", "jwks_file") else name for name in names})


def test_readme_is_short() -> None:
    """Who reads it has five minutes."""
    assert len(README.splitlines()) <= 150


def test_the_two_commands_stand_on_the_first_screen() -> None:
    """Trying and testing are the first things a reader sees."""
    first_screen = "\n".join(README.splitlines()[:30])
    assert "tokenissuer quickstart" in first_screen
    assert "\ntests/run\n" in first_screen


def test_how_to_use_ldap_is_one_click_away() -> None:
    """As is everything else: README links to the manual's contents, and these to every page."""
    assert "](docs/ldap.md)" in README
    assert "](docs/index.md)" in README
    linked = {"index.md", "hooks.py", *re.findall(r"\]\(([a-z_-]+\.md)\)", page("index"))}
    assert {path.name for path in DOCS.iterdir() if path.is_file()} <= linked


def test_the_example_backend_is_the_one_that_is_tested() -> None:
    """Nothing in the manual drifts away from what runs."""
    text = page("backends")
    assert f"```python\n{(EXAMPLE / 'tokenissuer_webhook.py').read_text()}```" in text
    assert f"```ini\n# setup.cfg\n{(EXAMPLE / 'setup.cfg').read_text()}```" in text


def test_the_configuration_example_loads(tmp_path: Path) -> None:
    """What the manual shows can be used."""
    (code, *_) = re.findall(r"^```toml\n(.*?)^```", page("configuration"), re.MULTILINE | re.DOTALL)
    path = tmp_path / "tokenissuer.toml"
    path.write_text(code)
    assert load_config(path).issuer.name == tomllib.loads(code)["issuer"]["name"]


@pytest.mark.parametrize("path", reference.PAGES, ids=lambda path: path.stem)
def test_the_reference_is_what_the_code_says(path: Path) -> None:
    """`python -m tests.support.reference` writes it."""
    text = path.read_text(encoding="utf-8")
    assert text == reference.written(text)


def test_every_table_and_every_key_is_in_the_reference() -> None:
    """A key that is not in the manual does not exist for its readers."""
    assert sorted(reference.named(page("configuration"), "options")) == sorted(reference.schemas())


def test_every_command_is_in_the_reference() -> None:
    """With every option: the tables are the parsers' own."""
    text = page("commands")
    assert sorted(reference.named(text, "command")) == sorted(reference.commands())
    for name, parser in reference.commands().items():
        rows = section(text, f"## `{name}`")
        for action in parser._actions:
            for option in action.option_strings:
                if option.startswith("--") and option not in ("--help", "--config"):
                    assert f"`{option}" in rows, f"{name} {option}"


@pytest.mark.parametrize(
    ("name", "heading", "options"),
    [
        ("htpasswd", "## Every key", load_backend("htpasswd").Options),
        ("ldap", "## Every key", load_backend("ldap").Options),
        ("gitlab", "## Every key", load_backend("gitlab").Options),
        ("access", "## Every key", AccessOptions),
        ("access", "## Tests for rules", TestOptions),
        ("refresh-tokens", "## Every key", RefreshOptions),
        ("guessing", "## Every key", ThrottleOptions),
    ],
    ids=["htpasswd", "ldap", "gitlab", "access", "test", "refresh", "throttle"],
)
def test_every_key_is_on_its_own_page(name: str, heading: str, options: Any) -> None:
    """And nothing that is no key."""
    assert keys(section(page(name), heading)) == sorted(field.name for field in dataclasses.fields(options))


def test_every_answer_and_every_path_is_on_the_page_about_http() -> None:
    """Clients find what they may meet."""
    text = page("http")
    classes = [RequestError]
    for each in classes:
        classes.extend(each.__subclasses__())
    statuses = {str(each.status) for each in classes if hasattr(each, "status") and each.__module__.endswith("errors")}
    assert len(statuses) > 8
    assert statuses <= set(re.findall(r"\b\d{3}\b", section(text, "## Answers")))
    paths = [*routes.TOKEN_PATHS, routes.REVOKE, routes.JWKS, routes.METADATA, routes.HEALTH, routes.READINESS]
    assert [path for path in paths if f"`{path}`" not in section(text, "## Paths")] == []


def test_every_promise_of_the_security_page_has_its_test() -> None:
    """A test that is renamed or deleted takes its promise with it."""
    named = set(re.findall(r"`(test_\w+)`", page("security")))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 20
    assert named <= defined
