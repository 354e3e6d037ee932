"""What etc/ offers to copy is accepted as it stands, and with every setting uncommented."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli

from sagectl.config.load import load
from sagectl.config.schema import DaemonTable, EngineTable, GpuTable, Table, keys_of
from sagectl_exec import ExecKind
from sagectl_llm import LlmKind

ETC = Path(__file__).parents[2] / "etc"
KINDS = {"exec": ExecKind(), "llm": LlmKind()}


@pytest.mark.parametrize("path", [ETC / "sagectl.toml", *sorted((ETC / "examples").glob("*.toml"))], ids=str)
def test_an_example_is_accepted_without_a_warning(path: Path) -> None:
    assert load(path, None, KINDS).warnings == ()


def uncommented() -> str:
    """The commented file with every setting in force."""
    return re.sub(r"^#(?=\S)", "", (ETC / "sagectl.toml").read_text(encoding="utf-8"), flags=re.M)


def test_every_commented_setting_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "sagectl.toml"
    path.write_text(uncommented(), encoding="utf-8")
    config = load(path, None, KINDS)
    assert {spec.name for spec in config.specs} == {"chat", "llama", "batch", "rerank"}
    told = [str(problem) for problem in config.warnings if "accepted, " not in problem.message]
    assert told == []  # but for what this version takes and does not act on


def keys(tables: list[dict[str, Any]], model: type[Table], prefix: str = "") -> Iterator[str]:
    """The keys of the model that stand in none of the tables."""
    for key, field in keys_of(model).items():
        values = [table[key] for table in tables if key in table]
        if not values:
            yield prefix + key
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Table):
            yield from keys(values, field.annotation, f"{prefix}{key}.")


def test_every_key_of_the_schema_is_shown() -> None:
    found = tomli.loads(uncommented())
    engines = [*found["engines"].values(), *found["defaults"].values()]
    missing = [
        *keys([found["daemon"]], DaemonTable, "daemon."),
        *keys([found["gpu"]], GpuTable, "gpu."),
        *keys(engines, EngineTable, "engines.NAME."),
    ]
    assert missing == []
    assert found["gpu"]["budgets"]
