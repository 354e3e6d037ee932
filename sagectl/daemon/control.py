"""What may be asked of a running daemon. The API translates HTTP into these calls, nothing more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sagectl.core.engine import Engine
from sagectl.core.reload import ReloadPlan
from sagectl.system.journal import Journal


class Control:
    """The operations on engines and on the daemon itself. All on the event loop's thread.

    Raises, where a reference is unknown: UnknownEngine. Every method checks before it changes.
    """

    journal: Journal

    def engines(self) -> Sequence[Engine]:
        """Every engine, sorted by name."""
        raise NotImplementedError

    def resolve(self, ref: str) -> Sequence[Engine]:
        """The engine with this id or name, or all replicas of this group."""
        raise NotImplementedError

    def by_port(self, port: int) -> Engine:
        """The engine that holds this port."""
        raise NotImplementedError

    def start(self, engine: Engine, *, again: bool = False) -> None:
        """Ask for it to be up, its dependencies first. Raises Conflict for a completed job."""
        raise NotImplementedError

    def stop(self, engine: Engine, *, drain: float | None = None) -> None:
        """Ask for it to be down."""
        raise NotImplementedError

    def restart(self, engine: Engine) -> None:
        """Stop and start again, keeping identity."""
        raise NotImplementedError

    def reset_failed(self, engine: Engine) -> None:
        """Forget failures and the start limit."""
        raise NotImplementedError

    def set_autostart(self, engine: Engine, enabled: bool) -> None:
        """`enable` and `disable`: a persistent override above the TOML. Raises Conflict for transients."""
        raise NotImplementedError

    async def define(self, body: Mapping[str, Any]) -> Engine:
        """Define a transient engine and start it. Raises InvalidConfig with every wrong field, Conflict."""
        raise NotImplementedError

    async def settled(self, engine_id: str, timeout: float | None) -> Engine:
        """Wait until the engine is as desired or cannot get there (or `timeout` seconds are over)."""
        raise NotImplementedError

    async def reload(self, *, dry_run: bool = False, restart: bool = True) -> ReloadPlan:
        """Read the configuration again and apply what changed. Raises InvalidConfig, changing nothing.

        Returns as soon as the plan is made and under way; `engines()` shows how it goes on.
        """
        raise NotImplementedError

    def forget(self, engine: Engine) -> None:
        """`engine prune`: drop a transient engine that is down. Raises Conflict."""
        raise NotImplementedError

    def explain(self, engine: Engine) -> dict[str, Any]:
        """Why it is as it is: INTERFACE's `explain` fields and `history`, its recent events."""
        raise NotImplementedError

    def definition(self, engine: Engine) -> dict[str, Any]:
        """The resolved definition, `{key: {"value": …, "origin": …}}`, secrets left out (`cat`)."""
        raise NotImplementedError

    def kinds(self) -> list[dict[str, Any]]:
        """Kinds with options and origin, and broken plugins with the reason."""
        raise NotImplementedError

    def status(self) -> dict[str, Any]:
        """The daemon itself: version, pid, uptime, configuration files, warnings, broken plugins."""
        raise NotImplementedError

    def log_path(self, engine: Engine) -> str:
        """The engine's current log file; older ones are `PATH.1`, `PATH.2`, …"""
        raise NotImplementedError

    async def progress(self, engine: Engine) -> dict[str, Any] | None:
        """A job's progress as the kind reads it, None where there is none."""
        raise NotImplementedError

    def shutdown(self) -> None:
        """Stop every engine, then the daemon. Returns at once; the daemon ends when all are down."""
        raise NotImplementedError
