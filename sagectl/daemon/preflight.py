"""What is checked before an engine is launched: its account, files, limits and port, then its kind's plan."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

from sagectl.config import envfile
from sagectl.config.paths import Paths
from sagectl.core.engine import Engine, EngineSpec
from sagectl.daemon import grants
from sagectl.daemon.accounts import account
from sagectl.daemon.requests import known_port, request_of
from sagectl.plugin import EngineKind, LaunchPlan, Refusal
from sagectl.system import ports
from sagectl.system.facts import FactSource
from sagectl.system.powers import powers

LONGEST_SOCKET_PATH = 107
"""Bytes of a Unix socket's path, sun_path's 108 less the final zero."""


class Preflight:
    """Checks engines. Holds the ports it gave out until their engines hold them."""

    def __init__(
        self,
        paths: Paths,
        kinds: Mapping[str, EngineKind[Any]],
        inherited: Mapping[str, str],
        taken: Callable[[str], Container[int]],
        assign_port: Callable[[str, int | None], None],
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
        self._facts = FactSource()

    async def check(self, engine: Engine) -> tuple[LaunchPlan, int | None] | Refusal:
        """The plan and the port, or why there is none."""
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
        state_dir = self._paths.engine_state / spec.name
        request = request_of(spec, port, models=self._paths.models, state_dir=state_dir)
        facts = await self._facts.gather(kind.facts(request), {**self._inherited, **spec.env})
        plan = kind.plan(request, facts)
        if isinstance(plan, Refusal):
            return plan
        if not isinstance(plan, LaunchPlan):
            return self.broken_plugin(
                f"the kind {spec.kind!r} answered with a {type(plan).__name__}, not a plan"
            )
        return plan, port

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
    return answer if isinstance(answer, Refusal) else None
