"""The table of frameworks, ``frameworks.toml``, read once."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

TABLE: dict[str, Any] = tomllib.loads(resources.files(__package__).joinpath("frameworks.toml").read_text("utf-8"))
