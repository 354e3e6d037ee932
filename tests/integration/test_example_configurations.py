"""What etc/ offers to copy is accepted as it stands, and with every setting uncommented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sagectl.config.load import load
from sagectl_exec import ExecKind
from sagectl_llm import LlmKind

ETC = Path(__file__).parents[2] / "etc"
KINDS = {"exec": ExecKind(), "llm": LlmKind()}


@pytest.mark.parametrize("path", [ETC / "sagectl.toml", *sorted((ETC / "examples").glob("*.toml"))], ids=str)
def test_an_example_is_accepted_without_a_warning(path: Path) -> None:
    assert load(path, None, KINDS).warnings == ()


def test_every_commented_setting_is_accepted(tmp_path: Path) -> None:
    text = (ETC / "sagectl.toml").read_text(encoding="utf-8")
    path = tmp_path / "sagectl.toml"
    path.write_text(re.sub(r"^#(?=\S)", "", text, flags=re.M), encoding="utf-8")
    config = load(path, None, KINDS)
    assert {spec.name for spec in config.specs} == {"chat", "llama"}
    assert config.warnings == ()
