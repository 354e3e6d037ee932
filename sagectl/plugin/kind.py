"""What an engine kind receives, what it answers, and the one Protocol that it implements.

A kind is pure. It never starts a process, opens a socket or reads a file: it *describes* a launch,
a probe or the facts it needs, as the values below, and the daemon does the rest. Everything a kind
returns is therefore testable with `==`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from sagectl.plugin.memory import CheckpointFacts, CheckpointQuery, GpuGrant
from sagectl.plugin.progress import Progress

OptionsT_co = TypeVar("OptionsT_co", covariant=True)
OptionsT_contra = TypeVar("OptionsT_contra", contravariant=True)


class Mode(StrEnum):
    """Whether an engine of a kind serves until it is stopped, or runs to completion."""

    SERVE = "serve"
    """Runs until told to stop. An exit that nobody asked for is a failure, with code 0 too."""
    RUN = "run"
    """A job: exit code 0 means `inactive (completed)`, and it never runs again by itself."""


def option(help: str, *, default: Any = ..., default_factory: Any = ..., aliases: Sequence[str] = ()) -> Any:
    """Declare one option of a kind: a dataclass field with a help text.

    Args:
        help: one line, shown by `sagectl kinds` and in error messages.
        default, default_factory: as for `dataclasses.field`; without either, the option is required.
        aliases: other names that the TOML and the API accept for it.
    """
    metadata = {"help": help, "aliases": tuple(aliases)}
    if default is not ...:
        return field(default=default, metadata=metadata)
    if default_factory is not ...:
        return field(default_factory=default_factory, metadata=metadata)
    return field(metadata=metadata)


# --- Facts: what a kind may ask about the machine ------------------------------------------------


@dataclass(frozen=True, slots=True)
class InterpreterQuery:
    """Which of these importable modules has this Python interpreter, and in which version?"""

    python: str
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class InterpreterFacts:
    """Answer to `InterpreterQuery`. `modules` maps a module to its distribution's version.

    A module that cannot be found maps to None; one without a distribution to "". Where `error` is
    not None the interpreter itself could not be run, and it says why.
    """

    modules: Mapping[str, str | None]
    error: str | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class FileQuery:
    """Is there a file or directory at `path`, and (with `read`) what are its first bytes?

    Args:
        path: absolute.
        read: how many bytes to read, at most 1 MiB; 0 for none.
    """

    path: str
    read: int = 0


@dataclass(frozen=True, slots=True)
class FileFacts:
    """Answer to `FileQuery`. `text` is the decoded beginning (undecodable bytes replaced)."""

    type: Literal["missing", "file", "directory", "other"]
    size: int = 0
    text: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ProgramQuery:
    """Which file does this name run, looked up on the engine's PATH as execvp would?"""

    name: str


@dataclass(frozen=True, slots=True)
class ProgramFacts:
    """Answer to `ProgramQuery`. `path` is None where nothing executable is found."""

    path: str | None


FactQuery = InterpreterQuery | FileQuery | ProgramQuery | CheckpointQuery
Fact = InterpreterFacts | FileFacts | ProgramFacts | CheckpointFacts
"""An answer to a query."""


class Facts:
    """The answers to the queries of `EngineKind.facts`, looked up by the query itself.

    Raises:
        KeyError: the query was not among those that `facts` returned.
    """

    def __init__(self, answers: Mapping[FactQuery, Fact]) -> None:
        self._answers = dict(answers)

    def __or__(self, other: Facts) -> Facts:
        """The answers of both."""
        return Facts(self._answers | other._answers)

    def interpreter(self, query: InterpreterQuery) -> InterpreterFacts:
        """The answer to an interpreter query."""
        answer = self._answers[query]
        assert isinstance(answer, InterpreterFacts)
        return answer

    def file(self, query: FileQuery) -> FileFacts:
        """The answer to a file query."""
        answer = self._answers[query]
        assert isinstance(answer, FileFacts)
        return answer

    def program(self, query: ProgramQuery) -> ProgramFacts:
        """The answer to a program query."""
        answer = self._answers[query]
        assert isinstance(answer, ProgramFacts)
        return answer

    def checkpoint(self, query: CheckpointQuery) -> CheckpointFacts:
        """The answer to a query about a model's files."""
        answer = self._answers[query]
        assert isinstance(answer, CheckpointFacts)
        return answer


