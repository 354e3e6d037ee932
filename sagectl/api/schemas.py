"""JSON Schemas of what the API answers, for openapi.json. Tests hold every real answer against them."""

from __future__ import annotations

from typing import Any

from sagectl.core.engine import SUBSTATES, Desired, Priority, ServingPhase
from sagectl.plugin import Mode

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
TIME: Schema = {"type": "string", "format": "date-time"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
PORT: Schema = {"type": "integer", "minimum": 1, "maximum": 65535}
ANY_OBJECT: Schema = {"type": "object"}


def _or_null(schema: Schema, why: str = "") -> Schema:
    found: Schema = {"anyOf": [schema, {"type": "null"}]}
    return {**found, "description": why} if why else found


def _said(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _one_of(words: Any) -> Schema:
    return {"type": "string", "enum": [str(word) for word in words]}


def _object(properties: Schema, *, optional: tuple[str, ...] = (), closed: bool = True) -> Schema:
    required = [name for name in properties if name not in optional]
    schema: Schema = {"type": "object", "properties": properties, "required": required}
    return {**schema, "additionalProperties": False} if closed else schema


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_SUBSTATE_WORDS = sorted({sub.value.removesuffix("-failed") for subs in SUBSTATES.values() for sub in subs})

_ENGINE = _object(
    {
        "engine_id": TEXT,
        "name": TEXT,
        "engine_kind": TEXT,
        "model_id": _or_null(TEXT),
        "state": _one_of(state.value for state in SUBSTATES),
        "substate": _one_of(_SUBSTATE_WORDS),
        "reason": TEXT,
        "desired": _one_of(word.value for word in Desired),
        "pid": _or_null({"type": "integer", "minimum": 1}),
        "port": _or_null(PORT),
        "address": _or_null(TEXT, "host:port"),
        "gpu_ids": _or_null(_list(COUNT), "null: GPUs are not managed"),
        "memory_per_gpu_gb": _or_null(NUMBER, "reserved, GiB"),
        "measured_memory_gb": _or_null(NUMBER, "GiB"),
        "uptime_seconds": _or_null(NUMBER, "since the process started; null when there is none"),
        "restart_count": _said(COUNT, "automatic restarts"),
        "consecutive_failures": COUNT,
        "last_exit_code": _or_null({"type": "integer"}, "-n for signal n"),
        "healthy": _or_null(FLAG, "null: nothing to judge yet"),
        "probed": _or_null(FLAG, "false: it has no probe, so up means ready; null: not known before a start"),
        "progress": _or_null(_ref("Progress")),
        "priority": _one_of(word.value for word in Priority),
        "labels": {"type": "object", "additionalProperties": TEXT},
        "limits": _said(
            ANY_OBJECT, 'by name: a number, "unlimited", or [soft, hard]; others are the daemon\'s'
        ),
        "nice": _or_null({"type": "integer", "minimum": -20, "maximum": 19}, "null: the daemon's"),
        "oom_score_adjust": _or_null(
            {"type": "integer", "minimum": -1000, "maximum": 1000}, "null: the daemon's"
        ),
        "cpu_affinity": _or_null(_list(COUNT), "null: any CPU"),
        "memory_max": _or_null({"type": "integer", "minimum": 1}, "bytes of its whole tree; null: no limit"),
        "cpu_weight": _or_null({"type": "integer", "minimum": 1, "maximum": 10000}, "null: 100, as others"),
        "mode": _one_of(mode.value for mode in Mode),
        "group": _said(TEXT, "the name that addresses all replicas; empty for an engine without replicas"),
        "transient": _said(FLAG, "defined through this API, not by the configuration"),
        "autostart": FLAG,
        "needs_restart": _said(FLAG, "its declaration changed since it was launched"),
        "since": _or_null(TIME, "when it entered this state"),
        "started_at": _or_null(TIME, "when its process started"),
        "last_exit": _or_null(_ref("Exit")),
        "diagnosis": _or_null(_ref("Diagnosis")),
        "waiting_for": _said(_list(TEXT), "engines that must be up first"),
        "blocked": _said(FLAG, "one of those failed: it waits for somebody to mend that"),
        "serves": _said(_list(TEXT), "model names under which clients ask for it"),
        "serving": _or_null(_ref("Serving"), "of a completed job: what becomes of its result"),
        "log_path": TEXT,
    }
)

_EVENT = _object(
    {
        "id": _or_null({"type": "integer", "minimum": 1}, "null for `lost`"),
        "at": TIME,
        "engine": _or_null(TEXT, "null: about the daemon itself"),
        "engine_id": _or_null(TEXT),
        "kind": _said(TEXT, "a word; `lost`: events before this one are no longer kept"),
        "level": _one_of(["debug", "info", "warning", "error"]),
        "text": TEXT,
        "state": _or_null(TEXT),
        "substate": _or_null(TEXT),
    }
)

_PROBLEM = _object(
    {
        "type": {"type": "string", "format": "uri"},
        "title": TEXT,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": TEXT,
        "code": _said(TEXT, "a stable word for scripts"),
        "remedy": TEXT,
        "errors": _list(_ref("FieldError")),
    },
    optional=("remedy", "errors"),
    closed=False,
)

_GIB = {"type": "number", "description": "GiB"}
_DEVICE = _object(
    {
        "gpu_id": COUNT,
        "uuid": TEXT,
        "name": TEXT,
        "memory_total_gb": _GIB,
        "memory_used_gb": _GIB,
        "memory_free_gb": _said(NUMBER, "GiB that may be given away; negative where too much is held"),
        "memory_reserved_gb": _GIB,
        "memory_measured_gb": _GIB,
        "memory_foreign_gb": _said(NUMBER, "GiB that processes hold which are no engine's"),
        "memory_kept_free_gb": _GIB,
        "utilization": _or_null(NUMBER, "share of time in which it was busy, 0 to 1"),
        "temperature_celsius": _or_null(NUMBER),
        "power_watts": _or_null(NUMBER),
        "power_limit_watts": _or_null(NUMBER),
        "numa_node": _or_null(COUNT),
        "cpus": _list(COUNT),
        "nvlink": _said(_list(COUNT), "GPUs that NVLink connects it with"),
        "mig_parent": _or_null(TEXT),
        "lost": _or_null(TEXT, "why it cannot be used any more"),
        "is_mock": FLAG,
        "attribution": _one_of(["process", "difference"]),
        "engines": _list(ANY_OBJECT),
        "foreign_processes": _or_null(_list(ANY_OBJECT), "null: the driver shows no processes"),
        "budgets": ANY_OBJECT,
    }
)
_GPU = _object(
    {
        "backend": _one_of(["nvml", "simulated", "none"]),
        "managed": _said(FLAG, "false: sagectl leaves GPUs to the engines here"),
        "is_mock": FLAG,
        "driver": TEXT,
        "trouble": _or_null(TEXT, "why nothing can be measured now"),
        "devices": _list(_DEVICE),
        "queue": _said(_list(ANY_OBJECT), "engines that wait for memory, the next one first"),
    }
)

_ROOM = _said(
    _object(
        {
            "gpu_id": COUNT,
            "total_gb": _GIB,
            "foreign_gb": _said(NUMBER, "GiB that processes hold which are no engine's"),
            "reserved_gb": _said(NUMBER, "GiB that other engines hold"),
            "kept_free_gb": _GIB,
            "budget_left_gb": _or_null(NUMBER, "GiB that its kind may still take; null: no budget"),
            "free_gb": _said(NUMBER, "GiB; what the engine itself holds counts as free"),
            "needed_gb": _or_null(NUMBER, "GiB that it needs there"),
            "fits": _or_null(FLAG, "and it may be placed there; null: what it needs is not known"),
        }
    ),
    "a GPU as it is for one engine",
)

_CHANGES = _list(_object({"name": TEXT, "keys": _list(TEXT)}))

SCHEMAS: dict[str, Schema] = {
    "Engine": _ENGINE,
    "Engines": _object({"engines": _list(_ref("Engine"))}),
    "EngineOrGroup": {"oneOf": [_ref("Engine"), _ref("Group")]},
    "Group": _object({"group": TEXT, "engines": _list(_ref("Engine"))}),
    "Exit": _object({"code": _or_null({"type": "integer"}), "signal": _or_null(COUNT), "oom_kill": FLAG}),
    "Serving": _object(
        {
            "name": _said(TEXT, "under which clients ask for it"),
            "model": _said(TEXT, "the directory of the result"),
            "phase": _one_of(phase.value for phase in ServingPhase),
            "engine": _or_null(TEXT, "by whose name it is, or is to be, served"),
            "text": _said(TEXT, "the same in words, or why it is not served"),
        }
    ),
    "Diagnosis": _object(
        {"summary": TEXT, "remedy": TEXT, "arithmetic": _said(_list(TEXT), "the figures behind it")}
    ),
    "Progress": _object(
        {
            "done": _or_null(NUMBER),
            "total": _or_null(NUMBER),
            "unit": TEXT,
            "eta_seconds": _or_null(NUMBER),
            "details": ANY_OBJECT,
        }
    ),
    "EngineProgress": _object(
        {
            "engine_id": TEXT,
            "name": TEXT,
            "state": _one_of(state.value for state in SUBSTATES),
            "substate": _one_of(_SUBSTATE_WORDS),
            "progress": _or_null(_ref("Progress")),
        }
    ),
    "EngineHistory": _object({"engine_id": TEXT, "name": TEXT, "history": _list(_ref("Step"))}),
    "Step": _said(
        _object({"step": NUMBER, "at": _or_null(TIME)}, closed=False),
        "a step of a job, with the figures that its kind knows: loss, eval_loss, learning_rate and the like",
    ),
    "Definition": _said(
        {
            "type": "object",
            "additionalProperties": _object({"value": {}, "origin": {}}, closed=False),
        },
        "each key with its value and where that comes from",
    ),
    "NewDefinition": _said(
        {
            "type": "object",
            "properties": {
                "name": _or_null(TEXT),
                "kind": TEXT,
                "engine_kind": TEXT,
                "model": _or_null({**TEXT, "minLength": 1}),
            },
            "anyOf": [{"required": ["kind"]}, {"required": ["engine_kind"]}],
            "additionalProperties": True,
        },
        "the keys of an [engines.NAME] table, and SAGE's names for them; null leaves one out, `name` may be",
    ),
    "Explanation": _object(
        {
            "decision": TEXT,
            "reason": TEXT,
            "waiting_for": _list(TEXT),
            "arithmetic": _said(_list(TEXT), "the figures behind a refusal or a wait, a line each"),
            "needed_gb": _or_null(NUMBER, "GiB on the GPU that gives most; null: it needs none"),
            "devices": _list(_ref("Room")),
        },
        closed=False,
    ),
    "Room": _ROOM,
    "Event": _EVENT,
    "Events": _object({"events": _list(_ref("Event"))}),
    "Kinds": _object({"kinds": _list(ANY_OBJECT)}),
    "ReloadPlan": _object(
        {
            "added": _list(TEXT),
            "removed": _list(TEXT),
            "in_place": _CHANGES,
            "restarts": _CHANGES,
            "needs_restart": _CHANGES,
            "unchanged": COUNT,
            "warnings": _list(TEXT),
        }
    ),
    "Status": _object(
        {
            "control_plane": ANY_OBJECT,
            "gpu": _ref("Gpu"),
            "engines": _list(_ref("Engine")),
            "reservations": _list(ANY_OBJECT),
        }
    ),
    "Gpu": _GPU,
    "Stopping": _object({"stopping": FLAG}),
    "Reexecuting": _object({"reexecuting": FLAG}),
    "Health": _object({"status": TEXT}),
    "OpenApi": ANY_OBJECT,
    "Problem": _PROBLEM,
    "FieldError": _object(
        {
            "key": _said(TEXT, "dotted; empty where the whole is meant"),
            "message": TEXT,
            "remedy": TEXT,
            "file": _or_null(TEXT, "null for a request's body"),
            "line": _said(COUNT, "from 1; 0 where there is none"),
        }
    ),
}
