"""Kinds for tests: a server, a server with more options, and a job. They launch nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sagectl.plugin import (
    Diagnosis,
    EngineRequest,
    FactQuery,
    Facts,
    FailureReport,
    LaunchPlan,
    Mode,
    Progress,
    Refusal,
    option,
)


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """Options with a required one and a check of its own."""

    command: tuple[str, ...] = option("program and arguments")
    serves: tuple[str, ...] = option("model names", default=(), aliases=("served_models",))

    def __post_init__(self) -> None:
        if not self.command:
            raise ValueError('command: names no program; write a list such as ["serve", "--port", "1"]')


@dataclass(frozen=True, slots=True)
class LlmOptions:
    """Options of many types."""

    backend: Literal["auto", "vllm"] = option("the server", default="auto")
    max_model_len: int | None = option("tokens", default=None, aliases=("max_seq_length",))
    tensor_parallel_size: int | Literal["auto"] = option("GPUs together", default=1)
    temperature: float = option("heat", default=1.0)
    extra_args: tuple[str, ...] = option("flags", default=())
    quotas: Mapping[str, int] = option("quotas", default_factory=dict)


class SampleKind:
    """A kind by name and options."""

    summary = "for tests"
    default_gpus = 1

    def __init__(self, name: str, options: type, default_port: int | None, mode: Mode = Mode.SERVE) -> None:
        self.name = name
        self.options = options
        self.default_port = default_port
        self.mode = mode

    def listens(self, options: Any) -> bool:
        """Wherever it has ports to choose from."""
        return self.default_port is not None

    def facts(self, request: EngineRequest[Any]) -> Sequence[FactQuery]:
        """Nothing."""
        return ()

    def plan(self, request: EngineRequest[Any], facts: Facts) -> LaunchPlan | Refusal:
        """Always the same."""
        return LaunchPlan(("true",))

    def explain(self, request: EngineRequest[Any], failure: FailureReport) -> Diagnosis | None:
        """Nothing."""
        return None

    def progress(self, text: str) -> Progress | None:
        """Nothing."""
        return None


KINDS = {
    "exec": SampleKind("exec", ExecOptions, 8100),
    "llm": SampleKind("llm", LlmOptions, 8001),
    "job": SampleKind("job", ExecOptions, None, Mode.RUN),
}