# --- Probes ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HttpProbe:
    """An HTTP request to the engine's own host and port that must be answered as described.

    Args:
        path: with a leading slash, query included.
        method: an HTTP method.
        body: sent as `application/json` when not None.
        contains: text that the response's body must contain.
        json_path: keys and indices that must lead to a value that is neither missing, null, empty
            nor zero in the JSON body, such as `("choices", 0, "message")`.
        timeout: seconds; None for the engine's `probe.timeout`.
        bearer_env: name of a variable in the engine's environment; where it has a value, that is sent
            as `Authorization: Bearer …`. Only the name is ever stored.

    A status from 200 to 399 succeeds.
    """

    path: str
    method: str = "GET"
    body: str | None = None
    contains: str | None = None
    json_path: tuple[str | int, ...] = ()
    timeout: float | None = None
    bearer_env: str | None = None


@dataclass(frozen=True, slots=True)
class TcpProbe:
    """The engine's port accepts a connection."""


@dataclass(frozen=True, slots=True)
class ExecProbe:
    """A command that exits with 0, run without a shell in the engine's environment."""

    argv: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class NotifyProbe:
    """The engine says `READY=1` on `$NOTIFY_SOCKET` (sd_notify(3)).

    As readiness probe it is level triggered: `READY=1` stays true until `STOPPING=1` or exit. As
    liveness probe it asks for `WATCHDOG=1` at least every `interval` × `failures`.
    """


Probe = HttpProbe | TcpProbe | ExecProbe | NotifyProbe


@dataclass(frozen=True, slots=True)
class Probes:
    """The three probes of Kubernetes.

    startup: asked one after the other, each until it succeeded once; together they gate the rest.
        Empty: the engine is ready as soon as it runs.
    readiness: takes the engine out of the routes while it fails; never restarts it.
    liveness: restarts the engine after `probe.failures` failures in a row.
    """

    startup: tuple[Probe, ...] = ()
    readiness: Probe | None = None
    liveness: Probe | None = None


# --- Launching -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineRequest(Generic[OptionsT_co]):
    """One engine as the user declared it, resolved: all that a kind may look at when it plans."""

    name: str
    model: str | None
    host: str
    port: int | None
    gpu_ids: tuple[int, ...] | None
    """The GPUs given to this engine; `()` for none; None where GPUs are not managed."""
    python: str
    """Absolute path of the engine's own interpreter."""
    options: OptionsT_co
    """The kind's own options, an instance of `EngineKind.options`."""
    probe: Probe | None
    """The probe that the user chose in `probe = {…}`; None leaves the choice to the kind, for
    which "none" may be a choice too: up then means ready."""
    models_dir: str
    """Where sagectl keeps models and checkpoints."""
    state_dir: str
    """A directory of this engine's own that outlives restarts; made before launch."""
    gpu_memory: str | int | None = None
    """As the user wrote it: a share of each card such as "70%", bytes, or "auto"; None where he did not."""
    gpus: int | None = 0
    """How many GPUs the user asked for; None leaves it to the kind's options, of 0 nothing is reserved."""
    grant: GpuGrant | None = None
    """What the engine was given; None while that is not decided, and where GPUs are not managed."""


@dataclass(frozen=True, slots=True)
class Successor:
    """What serves the result of a job that completed.

    name: of the model, as clients ask for it, and of the engine where a new one is made.
    kind: of the engines that can serve it.
    model: the absolute path of the result.
    keys: what else the definition of a new engine says, as JSON's values.
    """

    name: str
    kind: str
    model: str
    keys: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """How to start an engine and how to tell that it works.

    argv: program and arguments, never given to a shell; must hold no secret.
    env: added to the daemon's clean base environment, below the user's own `env` and `env_file`.
    cwd: absolute; None for `state_dir`.
    served_models: names under which clients ask for it.
    progress_file: absolute path of a small file that the engine replaces atomically, given to
        `EngineKind.progress`.
    successor: what is to serve a job's result when it is complete.
    history_file: absolute path of a file to which it appends a line for each step, given to `history`.
    notes: what the plan chose and why, shown by `sagectl explain`.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str | None = None
    probes: Probes = Probes()
    served_models: tuple[str, ...] = ()
    progress_file: str | None = None
    successor: Successor | None = None
    history_file: str | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why something cannot be done, and what would help. A value, not an exception.

    Args:
        reason: what is in the way, a sentence without a final period.
        remedy: what the user can do, likewise.
        arithmetic: the figures behind it, a line each.
        retryable: True where waiting may help (a port in use); the restart policy then applies.
    """

    reason: str
    remedy: str
    arithmetic: tuple[str, ...] = ()
    retryable: bool = False


