"""From the options of `run` and `engine start` to a definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pytest

from sagectl.cli import definition

NOTHING: dict[str, Any] = {
    "engine_kind": "llm",
    "name": None,
    "port": None,
    "gpu_util": None,
    "use_gpu": None,
    "python": None,
    "backend": None,
    "labels": (),
    "settings": (),
}


def body(model: str | None = None, words: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    return definition.body(model, words, **(NOTHING | options))


def test_only_what_was_given_is_sent() -> None:
    assert body("Qwen/Qwen2.5-0.5B-Instruct") == {"kind": "llm", "model": "Qwen/Qwen2.5-0.5B-Instruct"}


def test_options_become_the_configurations_keys() -> None:
    assert body("m", name="chat", port=8001, backend="transformers", labels=("team=nlp",)) == {
        "kind": "llm",
        "model": "m",
        "name": "chat",
        "port": 8001,
        "backend": "transformers",
        "labels": {"team": "nlp"},
    }


@pytest.mark.parametrize(("share", "written"), [(0.7, "70%"), (1.0, "100%"), (0.555, "55.5%"), (0.29, "29%")])
def test_a_share_of_the_gpu_is_written_as_the_configuration_has_it(share: float, written: str) -> None:
    assert body("m", gpu_util=share)["gpu_memory"] == written


@pytest.mark.parametrize("wanted", [True, False])
def test_gpus_are_asked_for_or_declined(wanted: bool) -> None:
    assert body("m", use_gpu=wanted)["use_gpu"] is wanted


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4096", 4096),
        ("0.5", 0.5),
        ("true", True),
        ('["--a", "--b"]', ["--a", "--b"]),
        ("bfloat16", "bfloat16"),
        ('"4096"', "4096"),
        ("40%", "40%"),
        ("", ""),
        ("a=b", "a=b"),
    ],
)
def test_a_setting_is_json_or_plain_text(text: str, value: Any) -> None:
    assert body("m", settings=(f"key={text}",))["key"] == value


def test_a_dotted_setting_goes_into_a_table() -> None:
    settings = ("restart.policy=no", "restart.limit=3", "env.HF_HOME=/models")
    made = body("m", settings=settings)
    assert made["restart"] == {"policy": "no", "limit": 3}
    assert made["env"] == {"HF_HOME": "/models"}


@pytest.mark.parametrize(
    "options", [{"settings": ("port",)}, {"labels": ("=x",)}, {"settings": ("model.x=1",)}]
)
def test_a_setting_that_is_none_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(click.UsageError):
        body("m", **options)


def test_words_after_the_dashes_are_the_command_of_kind_exec() -> None:
    made = body(None, ("llama-server", "--port", "{port}"), engine_kind="exec")
    assert made == {"kind": "exec", "command": ["llama-server", "--port", "{port}"]}


def test_words_after_the_dashes_are_flags_of_other_kinds_servers() -> None:
    assert body("m", ("--enforce-eager",))["extra_args"] == ["--enforce-eager"]


def test_an_engine_of_nothing_is_refused() -> None:
    with pytest.raises(click.UsageError, match="Which MODEL"):
        body()


def test_a_path_here_is_made_absolute_for_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert body("models/tiny")["model"] == str(tmp_path / "models" / "tiny")
    assert body("org/elsewhere")["model"] == "org/elsewhere"


def test_a_bare_word_is_never_taken_for_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server").touch()
    monkeypatch.chdir(tmp_path)
    assert body(None, ("server",), engine_kind="exec")["command"] == ["server"]


@pytest.mark.parametrize("mark", definition.MODEL_MARKS)
def test_a_directory_of_a_model_here_comes_before_a_name_on_the_hub(
    mark: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "support").mkdir()
    assert body("support")["model"] == "support"
    (tmp_path / "support" / mark).touch()
    assert body("support")["model"] == str(tmp_path / "support")


def test_what_is_relative_to_here_is_so_even_where_it_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The refusal names the path that is missing then."""
    monkeypatch.chdir(tmp_path)
    assert body("./nope")["model"] == str(tmp_path / "nope")
    assert body("../nope")["model"] == str(tmp_path.parent / "nope")
    assert body("owner/nope")["model"] == "owner/nope"
