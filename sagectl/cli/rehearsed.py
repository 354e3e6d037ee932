"""What a trainer says of a job before it runs, as lines for people. Keys that mean nothing here come last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sagectl.cli import render

SHOWN = 10
"""Entries of a list that are shown."""
_UNSHOWN = ("sha256",)
_LABELS = {"bad_rows": "Bad rows", "longest": "Longest"}
_SERVED = {"adapter": "as an adapter", "model": "as a whole model", "merged": "only merged"}
_TEMPLATES = {
    "model": "the model's own",
    "sagectl": "sagectl's, as the model has none",
    "none": "none: the texts are taken as they are",
}
Pairs = Iterator[tuple[str, str]]


def properties(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The report's keys as names and values, the data first."""
    left = {key: value for key, value in report.items() if key not in _UNSHOWN}
    told: list[tuple[str, str]] = []
    for part in (_data, _tokens, _cut, _template, _steps, _sizes, _served, _time):
        told += part(left)
    return [*told, *_rest(left)]


def _data(left: dict[str, Any]) -> Pairs:
    if _has(left, "rows"):
        files, bad, form = left.pop("files", None), left.pop("bad", 0), left.pop("format", None)
        words = [_many(left.pop("rows"), "row")]
        words += [f"of {_many(files, 'file')}"] if files else []
        words += [f"as {form}"] if form else []
        yield "Data", " ".join(words) + (f"; {bad:,} bad, left out" if bad else "")
    yield from _listed(left, "bad_rows", _place)


def _tokens(left: dict[str, Any]) -> Pairs:
    if _has(left, "tokens", "tokens_trained"):
        tokens, trained = left.pop("tokens"), left.pop("tokens_trained")
        left.pop("share_trained", None)
        share = f", {100 * trained / tokens:.1f}% of them" if tokens else ""
        yield "Tokens", f"{tokens:,}, loss on {trained:,}{share}"
    if _has(left, "sequences"):
        mean = left.pop("average_tokens", None)
        of = f" of {mean:,.0f} tokens on average" if mean is not None else ""
        yield "Sequences", f"{left.pop('sequences'):,}{of}"
    yield from _listed(left, "longest", lambda row: f"{_place(row)}: {row['tokens']:,} tokens")
    packed = left.pop("packed", None)
    if packed:
        yield "Packed", f"into {_many(packed['rows'], 'row')}, {100 * packed['fill']:.0f}% full"


def _cut(left: dict[str, Any]) -> Pairs:
    length, cut = left.pop("max_length", None), left.pop("truncated", None)
    if cut is None or length is None:
        return
    told = []
    if cut["rows"]:
        told.append(
            f"{_many(cut['rows'], 'sequence')} of more than {length:,} tokens: "
            f"{cut['tokens']:,} tokens gone, {cut['trained']:,} of them to be trained on"
        )
    if cut["lost"]:
        told.append(f"{_many(cut['lost'], 'sequence')} left out, as nothing to train on was left")
    if cut["split"]:
        told.append(f"{_many(cut['split'], 'text')} divided")
    yield "Cut", "; ".join(told) or f"nothing, at {length:,} tokens"


def _template(left: dict[str, Any]) -> Pairs:
    found = left.pop("template", None)
    if not isinstance(found, dict):
        return
    words = [_TEMPLATES.get(found["name"], render.clean(found["name"]))]
    if found.get("unrolled"):
        words.append(f"{_many(found['unrolled'], 'conversation')} became several texts")
    if found.get("reasoning_left_out"):
        words.append(f"it leaves out the reasoning of {_many(found['reasoning_left_out'], 'conversation')}")
    yield "Template", "; ".join(words)


