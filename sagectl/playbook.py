"""Tests of the reducer as dialogues: `Playbook`, and the clock they run on. Part of `sagectl.testing`."""

from __future__ import annotations

import difflib
import warnings
from dataclasses import fields, is_dataclass
from typing import Any

from sagectl.core import actions as act
from sagectl.core.engine import Engine, Moment
from sagectl.core.events import Event
from sagectl.core.lifecycle import step
from sagectl.plugin import LaunchPlan


class FakeClock:
    """A clock that moves only when told. `chance` 0.5 means: no jitter."""

    def __init__(self, monotonic: float = 1000.0, wall: float = 1.75e9, chance: float = 0.5) -> None:
        self.monotonic = monotonic
        self.wall = wall
        self.chance = chance

    def now(self) -> Moment:
        """The present moment, as `lifecycle.step` wants it."""
        return Moment(self.monotonic, self.wall, self.chance)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds >= 0, "time does not go back"
        self.monotonic += seconds
        self.wall += seconds


def phase(engine: Engine) -> str:
    """State and substate as users read them: `active (ready)`."""
    return f"{engine.state} ({engine.substate})"


# --- Dialogues ---------------------------------------------------------------------------------


class Playbook:
    """A test as a dialogue with the reducer: `>>` what happens, `<<` what it must answer.

        play = Playbook(Engine("e1", spec))
        assert play >> StartRequested() << Preflight(1) << "activating (preflight)"

    Right of `>>`: an event, or a number of seconds that pass. Right of `<<`: an action, or a state as
    `phase` spells it. The actions of an event must be these and no others, in this order; kinds of
    action in `hide` are left out. Nothing happens before the `assert`, which may come several times:
    the dialogue goes on where it ended. A wrong answer raises AssertionError with a diff.
    """

    hidden: tuple[type, ...] = (act.Record, act.CancelTimer)

    def __init__(
        self, engine: Engine, clock: FakeClock | None = None, *, hide: tuple[type, ...] | None = None
    ) -> None:
        self.engine = engine
        self.clock = clock or FakeClock()
        self._hide = self.hidden if hide is None else hide
        self._script: list[tuple[str, Any]] = []

    def __rshift__(self, event: Event | float) -> Playbook:
        self._script.append((">>", event))
        return self

    def __lshift__(self, answer: act.Action | str) -> Playbook:
        self._script.append(("<<", answer))
        return self

    def __bool__(self) -> bool:
        script, self._script = self._script, []
        wanted = [f"{arrow} {show(value)}" for arrow, value in script]
        heard = self._play(script)
        if wanted != heard:
            diff = "\n".join(line.rstrip() for line in difflib.ndiff(wanted, heard) if line[0] != "?")
            raise AssertionError(f"the dialogue went another way (- expected, + happened):\n{diff}")
        return True

    def __del__(self) -> None:
        if self._script:
            warnings.warn("a Playbook was written and never asserted", stacklevel=2)

    def _play(self, script: list[tuple[str, Any]]) -> list[str]:
        heard: list[str] = []
        waiting: list[str] = []
        for arrow, value in script:
            if arrow == ">>":
                heard += [*waiting, f">> {show(value)}"]
                waiting = self._hear(value)
            elif isinstance(value, str):
                heard.append(f"<< {phase(self.engine)}")
            elif waiting:
                heard.append(waiting.pop(0))
        return heard + waiting

    def _hear(self, event: Any) -> list[str]:
        if isinstance(event, int | float):
            self.clock.advance(event)
            return []
        self.engine, actions = step(self.engine, event, self.clock.now())
        return [f"<< {show(a)}" for a in actions if not isinstance(a, self._hide)]


def show(value: Any) -> str:
    """A value on one short line: defaults left out, a plan by its arguments alone."""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return f"{value:g} s"
    if isinstance(value, LaunchPlan):
        return f"plan of {' '.join(value.argv)}"
    if not is_dataclass(value):
        return repr(value)
    told = {f.name: getattr(value, f.name) for f in fields(value) if getattr(value, f.name) != f.default}
    shown = (f"{name}={show(v) if is_dataclass(v) else str(v)}" for name, v in told.items())
    return f"{type(value).__name__}({', '.join(shown)})"
