"""OpenAI's /v1/embeddings: what a body asks for, what is wrong with it, and how answers are written. Pure."""

from __future__ import annotations

import base64
import json
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MAX_INPUTS = 2048
"""Inputs in one request, as OpenAI has it."""
CHARACTERS_PER_TOKEN = 64
"""No useful text has more characters a token; longer ones are refused before they are tokenized."""


class Refused(Exception):
    """A request that is answered with an error in OpenAI's shape.

    Args:
        param: the field that is wrong.
        code: for programs, such as `model_not_found`.
        retry_after: seconds after which another try may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True)
class Rules:
    """What this server serves.

    dimensions: lengths that embeddings may be cut to: None for none, () for any.
    """

    name: str
    width: int
    vocabulary: int
    max_tokens: int
    max_inputs: int
    truncate: bool
    dimensions: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Asked:
    """A valid request: either `texts` or `tokens` holds its inputs."""

    texts: tuple[str, ...] = ()
    tokens: tuple[tuple[int, ...], ...] = ()
    dimensions: int | None = None
    base64: bool = False

    @property
    def count(self) -> int:
        """How many inputs."""
        return len(self.texts) or len(self.tokens)


def parse(body: bytes, rules: Rules) -> Asked:
    """Read a request.

    Raises:
        Refused: 400 for what cannot be understood, 404 for another model, 413 for too much.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The body is not valid JSON.") from None
    if not isinstance(fields, dict):
        raise Refused(400, "The body must be a JSON object.")
    _check_model(fields.get("model"), rules)
    asked_format = fields.get("encoding_format", "float")
    if asked_format not in ("float", "base64"):
        raise Refused(400, "encoding_format must be float or base64.", param="encoding_format")
    texts, tokens = _inputs(fields.get("input"), rules)
    return Asked(texts, tokens, _dimensions(fields.get("dimensions"), rules), asked_format == "base64")


def _check_model(model: Any, rules: Rules) -> None:
    if not isinstance(model, str) or not model:
        raise Refused(400, f'Name the model: "model": {json.dumps(rules.name)}.', param="model")
    if model != rules.name:
        raise Refused(
            404,
            f"The model {model!r} does not exist here; this engine serves {rules.name!r}.",
            param="model",
            code="model_not_found",
        )


def _dimensions(value: Any, rules: Rules) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= rules.width:
        raise Refused(400, f"dimensions must be an integer from 1 to {rules.width}.", param="dimensions")
    if value == rules.width:
        return None
    if rules.dimensions is None:
        raise Refused(
            400,
            f"{rules.name} was not trained for shorter embeddings (Matryoshka), so dimensions must be"
            f" {rules.width} or left out.",
            param="dimensions",
        )
    if rules.dimensions and value not in rules.dimensions:
        allowed = ", ".join(map(str, rules.dimensions))
        raise Refused(400, f"dimensions must be one of {allowed}.", param="dimensions")
    return value


def _inputs(value: Any, rules: Rules) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Refused(
            400,
            "input must be a text, a list of texts, a list of token ids or a list of such lists; not empty.",
            param="input",
        )
    if _is_number(value[0]):
        value = [value]
    if len(value) > rules.max_inputs:
        raise Refused(
            413,
            f"input holds {len(value)} inputs; at most {rules.max_inputs} are taken in one request.",
            param="input",
            code="request_too_large",
        )
    if isinstance(value[0], str):
        return tuple(_text(text, index, rules) for index, text in enumerate(value)), ()
    return (), tuple(_ids(ids, index, rules) for index, ids in enumerate(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(text: Any, index: int, rules: Rules) -> str:
    if not isinstance(text, str):
        raise Refused(400, f"input[{index}] must be a text, as input[0] is.", param="input")
    if not text:
        raise Refused(400, f"input[{index}] is an empty text.", param="input")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise Refused(400, f"input[{index}] holds half a surrogate pair, which is no text.", param="input")
    most = CHARACTERS_PER_TOKEN * rules.max_tokens
    if len(text) <= most:
        return text
    if rules.truncate:
        return text[:most]
    raise Refused(
        413,
        f"input[{index}] has {len(text)} characters, which is too much for {rules.max_tokens} tokens.",
        param="input",
        code="request_too_large",
    )


def _ids(ids: Any, index: int, rules: Rules) -> tuple[int, ...]:
    if not isinstance(ids, list) or not ids:
        raise Refused(400, f"input[{index}] must be a list of token ids that is not empty.", param="input")
    for token in ids:
        if not isinstance(token, int) or isinstance(token, bool):
            raise Refused(400, f"input[{index}] holds {token!r:.40}, which is no token id.", param="input")
        if not 0 <= token < rules.vocabulary:
            raise Refused(
                400,
                f"input[{index}] holds the token {token}, and {rules.name} has tokens from 0 to"
                f" {rules.vocabulary - 1}. Tokens are those of its own tokenizer; a client that has another"
                " one should send texts (LangChain: check_embedding_ctx_length=False).",
                param="input",
            )
    return tuple(ids)


def check_lengths(lengths: Sequence[int], rules: Rules) -> None:
    """Refuse inputs with more tokens than are taken, where they are not to be cut.

    Raises:
        Refused: 400 with OpenAI's code `context_length_exceeded`.
    """
    for index, length in enumerate(lengths):
        if length > rules.max_tokens and not rules.truncate:
            raise Refused(
                400,
                f"input[{index}] has {length} tokens; {rules.name} takes {rules.max_tokens}.",
                param="input",
                code="context_length_exceeded",
            )


def write(rows: Sequence[bytes], name: str, tokens: int, *, as_base64: bool) -> bytes:
    """The answer. `rows` are embeddings as little-endian float32."""
    pieces = []
    for index, row in enumerate(rows):
        embedding = f'"{base64.b64encode(row).decode()}"' if as_base64 else _numbers(row)
        pieces.append(f'{{"object":"embedding","index":{index},"embedding":{embedding}}}')
    return (
        f'{{"object":"list","data":[{",".join(pieces)}],"model":{json.dumps(name)},'
        f'"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}}}}'
    ).encode()


def _numbers(row: bytes) -> str:
    # Nine digits tell every float32 apart; json.dumps would write seventeen, in three times the time.
    values = array("f", row)
    if sys.byteorder == "big":
        values.byteswap()
    return f"[{','.join(['%.9g'] * len(values))}]" % tuple(values)
