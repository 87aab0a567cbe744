"""For mkdocs: files of the repository that the manual links to, such as those in conf/, become part of the site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(\.\./(?P<path>[^)#\s]+)")


def linked(text: str) -> set[str]:
    """The files outside the manual that a page links to."""
    return {found for found in LINK.findall(text) if (ROOT / found).is_file()}


def on_files(files: Files, config: Any) -> Files:
    """Add each linked file, below `repository/`; a text stays a text."""
    for page in list(files.documentation_pages()):
        for path in linked(page.content_string):
            uri = f"repository/{path}" + (".txt" if path.endswith(".md") else "")
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, content=(ROOT / path).read_bytes()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Lead the links there."""

    def moved(found: re.Match[str]) -> str:
        path = found["path"]
        return f"](repository/{path}" + (".txt" if path.endswith(".md") else "")

    return LINK.sub(moved, markdown)
