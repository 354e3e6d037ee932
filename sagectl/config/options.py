"""A kind's own options: a dataclass of the plugin's, read, written and described through pydantic."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import date, time
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from sagectl.config.positions import Path
from sagectl.config.units import describe, encodable
from sagectl.config.wording import Fault, faults
from sagectl.plugin import EngineKind

MAX_DEPTH = 32
"""How deep arrays and tables may be nested in an option."""
LARGEST = 10**30
"""TOML knows hexadecimal numbers of more digits than Python turns into decimal ones."""


class KindOptions:
    """The options of one kind: its keys, their other names, and their validation.

    Raises TypeError where the kind's `options` is no frozen dataclass that pydantic understands.
    """

    def __init__(self, options: type) -> None:
        if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
            raise TypeError("`options` is not a dataclass")
        if not options.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise TypeError(f"`options` ({options.__name__}) is not frozen: write @dataclass(frozen=True)")
        self.fields = {f.name: f for f in dataclasses.fields(options) if f.init}
        self.aliases = {
            alias: name for name, field in self.fields.items() for alias in field.metadata.get("aliases", ())
        }
        if twice := self.aliases.keys() & self.fields.keys():
            raise TypeError(f"an option and another's alias are both called {', '.join(sorted(twice))}")
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(options)
            if not self._adapter.pydantic_complete:
                self._adapter.rebuild()  # raises what is missing, rather than at the first use
        # PydanticUserError and whatever the annotations raise when they are evaluated.
        except Exception as error:
            raise TypeError(f"the annotations of `options` are not usable: {error}") from error

    def validate(self, values: Mapping[str, Any]) -> tuple[Any, list[Fault]]:
        """The options as the plugin's dataclass, or None and every fault.

        Args:
            values: by the options' own names, as TOML or JSON gives them: no dates, no nan.
        """
        odd = _odd_values(values)
        values = {key: value for key, value in values.items() if key not in {fault.path[0] for fault in odd}}
        try:
            # JSON's strict mode is just what TOML needs: arrays become tuples, "1" no number.
            return self._adapter.validate_json(json.dumps(values), strict=True), odd
        except ValidationError as error:
            found = faults(error.errors(include_url=False), values)
            named = {fault.path[:1] for fault in odd}  # these seem to be missing now
            return None, odd + [self._placed(fault) for fault in found if fault.path[:1] not in named]

    def _placed(self, fault: Fault) -> Fault:
        """`__post_init__` names no field to pydantic; by convention its text does: `KEY: what; remedy`."""
        key, colon, text = fault.message.partition(": ")
        if fault.path or not colon or key not in self.fields:
            return fault
        message, _, remedy = text.partition("; ")
        return Fault((key,), message, remedy)

    def dump(self, options: Any) -> dict[str, Any]:
        """The options as JSON values."""
        dumped = self._adapter.dump_python(options, mode="json", warnings=False)
        return {name: dumped[name] for name in self.fields}

    def help(self, name: str) -> str:
        """What an option is for, in a line; "" where the plugin does not say."""
        return str(self.fields[name].metadata.get("help", ""))

    def describe(self) -> list[dict[str, Any]]:
        """Name, type, default, help and aliases of each option, as JSON values."""
        described = []
        for name, field in self.fields.items():
            required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            default = field.default
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            described.append(
                {
                    "name": name,
                    "type": field.type if isinstance(field.type, str) else _type_name(field.type),
                    "required": required,
                    "default": None if required else json.loads(json.dumps(default, default=str)),
                    "help": self.help(name),
                    "aliases": list(field.metadata.get("aliases", ())),
                }
            )
        return described


def _odd_values(values: Mapping[str, Any]) -> list[Fault]:
    """What JSON has no notation for, and TOML or Python's JSON reader can give."""
    found: list[Fault] = []
    stack: list[tuple[Path, Any]] = [((key,), value) for key, value in values.items()]
    while stack:
        path, value = stack.pop()
        if len(path) > MAX_DEPTH:
            found.append(Fault(path[:1], "is nested too deeply", "flatten it"))
        elif isinstance(value, Mapping):
            stack.extend(((*path, key), inner) for key, inner in value.items())
        elif isinstance(value, list | tuple):
            stack.extend(((*path, index), inner) for index, inner in enumerate(value))
        elif isinstance(value, date | time):
            found.append(Fault(path, "is a date or time, which no key takes", "put it in quotes"))
        elif isinstance(value, int) and abs(value) >= LARGEST:
            found.append(Fault(path, f"{describe(value)} is more than any key takes", "write a smaller one"))
        elif isinstance(value, float) and not math.isfinite(value):
            found.append(Fault(path, f"{value} is not a finite number", "write one"))
        elif isinstance(value, str) and not encodable(value):
            found.append(Fault(path, "holds half of a character", "write it as one"))
    return found


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


@lru_cache(maxsize=256)
def options_for(options: type) -> KindOptions:
    """The description of an options dataclass; making it takes a millisecond, and happens once."""
    return KindOptions(options)


def options_of(kind: EngineKind[Any]) -> KindOptions:
    """The options of a kind."""
    return options_for(kind.options)
