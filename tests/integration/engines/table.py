"""The tables of docs/clients.md: made of what the tests have seen, and compared with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

DOCUMENT = Path(__file__).parents[3] / "docs" / "clients.md"
NOTHING = "-"

#: Each table: its rows are clients, its columns operations.
TABLES: dict[str, dict[str, str]] = {
    "works": {
        "version": "version",
        "login": "log in",
        "push": "push",
        "pull": "pull",
        "build": "build from a private image",
        "mount": "mount",
        "delete": "delete",
        "catalog": "catalog",
        "session": "refresh token",
    },
    "gist": {
        "anonymous": "not logged in",
        "push denied": "no right to push",
        "pull denied": "no right to pull",
        "wrong": "wrong password",
        "throttled": "429",
        "away": "503",
        "ended": "ended",
    },
    "anonymous": {"anonymous": "its user reads"},
    "denied": {"push denied": "push", "pull denied": "pull", "catalog denied": "catalog"},
    "wrong": {"wrong": "log in", "changed": "pull, with a password that was right once"},
    "throttled": {"throttled": "its user reads"},
    "away": {"away": "its user reads"},
    "ended": {"ended": "its user reads"},
}

#: The beginnings of the sentences with which the token endpoint says why; the whole ones are in the document.
REASONS = (
    "access forbidden; ",
    "this login has ended; ",
    "too many wrong passwords from your address; ",
    "the account source is not available; ",
)
WRONG = "wrong user name or password"

#: What decides: a newer version of a client may say the rest otherwise.
ESSENTIAL = (
    *REASONS,
    WRONG,
    *("401", "403", "429", "503"),
    *("denied", "unauthorized", "insufficient_scope", "too many requests", "invalid username/password", "login prior"),
)

_LOGGED = re.compile(r'^time=.*level=fatal msg="(.*)"$', re.MULTILINE)
_BEGINNING = re.compile(
    r"^(?:error|ctr: |copy failed|failed |denied: |unauthorized|[a-z]+ access denied|Login prior)", re.IGNORECASE
)
_PREFIX = re.compile(r"^(?:Error(?: response)?(?: from [a-z ]+)?|error|ERROR|ctr): ")
_ADDRESS = re.compile(r"localhost:\d+(?:/[a-z0-9./_-]+)?(?:@sha256:[0-9a-f]+|:[v.0-9]+)?")


def essence(output: str) -> str:
    """The words of an error message, without what is different each time: addresses, names, digests, seconds."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", output).replace("\r", "\n")
    logged = _LOGGED.findall(text)
    if logged:
        text = json.loads(f'"{logged[-1]}"')
    lines = [line.strip(" \t*") for line in text.splitlines() if line.strip()]
    # The first line of the message: those after it may look like a beginning too.
    begins = 0 if logged else next((at for at, line in enumerate(lines) if _BEGINNING.match(line)), -1)
    assert begins >= 0, output
    if lines[begins].startswith("Login prior"):
        return f"{lines[begins]} … Username"
    text = " / ".join(lines[begins:])
    text = re.sub(r"[:;]? ?\[map\[.*", "", text).replace("errors: / ", "")
    parts = text.split(": ")
    named = [number for number, part in enumerate(parts[:-1]) if re.search(r'://|"|/v2/|[0-9a-f]{64}', part)]
    text = ": ".join(parts[named[-1] + 1 :] if named else parts)
    text = _ADDRESS.sub("NAME", _PREFIX.sub("", text))
    for reason in REASONS:
        text = re.sub(rf"{re.escape(reason)}[^\"/]*", f"{reason}…", text)
    return text.strip(" /")


def gist(words: str) -> str:
    """What kind of answer the words are."""
    if any(reason in words for reason in REASONS) or WRONG in words:
        return "says why"
    for text, kind in (
        ("login prior", "asks again"),
        ("access denied", "denied"),
        ("requested access", "denied"),
        ("insufficient_scope", "denied"),
        ("invalid username/password", "says why"),
        ("too many requests", "says 429"),
    ):
        if text in words.lower():
            return kind
    status = re.search(r"\b[45]\d\d\b", words)
    if status:
        return f"says {status[0]}"
    return "unauthorized" if "unauthorized" in words.lower() else "other"


def essentials(words: str) -> set[str]:
    """Those of the essential words that are in the words."""
    return {word for word in ESSENTIAL if word.strip().lower() in words.lower()}


def cell(table: str, operation: str, seen: str) -> str:
    """What stands in the table."""
    if seen == NOTHING or table == "works":
        return seen
    return gist(seen) if table == "gist" else f"`{seen}`"


def rendered(table: str, clients: list[str], seen: Mapping[tuple[str, str], str]) -> list[str]:
    """The lines of a table; clients that have none of its operations are left out."""
    columns = TABLES[table]
    lines = [f"| client | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for client in clients:
        cells = [cell(table, operation, seen.get((client, operation), NOTHING)) for operation in columns]
        if any(text != NOTHING for text in cells):
            lines.append(f"| {client} | {' | '.join(cells)} |")
    return lines


def read(text: str) -> dict[tuple[str, str], str]:
    """What the document says, by client and operation."""
    said: dict[tuple[str, str], str] = {}
    for table, columns in TABLES.items():
        if table == "gist":
            continue
        found = re.search(rf"<!-- table: {table} -->\n((?:\|.*\n)*)", text)
        assert found, f"{DOCUMENT} has no table {table}"
        for line in found[1].splitlines()[2:]:
            client, *cells = (part.strip() for part in line.strip("|").split("|"))
            said |= {(client, name): text.strip("`") for name, text in zip(columns, cells, strict=True)}
    return said


def write(text: str, clients: list[str], seen: Mapping[tuple[str, str], str]) -> str:
    """The document with the tables made anew."""
    for table in TABLES:
        new = "\n".join([f"<!-- table: {table} -->", *rendered(table, clients, seen), ""])
        old = re.search(rf"<!-- table: {table} -->\n(?:\|.*\n)*", text)
        assert old, f"{DOCUMENT} has no place for table {table}"
        text = text[: old.start()] + new + text[old.end() :]
    return text