# --- What became of it -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How a process ended: exactly one of `code` and `signal`, or neither where nobody saw it.

    oom_kill: because the kernel killed it, or another process of its tree, when memory ran out.
    oom_detail: which process that was, and what it held; empty where the kernel's log cannot be read.
    """

    code: int | None = None
    signal: int | None = None
    oom_kill: bool = False
    oom_detail: str = ""

    @property
    def unknown(self) -> bool:
        """Nobody saw the process end."""
        return self.code is None and self.signal is None


@dataclass(frozen=True, slots=True)
class FailureReport:
    """What is known of a failure, for `EngineKind.explain`.

    phase: `starting` before the engine was ready for the first time, else `running`.
    log: the last lines that it wrote since this start, oldest first, without newlines.
    """

    phase: Literal["starting", "running"]
    exit: ExitStatus | None
    log: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A failure in the user's words: what happened and what to do, a sentence each.

    Args:
        retryable: False where trying again cannot help (a flag that does not exist): the engine
            then fails at once instead of running into its start limit.
        arithmetic: the figures behind it, a line each.
    """

    summary: str
    remedy: str
    retryable: bool = True
    arithmetic: tuple[str, ...] = ()


@runtime_checkable
class EngineKind(Protocol[OptionsT_contra]):
    """An engine kind. Implement it with a plain class; all methods are pure and quick.

    name: how the TOML calls it, `[a-z][a-z0-9_-]*`.
    summary: one line for `sagectl kinds`.
    mode: serves, or runs to completion.
    options: a frozen dataclass whose fields are made with `option(...)`; the loader validates the
        TOML's keys into it (pydantic reads its annotations) and refuses unknown ones.
    default_port: where automatic ports begin, such as 8001; None for kinds that never listen.

    A kind may have `default_gpus` too: how many GPUs its engines use where the user says nothing, 1 unless
    it is there, 0 for kinds that run on the CPU until they are told `use_gpu = true`.

    And `estimate(request, facts) -> MemoryEstimate | Refusal`: the GPU memory that the engine needs. Asked
    with the answers to the same `facts` before GPUs are chosen, so that `request.grant` is None; `plan` comes
    after that, with the grant. Without it sagectl assumes a small engine and learns from what it measures.

    `loading(request, plan, facts, name, edition) -> Loading | Refusal`: how an engine of this kind that runs
    by `plan` takes in one more model, `request.model`, under this name. `edition` counts those of that name
    that its process has had: above 0 there is one, which must go on answering if the new one fails. Without
    it an engine serves what it was started with.

    And `further_facts(request, facts) -> Sequence[FactQuery]`: what else it needs to know, given the answers
    to `facts`, such as where the base of an adapter lies. `estimate` and `plan` get both.

    And `history(text) -> Sequence[Point]`: reads lines of `LaunchPlan.history_file`, a step each; of a file
    that is too long to be read, it gets some of them.
    """

    @property
    def name(self) -> str: ...
    @property
    def summary(self) -> str: ...
    @property
    def mode(self) -> Mode: ...
    @property
    def options(self) -> type: ...
    @property
    def default_port(self) -> int | None: ...

    def listens(self, options: OptionsT_contra) -> bool:
        """Whether an engine with these options needs a port, to be chosen where the user named none."""
        ...

    def facts(self, request: EngineRequest[OptionsT_contra]) -> Sequence[FactQuery]:
        """What `plan` needs to know of the machine. Asked before each preflight."""
        ...

    def plan(self, request: EngineRequest[OptionsT_contra], facts: Facts) -> LaunchPlan | Refusal:
        """How to launch this engine, or why it cannot work here (found before anything runs)."""
        ...

    def explain(self, request: EngineRequest[OptionsT_contra], failure: FailureReport) -> Diagnosis | None:
        """The failure in the user's words, or None where this kind does not recognise it."""
        ...

    def progress(self, text: str) -> Progress | None:
        """Read the contents of `LaunchPlan.progress_file`; None where they say nothing."""
        ...
