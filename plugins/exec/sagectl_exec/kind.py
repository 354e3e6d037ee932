"""`ExecKind`: a command list with placeholders, and the probes that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sagectl.plugin import (
    Diagnosis,
    EngineRequest,
    ExecProbe,
    FactQuery,
    Facts,
    FailureReport,
    LaunchPlan,
    Mode,
    NotifyProbe,
    Probe,
    Probes,
    ProgramQuery,
    Progress,
    Refusal,
    option,
)
from sagectl_exec import template

# What has to be set in the TOML for a placeholder to have a value.
_MISSING = {
    "model": ("the engine has no model", 'add `model = "…"` or take {model} out of `command`'),
    "port": ("the engine has no port", "add `port = …` or take {port} out of `command`"),
    "gpu_ids": ("the engine has no gpu_ids", "add `gpu_ids = [0]` or take {gpu_ids} out of `command`"),
}


@dataclass(frozen=True, slots=True)
class ExecOptions:
    """What an exec engine's table holds beside the keys that every engine has."""

    command: tuple[str, ...] = option(
        "program and arguments, a list; {name} {model} {host} {port} {gpu_ids} are filled in; never a shell"
    )
    serves: tuple[str, ...] = option(
        "OpenAI model names under which clients may ask for it", default=(), aliases=("served_models",)
    )

    def __post_init__(self) -> None:
        if not self.command or not self.command[0]:
            raise ValueError(
                'command: names no program; write a list such as ["llama-server", "--port", "{port}"]'
            )
        for word in self.command:
            if "\0" in word:
                raise ValueError(f"command: {word!r} holds a NUL byte, which no argument can")
            try:
                template.check(word)
            except template.TemplateError as error:
                raise ValueError(f"command: {error}") from None


class ExecKind:
    """Any server, started from a command list."""

    name = "exec"
    summary = "any server at all, from a command list (llama.cpp, SGLang, TGI, Ollama, your own)"
    mode = Mode.SERVE
    options = ExecOptions
    default_gpus = 0  # of a program that we know nothing of nothing is assumed
    default_port: int | None = 8100

    def listens(self, options: ExecOptions) -> bool:
        """Where the command asks for a port; a server that knows its own may still be given `port`."""
        return "port" in template.used(options.command)

    def facts(self, request: EngineRequest[ExecOptions]) -> Sequence[FactQuery]:
        """Where the program is."""
        program = _program(request)
        return () if isinstance(program, Refusal) else (ProgramQuery(program),)

    def plan(self, request: EngineRequest[ExecOptions], facts: Facts) -> LaunchPlan | Refusal:
        """Fill in the command; refuse what cannot run."""
        values = _values(request)
        if isinstance(values, Refusal):
            return values
        program = _program(request)
        if isinstance(program, Refusal):
            return program
        path = facts.program(ProgramQuery(program)).path
        if path is None:
            return Refusal(
                f"command: no executable {program!r} is found"
                + ("" if "/" in program else " on the engine's PATH"),
                "install it, write its absolute path, or extend `env = { PATH = … }`",
            )
        arguments = tuple(template.fill(word, values) for word in request.options.command[1:])
        probe = _fill_probe(request.probe, values)
        if isinstance(probe, Refusal):
            return probe
        return LaunchPlan(
            argv=(path, *arguments),
            probes=_probes(probe),
            served_models=request.options.serves,
            notes=(_probe_note(probe),),
        )

    def explain(self, request: EngineRequest[ExecOptions], failure: FailureReport) -> Diagnosis | None:
        """The exit codes of env(1) and of shells, and a port that somebody else holds."""
        log = "\n".join(failure.log).lower()
        if failure.phase == "starting" and ("address already in use" in log or "eaddrinuse" in log):
            return Diagnosis(
                f"Port {request.port} is in use by another process",
                "Stop that process (`ss -ltnp` names it) or choose another `port`.",
            )
        code = None if failure.exit is None else failure.exit.code
        if code == 127:
            return Diagnosis(
                "Exit code 127: a program that the command starts was not found",
                "Write absolute paths in the script, or extend `env = { PATH = … }`.",
                retryable=False,
            )
        if code == 126:
            return Diagnosis(
                "Exit code 126: a program that the command starts may not be executed",
                "Make it executable (`chmod +x`) for the engine's user.",
                retryable=False,
            )
        return None

    def progress(self, text: str) -> Progress | None:
        """A server has no progress."""
        return None


def _values(request: EngineRequest[ExecOptions]) -> Mapping[str, str] | Refusal:
    values = {
        "name": request.name,
        "model": request.model,
        "host": request.host,
        "port": None if request.port is None else str(request.port),
        "gpu_ids": None if request.gpu_ids is None else ",".join(map(str, request.gpu_ids)),
    }
    probe = request.probe.argv if isinstance(request.probe, ExecProbe) else ()
    try:
        for word in probe:
            template.check(word)
    except template.TemplateError as error:
        return Refusal(f"probe: {error}", "correct the words of `probe = { exec = […] }`")
    for name in sorted(template.used((*request.options.command, *probe))):
        if values[name] is None:
            reason, remedy = _MISSING[name]
            return Refusal(f"{{{name}}} cannot be filled in: {reason}", remedy)
    return {name: value for name, value in values.items() if value is not None}


def _program(request: EngineRequest[ExecOptions]) -> str | Refusal:
    values = _values(request)
    if isinstance(values, Refusal):
        return values
    program = template.fill(request.options.command[0], values)
    if "/" in program and not program.startswith("/"):
        return Refusal(
            f"command: {program!r} is relative, and the directory it is relative to changes with the engine",
            "write the program's absolute path, or its bare name to look it up on PATH",
        )
    return program


def _fill_probe(probe: Probe | None, values: Mapping[str, str]) -> Probe | Refusal | None:
    if not isinstance(probe, ExecProbe):
        return probe
    if not probe.argv:
        return Refusal("probe: exec is an empty list", 'name a program: `probe = { exec = ["true"] }`')
    return ExecProbe(tuple(template.fill(word, values) for word in probe.argv))


def _probes(probe: Probe | None) -> Probes:
    if probe is None:
        return Probes()
    # A program that says READY=1 need not send WATCHDOG=1; without it a liveness probe would kill it.
    liveness = None if isinstance(probe, NotifyProbe) else probe
    return Probes(startup=(probe,), readiness=probe, liveness=liveness)


def _probe_note(probe: Probe | None) -> str:
    if probe is None:
        return "no probe is configured: the engine counts as ready as soon as it runs"
    if isinstance(probe, NotifyProbe):
        return "ready when it says READY=1; liveness is not watched, only its exit"
    return "the configured probe decides start, readiness and liveness"
