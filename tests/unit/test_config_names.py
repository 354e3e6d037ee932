"""Names of variables that say that the value is a secret."""

from __future__ import annotations

import pytest

from sagectl.config.names import did_you_mean, is_secret


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "OPENAI_API_KEY",
        "openai_api_key",
        "AWS_SECRET_ACCESS_KEY",
        "DB_PASSWORD",
        "PGPASSWORD",
        "MYSQL_PWD",
        "CLIENT_SECRET",
        "SSH_PRIVATE_KEY",
        "GOOGLE_CREDENTIALS",
        "X-Auth-Token",
        "TOKEN",
    ],
)
def test_secrets_are_told_by_their_names(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "MAX_TOKENS",
        "HF_TOKEN_PATH",
        "DB_PASSWORD_FILE",
        "AWS_ACCESS_KEY_ID",
        "KEYBOARD",
        "KEY",
        "PWD",
        "PATH",
        "SECRETARY",
        "",
        "_",
    ],
)
def test_other_names_are_not_taken_for_secrets(name: str) -> None:
    assert not is_secret(name)


def test_a_close_word_is_proposed_and_a_far_one_is_not() -> None:
    assert did_you_mean("modle", ["model", "host"]) == 'did you mean "model"?'
    assert did_you_mean("xyzzy", ["model"]) == ""


@pytest.mark.parametrize(("word", "answer"), [("lmm", 'did you mean "llm"?'), ("bogus", ""), ("", "")])
def test_a_near_name_is_offered_and_a_far_one_is_not(word: str, answer: str) -> None:
    assert did_you_mean(word, ["gpus", "llm"]) == answer
