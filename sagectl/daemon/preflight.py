"""What is checked before an engine is launched: its account, files, limits and port, then its kind's plan."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from typing import Any, Protocol

from sagectl.config import envfile
from sagectl.config.paths import Paths
from sagectl.core.engine import Engine, EngineSpec, Reservation
from sagectl.core.sizes import gib
from sagectl.core.sizing import HEADROOM, Demand, demand
from sagectl.daemon import grants
from sagectl.daemon.accounts import account
from sagectl.daemon.requests import known_port, request_of
from sagectl.plugin import (
    EngineKind,
    EngineRequest,
    Facts,
    LaunchPlan,
    Loading,
    MemoryEstimate,
    Refusal,
    can_load,
    estimate,
    further_facts,
    loading,
)
from sagectl.system import ports
from sagectl.system.facts import FactSource
from sagectl.system.powers import powers

log = logging.getLogger("sagectl.preflight")

LONGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path, sun_path's 108 less the final zero."""


Planned = tuple[LaunchPlan, int | None]
"""A plan, and the port that was chosen."""


class Gpus(Protocol):
    """The GPU accounts, as a preflight sees them."""

    @property
    def managed(self) -> bool:
        """There are GPUs whose memory is accounted for."""

    def learned(self) -> Mapping[str, int]:
        """Footprints that were measured, by `sizing.footprint_key`."""

    def impossible(self, asked: Demand) -> Refusal | None:
        """Why no waiting could help."""

    def lacking(self, asked: Demand) -> Refusal | None:
        """Why it would have to wait now."""

    def demand(self, engine: Engine, asked: Demand) -> None:
        """Note what an engine needs."""


