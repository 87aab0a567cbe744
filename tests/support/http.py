"""HTTP as tests see it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Answer:
    """An HTTP answer, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


def basic(username: str, password: str) -> str:
    """The value of the Authorization header of a user."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
