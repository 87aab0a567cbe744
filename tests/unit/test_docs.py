"""README and the manual: every block in them is run or parsed, every link leads somewhere, every example is true."""

from __future__ import annotations

import ast
import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.support import reference
from tokenissuer.cli import _parser
from tokenissuer.config import Config, parse_config

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
PAGES: Final = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted(DOCS.glob("*.md")))

#: Not parsed: what programs print, and pictures.
SHOWN: Final = ("text", "mermaid")
#: Blocks that cannot be parsed though their language says so: page and first line → why.
UNPARSED: Final[dict[tuple[str, str], str]] = {}

_BLOCK: Final = re.compile(r"^(?P<indent> *)```(?P<language>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$", re.M | re.S)
_LINK: Final = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]+)\)")
_INLINE: Final = re.compile(r"`(?:sudo )?tokenissuer (?P<rest>[^`]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code in a page."""

    page: Path
    line: int
    language: str
    code: str = field(repr=False)

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks_of(page: Path) -> Iterator[Block]:
    """The blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _BLOCK.finditer(text):
        code = re.sub(f"^{found['indent']}", "", found["code"], flags=re.M)
        yield Block(page, text.count("\n", 0, found.start()) + 1, found["language"], code)


BLOCKS: Final = [block for page in PAGES for block in blocks_of(page)]


def of(language: str) -> pytest.MarkDecorator:
    """Run a test with each block of a language that can be parsed."""
    found = [
        block
        for block in BLOCKS
        if block.language == language and (block.page.name, block.code.partition("\n")[0]) not in UNPARSED
    ]
    return pytest.mark.parametrize("block", found, ids=str)


def prose(page: Path) -> str:
    """A page without its blocks; the lines keep their numbers."""
    return _BLOCK.sub(lambda found: "\n" * found[0].count("\n"), page.read_text(encoding="utf-8"))


def test_every_block_has_a_language_that_is_looked_at() -> None:
    """None is left out unseen."""
    looked_at = {*SHOWN, "sh", "toml", "yaml", "nginx", "python", "ini", "json", "apache"}
    assert [f"{block} {block.language!r}" for block in BLOCKS if block.language not in looked_at] == []


def test_what_is_not_parsed_is_still_there() -> None:
    """An exception ends with what it was made for."""
    there = {(block.page.name, block.code.partition("\n")[0]) for block in BLOCKS}
    assert UNPARSED.keys() <= there
    assert all(UNPARSED.values())


# Shell.


@of("sh")
def test_a_shell_can_read_it(block: Block) -> None:
    """As bash does, without running it."""
    bash = shutil.which("bash")
    assert bash, "bash is needed"
    read = subprocess.run([bash, "-n"], input=block.code, capture_output=True, text=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")


@of("sh")
def test_its_commands_of_tokenissuer_are_right(block: Block) -> None:
    """They are read by the real parser."""
    for arguments in commands(block.code):
        assert is_right(arguments), f"tokenissuer {shlex.join(arguments)}"


def test_enough_commands_are_found() -> None:
    """The search does not lose them."""
    found = [arguments[0] for block in BLOCKS if block.language == "sh" for arguments in commands(block.code)]
    assert {"init", "check", "doctor", "explain", "passwd", "keys", "sessions", "token", "quickstart"} <= set(found)
    assert [*commands("a && /opt/bin/tokenissuer check --user x # y\nb=$(tokenissuer token a | c)")] == [
        ["check", "--user", "x"],
        ["token", "a"],
    ]


def commands(code: str) -> Iterator[list[str]]:
    """The arguments of each call of tokenissuer in a script."""
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        lexer = shlex.shlex(line.replace("$(", " ; "), posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        found: list[str] = []
        for token in (*lexer, ";"):
            if token and set(token) <= set("();<>|&"):
                yield from _call(found)
                # What follows `<` is a file.
                found = ["<"] if set(token) <= set("<>") else []
            else:
                found.append(token)


def _call(words: list[str]) -> Iterator[list[str]]:
    known = {*reference.commands(), "--version"}
    for place, word in enumerate(words[:-1]):
        if word.rpartition("/")[2] == "tokenissuer" and words[place + 1] in known:
            yield words[place + 1 :]
            return
    assert not words or words[0].rpartition("/")[2] != "tokenissuer", f"unknown command: {words}"


def is_right(arguments: list[str]) -> bool:
    """Whether the command line takes them."""
    try:
        _parser().parse_args(arguments)
    except SystemExit as ended:
        return ended.code == 0
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_in_sentences_exist(page: Path) -> None:
    """With their options."""
    for found in _INLINE.finditer(prose(page)):
        name, *rest = " ".join(found["rest"].split()).split(" ")
        if name.startswith("-"):
            continue
        assert name in reference.commands(), found[0]
        parser = reference.commands()[name]
        known = {option for action in parser._actions for option in action.option_strings}
        assert {word for word in rest if re.match(r"--[a-z]", word)} <= known, found[0]


# Configurations.

WHOLE: Final = """
[issuer]
name = "gitlab-issuer"
services = ["container_registry"]
realm = "https://registry.example.com/jwt/auth"
[signing]
key = "auth.key"
certificate = "auth.crt"
[[backends]]
type = "htpasswd"
path = "users.htpasswd"
"""


def configuration(text: str, folder: Path) -> Config:
    """A configuration with these tables; those that every configuration needs are added."""
    table = tomllib.loads(text)
    for name, value in tomllib.loads(WHOLE).items():
        table.setdefault(name, value)
    # A rule may name backends that stand in another block of the page.
    there = [each.get("name", each["type"]) for each in table["backends"]]
    for rule in table.get("access", []):
        for name in rule.get("backends", []):
            if name not in there:
                there.append(name)
                table["backends"].append({"type": "htpasswd", "name": name, "path": "users.htpasswd"})
    for services in [*(rule.get("services", []) for rule in table.get("access", []))]:
        table["issuer"]["services"] = [*dict.fromkeys([*table["issuer"]["services"], *services])]
    for path in re.findall(r'^\w+_file = "([\w.-]+)"', text, re.M):
        (folder / path).write_text("redis://localhost" if "redis" in path else "secret")
    return parse_config(table, folder)


@of("toml")
def test_a_configuration_is_one(block: Block, tmp_path: Path) -> None:
    """Every table and key of it is known, and every `[[test]]` holds."""
    config = configuration(block.code, tmp_path)
    assert [str(finding) for finding in config.test_findings()] == []


def test_every_example_of_access_rules_says_what_it_allows() -> None:
    """Both ways: what it gives, and what it does not."""
    rules = [block for block in BLOCKS if block.language == "toml" and "[[access]]" in block.code]
    examples = [block for block in rules if block.page.name == "access.md"]
    assert len(examples) > 8
    for block in examples:
        given = [test["actions"] for test in tomllib.loads(block.code)["test"]]
        assert any(given), str(block)
        assert [] in given or "deny" in block.code or "account}" in block.code, str(block)


def test_a_wrong_example_would_be_noticed(tmp_path: Path) -> None:
    """The tests of this page look."""
    with pytest.raises(Exception, match="lifetime"):
        configuration('[issuer]\nname = "x"\nservices = ["y"]\nrealm = "https://z/token"\nlifetme = 1', tmp_path)
    config = configuration('[[test]]\nscope = "repository:a/b:pull"\nactions = ["pull"]', tmp_path)
    assert len(list(config.test_findings())) == 1


# Other languages.


@of("yaml")
def test_yaml_can_be_read(block: Block) -> None:
    """As YAML."""
    assert [*yaml.safe_load_all(block.code)]


@of("json")
def test_json_can_be_read(block: Block) -> None:
    """As JSON."""
    assert json.loads(block.code)


@of("ini")
def test_ini_can_be_read(block: Block) -> None:
    """As setup.cfg."""
    parser = configparser.ConfigParser()
    parser.read_string(block.code)
    assert parser.sections()


@of("python")
def test_python_can_be_read(block: Block) -> None:
    """As Python; tests/protocol/test_embedding.py runs it."""
    assert ast.parse(block.code).body


@of("nginx")
def test_nginx_takes_it(block: Block, tmp_path: Path) -> None:
    """In its place: a server, or what is around it."""
    assert block.code.count("{") == block.code.count("}")
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if nginx is None:
        return
    is_outer = re.search(r"^\s*(server|upstream|map)\b[^;]*\{", block.code, re.M)
    inner = block.code if is_outer else f"server {{ listen 127.0.0.1:1; {block.code} }}"
    for name in set(re.findall(r"proxy_pass http://(\w+)", inner)) - set(re.findall(r"upstream (\w+)", inner)):
        inner = f"upstream {name} {{ server 127.0.0.1:5001; }}\n{inner}"
    file = tmp_path / "nginx.conf"
    file.write_text(f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{inner}\n}}\n")
    tried = subprocess.run(
        [nginx, "-t", "-p", tmp_path, "-e", "stderr", "-c", file], capture_output=True, text=True, check=False
    )
    assert tried.returncode == 0, tried.stderr


# Links and lines.


def headings(page: Path) -> Iterator[str]:
    """The headings of a page, as people see them."""
    for line in prose(page).splitlines():
        if found := re.match(r"#{1,6} (.*)", line):
            yield re.sub(_LINK, lambda link: link["text"], found[1])


def anchors(page: Path) -> set[str]:
    """The anchors that a forge and mkdocs both make: where they make different ones, none can be linked to."""
    found = set()
    for heading in headings(page):
        forge = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")
        plain = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore").decode()
        site = re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())
        if forge == site:
            found.add(forge)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_link_leads_somewhere(page: Path) -> None:
    """To a file that is there, and to a heading in it."""
    broken = []
    for link in _LINK.finditer(prose(page)):
        path, _, anchor = link["target"].partition("#")
        if re.match(r"(https?|mailto):", path):
            continue
        target = page if not path else (page.parent / path).resolve()
        if not target.is_file() or (anchor and anchor not in anchors(target)):
            broken.append(link["target"])
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_line_of_prose_is_not_long(page: Path) -> None:
    """At most 120 characters; tables and addresses are as long as they are."""
    lines = enumerate(prose(page).splitlines(), 1)
    long = [number for number, line in lines if len(line) > 120 and not line.startswith("|") and "](" not in line]
    assert long == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_file_of_conf_that_is_named_exists(page: Path) -> None:
    """In sentences and in commands."""
    named = set(re.findall(r"(?<![\w/.-])(?:\.\./)?(conf/[\w.-]+\w)", page.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_checks_before_a_commit_are_those_of_continuous_integration() -> None:
    """With the same arguments, in .pre-commit-config.yaml."""
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    entries = {hook["name"]: hook["entry"].removeprefix(".cache/venv/bin/") for hook in repository["hooks"]}
    steps = dict(re.findall(r'^step "([a-z ]+)" (.*)$', (ROOT / "tests" / "run").read_text(encoding="utf-8"), re.M))
    assert entries == {**steps, "fast tests": "tests/run --fast"}


def test_the_site_can_be_built(tmp_path: Path) -> None:
    """With every page in its place, and every link."""
    pytest.importorskip("mkdocs", reason="pip install mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    # Files of the repository that pages link to are there, too.
    assert (tmp_path / "site" / "repository" / "conf" / "compose.yaml").is_file()
    assert (tmp_path / "site" / "ldap" / "index.html").is_file()