class Preflight:
    """Checks engines. Holds the ports it gave out until their engines hold them."""

    def __init__(
        self,
        paths: Paths,
        kinds: Mapping[str, EngineKind[Any]],
        inherited: Mapping[str, str],
        taken: Callable[[str], Container[int]],
        assign_port: Callable[[str, int | None], None],
        gpus: Gpus,
    ) -> None:
        """
        Args:
            taken: engine id → the ports of all other engines.
            assign_port: notes an engine's port at once, so that two starts never choose the same.
        """
        self._paths = paths
        self._kinds = kinds
        self._inherited = inherited
        self._taken = taken
        self._assign_port = assign_port
        self._gpus = gpus
        self._facts = FactSource()

    async def check(self, engine: Engine) -> Planned | Demand | Refusal:
        """The plan and the port; or the GPU memory that it has to be given before; or why neither."""
        spec = engine.spec
        kind = self._kinds.get(spec.kind)
        if kind is None:
            return Refusal(
                f"the kind {spec.kind!r} is not installed",
                "see `sagectl kinds` for those that are, and why others broke",
            )
        trouble = (
            self._account_trouble(spec)
            or self._env_file_trouble(spec)
            or self._socket_trouble(spec)
            or (grants.refusal(spec, powers(spec.oom_score_adjust)) if grants.asks(spec) else None)
        )
        if trouble is not None:
            return trouble
        port = self._choose_port(engine)
        if isinstance(port, Refusal):
            return port
        request, facts = await self._ask(engine, kind, port)
        if spec.gpus == 0 or not self._gpus.managed:
            return self._planned(kind, request, facts)
        asked = self._demand(spec, kind, request, facts)
        if asked is None:
            return self._planned(kind, request, facts)
        if isinstance(asked, Refusal):
            return asked
        refusal = self._gpus.impossible(asked)
        if refusal is not None:
            self._gpus.demand(engine, asked)  # `explain` shows how much it was
        return refusal or asked

    def _demand(
        self, spec: EngineSpec, kind: EngineKind[Any], request: EngineRequest[Any], facts: Facts
    ) -> Demand | Refusal | None:
        """What it needs of GPUs; None where it can use none, whatever it was given."""
        answer = estimate(kind, request, facts)
        if isinstance(answer, Refusal):
            return answer
        if answer is not None and not isinstance(answer, MemoryEstimate):
            return self._nonsense(kind, answer, "an estimate")
        if answer is not None and answer.shapes and not answer.shapes[0].ranks:
            return None
        return self._placeable(spec, answer)

    def _placeable(self, spec: EngineSpec, answer: MemoryEstimate | None) -> Demand | Refusal:
        """What was learned counts only where there could be room for it: one leak must not end all starts."""
        known = self._gpus.learned()
        asked = first = demand(spec, answer, known)
        for learned in ({key: int(peak / HEADROOM) for key, peak in known.items()}, {}):
            if isinstance(asked, Refusal) or asked.source != "learned":
                return asked
            if self._gpus.impossible(asked) is None:
                return asked
            asked = demand(spec, answer, learned)
        if isinstance(asked, Refusal) or isinstance(first, Refusal) or self._gpus.impossible(asked):
            return first
        note = f"an earlier run took {gib(first.needed)}, which can never be placed here and is not asked for"
        return replace(asked, notes=(*asked.notes, note))

    def lacking(self, asked: Demand) -> Refusal | None:
        """Why an engine that runs would have to wait, if it were restarted to ask for this."""
        return self._gpus.lacking(asked)

    async def unplaceable(self, spec: EngineSpec) -> tuple[Refusal, Demand] | None:
        """Why an engine that is not defined yet could never be placed here, and what it asks for.

        None where it could, or where something else is wrong with it: its preflight then says what.
        """
        kind = self._kinds.get(spec.kind)
        if kind is None or spec.gpus == 0 or not self._gpus.managed:
            return None
        try:
            request, facts = await self._ask(Engine("", spec), kind, None)
            asked = self._demand(spec, kind, request, facts)
        except Exception:
            # A kind may raise anything. The preflight meets it again, with an engine that shows it.
            log.debug("the size of %s is not known", spec.name, exc_info=True)
            return None
        if asked is None or isinstance(asked, Refusal):
            return None
        refusal = self._gpus.impossible(asked)
        return None if refusal is None else (refusal, asked)

    async def plan(self, engine: Engine) -> Planned | Refusal:
        """The plan and the port of an engine that was checked and given its GPUs."""
        kind = self._kinds[engine.spec.kind]
        return self._planned(kind, *await self._ask(engine, kind, known_port(engine), engine.reservation))

    async def loading(self, engine: Engine, model: str, name: str, edition: int) -> Loading | Refusal:
        """How an engine that runs takes in one more model under this name.

        Raises: whatever its kind does.
        """
        kind, plan = self._kinds.get(engine.spec.kind), engine.plan
        if kind is None or plan is None or not can_load(kind):
            return Refusal("it serves only what it was started with", "start another engine")
        asked = replace(engine, spec=replace(engine.spec, model=model))
        request, facts = await self._ask(asked, kind, engine.port, engine.reservation)
        return loading(kind, request, plan, facts, name=name, edition=edition)

    async def _ask(
        self,
        engine: Engine,
        kind: EngineKind[Any],
        port: int | None,
        reservation: Reservation | None = None,
    ) -> tuple[EngineRequest[Any], Facts]:
        spec = engine.spec
        request = request_of(
            spec,
            port,
            models=self._paths.models,
            state_dir=self._paths.engine_state / spec.name,
            reservation=reservation,
        )
        variables = {**self._inherited, **_own_variables(spec), **spec.env}
        facts = await self._facts.gather(kind.facts(request), variables)
        if further := further_facts(kind, request, facts):
            facts |= await self._facts.gather(further, variables)
        return request, facts

    def _planned(self, kind: EngineKind[Any], request: EngineRequest[Any], facts: Facts) -> Planned | Refusal:
        plan = kind.plan(request, facts)
        if isinstance(plan, Refusal):
            return plan
        if not isinstance(plan, LaunchPlan):
            return self._nonsense(kind, plan, "a plan")
        return plan, request.port

    def _nonsense(self, kind: EngineKind[Any], answer: object, wanted: str) -> Refusal:
        return self.broken_plugin(
            f"the kind {kind.name!r} answered with a {type(answer).__name__}, not {wanted}"
        )

    @staticmethod
    def broken_plugin(text: str) -> Refusal:
        """A kind that raised or answered nonsense."""
        return Refusal(text, "report it to the plugin's author; the daemon's own log has the traceback")

    def _account_trouble(self, spec: EngineSpec) -> Refusal | None:
        try:
            account(spec.user)
        except (LookupError, PermissionError) as error:
            return Refusal(str(error), f"correct engines.{spec.group or spec.name}.user")
        return None

    def _env_file_trouble(self, spec: EngineSpec) -> Refusal | None:
        if spec.env_file is None:
            return None
        try:
            envfile.read(spec.env_file)
        except (OSError, ValueError) as error:
            where = f"engines.{spec.group or spec.name}.env_file"
            return Refusal(envfile.words(spec.env_file, error), f"mend the file or {where}")
        return None

    def _socket_trouble(self, spec: EngineSpec) -> Refusal | None:
        longest = self._paths.engines / spec.name / "notify.sock"
        length = len(str(longest).encode())
        if length <= LONGEST_SOCKET_PATH:
            return None
        return Refusal(
            f"the path of its socket has {length} bytes, the kernel takes {LONGEST_SOCKET_PATH}: {longest}",
            "use a shorter SAGECTL_HOME or engine name",
        )

    def _choose_port(self, engine: Engine) -> int | Refusal | None:
        spec = engine.spec
        if spec.port is None and spec.default_port is None:
            return None
        wanted = known_port(engine)
        if wanted is not None and engine.process is not None and wanted == engine.port:
            return wanted  # held by the engine itself: a reload looks before it stops what runs
        if wanted is not None:
            why = ports.why_taken(spec.host, wanted)
            if why is None:
                return wanted
            if spec.port is not None:
                return Refusal(
                    why, f"stop whoever holds it, or choose another engines.{spec.group or spec.name}.port",
                    retryable=True,
                )  # fmt: skip
        assert spec.default_port is not None
        chosen = ports.first_free(spec.host, spec.default_port, self._taken(engine.id))
        if chosen is None:
            return Refusal(
                f"no port from {spec.default_port} on is free", "set a port for it", retryable=True
            )
        self._assign_port(engine.id, chosen)
        return chosen


async def inspect(preflight: Preflight, engine: Engine) -> Refusal | None:
    """Would this engine start? Used before a reload stops what runs."""
    answer = await preflight.check(engine)
    if isinstance(answer, Demand):
        lacking = preflight.lacking(answer)
        if lacking is not None or engine.reservation is None:
            return lacking
        answer = await preflight.plan(engine)
    return answer if isinstance(answer, Refusal) else None


def _own_variables(spec: EngineSpec) -> Mapping[str, str]:
    """HOME and the like of the user that the engine runs as: where its cache of the hub is."""
    user = account(spec.user)
    return {} if user is None else user.variables