def _steps(left: dict[str, Any]) -> Pairs:
    if not _has(left, "steps"):
        return
    each, held, rows = (left.pop(key, None) for key in ("rows_per_step", "eval_rows", "train_rows"))
    words = [f"{left.pop('steps'):,}"]
    words += [f"of {_many(each, 'row')}"] if each else []
    words += [f"from {rows:,}"] if rows else []
    computed = left.pop("tokens_computed", None)
    more = [f"{computed:,} tokens in all"] if computed else []
    more += [f"{_many(held, 'row')} kept back to evaluate"] if held else []
    yield "Steps", "; ".join([" ".join(words), *more])


def _sizes(left: dict[str, Any]) -> Pairs:
    if _has(left, "parameters", "parameters_trained"):
        whole, trained = left.pop("parameters"), left.pop("parameters_trained")
        yield "Parameters", f"{trained:,} trained, the model has {whole:,}"
    if _has(left, "checkpoint_bytes", "checkpoints", "result_bytes"):
        each, kept, final = (left.pop(key) for key in ("checkpoint_bytes", "checkpoints", "result_bytes"))
        disk, free = left.pop("disk_bytes", None), left.pop("disk_free_bytes", None)
        words = f"{_many(kept, 'checkpoint')} of {_size(each)}, the result {_size(final)}"
        if disk is not None and free is not None:
            words += f"; {_size(free)} free"
            words += ", which is too little: " + f"{_size(disk)} are needed" if disk > free else ""
        yield "Disk", words


def _served(left: dict[str, Any]) -> Pairs:
    served, why = left.pop("served_as", None), left.pop("served_why", "")
    if served:
        told = _SERVED.get(served, render.clean(served))
        yield "vLLM serves", told + (f": {render.clean(why)}" if why else "")


def _time(left: dict[str, Any]) -> Pairs:
    found = left.pop("time", None)
    if not isinstance(found, dict):
        return
    about = f"about {render.duration(max(1, round(found['seconds'])))} of training"
    device = "CPU" if found["device"] == "cpu" else render.clean(found["device"])
    speed = f"{found['tokens_per_second']:,.0f} tokens/s"
    how = f"{render.clean(found['job'])} did {speed} on this machine's {device}"
    others = ", ".join(_detail(key, value) for key, value in found["differs"].items())
    yield "Time", f"{about}, as {how}" + (f", with {others}" if others else "")


def _rest(left: Mapping[str, Any]) -> Pairs:
    for key, value in left.items():
        name = _LABELS.get(key) or render.clean(key.replace("_", " ")).capitalize()
        lines = _entries(value) if isinstance(value, list) else [_value(value)]
        yield from (("" if place else name, line) for place, line in enumerate(lines) if line)


# --- words -----------------------------------------------------------------------------------------


def _has(left: Mapping[str, Any], *keys: str) -> bool:
    return all(isinstance(left.get(key), int) for key in keys)


def _listed(left: dict[str, Any], key: str, told: Any) -> Pairs:
    values = left.get(key)
    if not isinstance(values, list) or not all(isinstance(one, dict) and "file" in one for one in values):
        return
    del left[key]
    lines = [told(one) for one in values[:SHOWN]]
    lines += [f"and {len(values) - SHOWN:,} more"] if len(values) > SHOWN else []
    yield from (("" if place else _LABELS[key], line) for place, line in enumerate(lines))


def _place(row: Mapping[str, Any]) -> str:
    where = f"{row['file']}:{row['row']}" if row.get("row") else str(row["file"])
    return render.clean(f"{where}: {row['reason']}" if "reason" in row else where)


def _many(count: int, one: str) -> str:
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{-(-count // 1024):,} KiB"


def _detail(key: str, value: Any) -> str:
    return f"{render.clean(key).replace('_', ' ')} {_value(value) or 'not set'}"


def _entries(values: Sequence[Any]) -> Iterable[str]:
    lines = [_value(value) for value in values[:SHOWN]]
    return [*lines, f"and {len(values) - SHOWN:,} more"] if len(values) > SHOWN else lines or ["none"]


def _value(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:,.4g}"
        case dict():
            return ", ".join(_detail(str(key), one) for key, one in value.items())
        case list():
            return ", ".join(_entries(value))
    return render.clean(str(value))
