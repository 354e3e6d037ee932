"""The GPUs in words, bars and tables. Pure: from the API's own object to lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from sagectl.cli import render
from sagectl.cli.render import Cell, Column, Style, gib, wrapped

Figures = Mapping[str, Any]

BAR = 72
"""Columns of a card's bar, at most."""
LEAST = 0.0005
"""GiB below which a size is nothing: half of the MiB to which sizes are told."""
PROCESSES = 12
"""Foreign processes shown of a GPU."""
INDENT = "  "


def lines(gpus: Figures, style: Style) -> Iterator[str]:
    """All of it: GPU by GPU, then the queue."""
    if gpus["trouble"]:
        yield from wrapped(f"Trouble: {render.clean(gpus['trouble'])}", style, look="red")
        if gpus["devices"]:
            yield from wrapped("The figures below are the last ones known.", style)
        yield ""
    if not gpus["devices"]:
        yield from none_managed(gpus, style)
    for place, device in enumerate(gpus["devices"]):
        if place:
            yield ""
        yield from device_lines(device, style)
    if gpus["queue"]:
        yield ""
        yield from queue_lines(gpus["queue"], style)


def none_managed(gpus: Figures, style: Style) -> Iterator[str]:
    """Why there is nothing to show, and what to do."""
    if gpus["managed"]:
        back_end = f"the back end {gpus['backend']}"
        yield from wrapped(f"{back_end[:1].upper()}{back_end[1:]} shows no GPU.", style)
        return
    text = (
        "No GPUs are managed here: [gpu] backend is `none`, or it is `auto` and NVIDIA's driver shows none. "
        "Engines start without a reservation, and see the GPUs that there are."
    )
    yield from wrapped(text, style)
    yield ""
    yield from wrapped("Where there should be one:", style)
    for what in (
        "see whether `nvidia-smi` lists it; in a container, whether the driver is passed into it;",
        'set [gpu] backend = "nvml" and `sagectl reload`: then this page says what is wrong;',
        'or backend = "simulated", to try things out without one.',
    ):
        yield from wrapped(what, style, "  - ", "    ")


# --- A device ----------------------------------------------------------------------------------


def device_lines(device: Figures, style: Style) -> Iterator[str]:
    """One GPU."""
    yield from _header(device, style)
    if device["lost"]:
        yield from wrapped(f"Lost: {render.clean(device['lost'])}", style, INDENT, look="red")
    yield INDENT + bar(device, style, _bar_width(style))
    yield from _legend(device, style)
    yield from _engines(device, style)
    yield from _foreign(device, style)
    yield from _budgets(device, style)


def title(device: Figures) -> str:
    """`GPU 0`."""
    return f"GPU {device['gpu_id']}"


def _header(device: Figures, style: Style) -> Iterator[str]:
    facts = [
        render.clean(device["name"]),
        gib(device["memory_total_gb"]),
        "" if device["utilization"] is None else f"{device['utilization']:.0%} busy",
        _temperature(device, style),
        _power(device),
        _links(device["nvlink"]),
        f"MIG instance of {device['mig_parent']}" if device["mig_parent"] else "",
        "" if device["numa_node"] is None else f"NUMA node {device['numa_node']}",
    ]
    parts = [fact for fact in facts if fact]
    for place, line in enumerate(_packed(parts, style, len(title(device)) + 2)):
        head = style.paint(title(device), "bold") if place == 0 else " " * len(title(device))
        yield f"{head}  {line}"


def _temperature(device: Figures, style: Style) -> str:
    if device["temperature_celsius"] is None:
        return ""
    return f"{device['temperature_celsius']:g}{' °C' if style.unicode else ' C'}"


def _power(device: Figures) -> str:
    if device["power_watts"] is None:
        return ""
    limit = device["power_limit_watts"]
    return f"{device['power_watts']:.0f}{'' if limit is None else f' of {limit:.0f}'} W"


def _links(peers: Sequence[int]) -> str:
    if not peers:
        return ""
    return f"NVLink to GPU{'s' if len(peers) > 1 else ''} {', '.join(map(str, peers))}"


def _bar_width(style: Style) -> int:
    return BAR if style.width is None else max(8, min(BAR, style.width - 2 * len(INDENT)))


def _shares(device: Figures) -> list[tuple[str, float, str, str]]:
    """What the card's memory is: (word, GiB, sign, look); together the total, or more where overdrawn."""
    measured = device["memory_measured_gb"]
    held = sum(_held(entry) for entry in device["engines"])
    return [
        ("measured", measured, "█#", "green"),
        ("reserved besides", max(0.0, held - measured), "▒+", "green"),
        ("foreign", device["memory_foreign_gb"], "▓x", "yellow"),
        ("kept free", device["memory_kept_free_gb"], "╌-", "dim"),
        ("free", max(0.0, device["memory_free_gb"]), "·.", "dim"),
    ]


def _held(entry: Figures) -> float:
    """What nobody else may have of an engine's part; of a paused one's that is only what it measures."""
    if entry["phase"] == "paused":
        return float(entry["measured_gb"])
    return float(max(entry["reserved_gb"], entry["measured_gb"]))


def bar(device: Figures, style: Style, width: int) -> str:
    """The card's memory, `width` columns wide; whatever is there at all has a column."""
    shares = _shares(device)
    columns = apportion([size for _, size, _, _ in shares], width)
    pieces = []
    for (_, _, signs, look), count in zip(shares, columns, strict=True):
        pieces.append(style.paint(signs[0 if style.unicode else 1] * count, look))
    return "".join(pieces)


def apportion(sizes: Sequence[float], width: int) -> list[int]:
    """Columns for sizes, `width` in all: in proportion, rounded, at least one for each that is something."""
    total = sum(sizes)
    if total < LEAST:
        return [0] * (len(sizes) - 1) + [width]
    exact = [size / total * width for size in sizes]
    counts = [max(int(share), 1 if size >= LEAST else 0) for share, size in zip(exact, sizes, strict=True)]
    while sum(counts) != width:
        step = 1 if sum(counts) < width else -1
        # Who is furthest from his due gives or takes; nobody that is something loses his last column.
        able = [i for i, count in enumerate(counts) if sizes[i] >= LEAST and (step > 0 or count > 1)]
        if not able:
            break
        counts[max(able, key=lambda i: (exact[i] - counts[i]) * step)] += step
    return counts


def _legend(device: Figures, style: Style) -> Iterator[str]:
    signs = {word: (signs[0 if style.unicode else 1], look) for word, _, signs, look in _shares(device)}
    sizes = [
        ("measured", "measured", device["memory_measured_gb"]),
        ("reserved besides", "reserved", device["memory_reserved_gb"]),
        ("foreign", "foreign", device["memory_foreign_gb"]),
        ("kept free", "kept free", device["memory_kept_free_gb"]),
        ("free", "free", device["memory_free_gb"]),
    ]
    parts = [f"used {gib(device['memory_used_gb'])}"]
    looks = {}
    for key, word, size in sizes:
        sign, look = signs[key]
        text = f"{sign} {word} {gib(size)}"
        if key == "free" and size < 0:
            text, look = f"overdrawn by {gib(-size)}", "red"
        looks[text] = sign, look
        parts.append(text)
    for line in _packed(parts, style, len(INDENT), "  "):
        for text, (sign, look) in looks.items():
            painted = style.paint(text, look) if look == "red" else style.paint(sign, look) + text[1:]
            line = line.replace(text, painted)
        yield INDENT + line


# --- Tables ------------------------------------------------------------------------------------

_ENGINES = (
    Column("ENGINE", shrink=12),
    Column("KIND", drop=2),
    Column("PHASE", drop=1),
    Column("RESERVED", right=True),
    Column("MEASURED", right=True),
    Column("", shrink=8),
)
_FOREIGN = (Column("PID", right=True), Column("FOREIGN PROCESS", shrink=12), Column("USED", right=True))
_BUDGETS = (
    Column("BUDGET OF", shrink=8),
    Column("SIZE", right=True),
    Column("HELD", right=True),
    Column("LEFT", right=True),
    Column("", shrink=8),
)


def _engine_rows(device: Figures, style: Style) -> Iterator[render.Row]:
    for entry in device["engines"]:
        remark = _remark(entry)
        measured = Cell(gib(entry["measured_gb"]), "yellow" if remark else "")
        row = (entry["name"], entry["engine_kind"], entry["phase"], gib(entry["reserved_gb"]), measured)
        yield (*row, Cell(f"{_mark(style)} {remark}" if remark else "", "yellow"))


def _engines(device: Figures, style: Style) -> Iterator[str]:
    rows = list(_engine_rows(device, style))
    if not rows:
        yield from wrapped("No engine holds memory of it.", style, INDENT, look="dim")
    yield from _indented(_ENGINES, rows, style)
    if device["attribution"] == "difference":
        text = "By difference: the driver shows no processes here, as in a container."
        yield from wrapped(text, style, INDENT, look="dim")


def _mark(style: Style) -> str:
    return "▲" if style.unicode else "!"


def _remark(entry: Figures) -> str:
    """What is odd about an engine's figures; "" for nothing."""
    over = entry["measured_gb"] - entry["reserved_gb"]
    if over < LEAST:
        return ""
    return f"{gib(over)} over" if entry["reserved_gb"] else "nothing reserved"


def _foreign(device: Figures, style: Style) -> Iterator[str]:
    processes = device["foreign_processes"]
    whole = device["memory_foreign_gb"]
    if processes is None:
        return
    shown = sorted(processes, key=lambda one: -(one["used_gb"] or 0.0))
    rows: list[tuple[str, str, str]] = [
        (str(one["pid"]), render.clean(one["command"] or "?"), _used(one["used_gb"]))
        for one in shown[:PROCESSES]
    ]
    if len(shown) > PROCESSES:
        rest = sum(one["used_gb"] or 0.0 for one in shown[PROCESSES:])
        rows.append(("", f"and {len(shown) - PROCESSES} more", gib(rest)))
    left = whole - sum(one["used_gb"] or 0.0 for one in shown)
    if left >= 2 * LEAST and all(one["used_gb"] is not None for one in shown):
        rows.append(("", "the driver itself", gib(left)))
    yield from _indented(_FOREIGN, rows, style)


def _used(size: float | None) -> str:
    return "not told" if size is None else gib(size)


def _budgets(device: Figures, style: Style) -> Iterator[str]:
    rows = []
    for kind, budget in device["budgets"].items():
        over = max(0.0, -budget["left_gb"])
        remark = Cell(f"{_mark(style)} {gib(over)} over" if over else "", "yellow")
        left = gib(max(0.0, budget["left_gb"]))
        rows.append((kind, gib(budget["budget_gb"]), gib(budget["held_gb"]), left, remark))
    yield from _indented(_BUDGETS, rows, style)


def _indented(columns: Sequence[Column], rows: Sequence[render.Row], style: Style) -> Iterator[str]:
    if not rows:
        return
    narrower = replace(style, width=None if style.width is None else max(1, style.width - len(INDENT)))
    for line in render.table(columns, rows, narrower):
        yield INDENT + line


# --- Many GPUs on a low terminal ---------------------------------------------------------------

_CARDS = (
    Column("GPU", right=True),
    Column("MEMORY"),
    Column("TOTAL", right=True, drop=3),
    Column("USED", right=True),
    Column("RESERVED", right=True, drop=1),
    Column("FREE", right=True),
    Column("BUSY", right=True, drop=2),
    Column("", shrink=10),
)
_HOLDERS = (Column("GPU", right=True), *_ENGINES)
SMALL_BAR = 24


def compact(gpus: Figures, style: Style) -> Iterator[str]:
    """The same with a line a GPU and one table of all engines."""
    if gpus["trouble"]:
        yield from wrapped(f"Trouble: {render.clean(gpus['trouble'])}", style, look="red")
    plain = replace(style, colour=False)
    cards: list[render.Row] = []
    holders: list[render.Row] = []
    for device in gpus["devices"]:
        index, free, busy = str(device["gpu_id"]), device["memory_free_gb"], device["utilization"]
        sizes = (gib(device[f"memory_{size}_gb"]) for size in ("total", "used", "reserved"))
        lost = f"lost: {render.clean(device['lost'])}" if device["lost"] else ""
        told = Cell("" if busy is None else f"{busy:.0%}"), Cell(lost, "red")
        left = Cell(gib(free), "red" if free < 0 else "")
        cards.append((index, bar(device, plain, SMALL_BAR), *sizes, left, *told))
        holders += [(index, *row) for row in _engine_rows(device, style)]
    if cards:
        yield from render.table(_CARDS, cards, style)
    if holders:
        yield ""
        yield from render.table(_HOLDERS, holders, style)
    if gpus["queue"]:
        yield ""
        yield from queue_lines(gpus["queue"], style)


# --- The queue ---------------------------------------------------------------------------------


def queue_lines(queue: Sequence[Figures], style: Style) -> Iterator[str]:
    """Who waits for memory, the next one first, and why; nothing is cut."""
    yield from wrapped("Waiting for GPU memory, the next one first", style, look="bold")
    for place, one in enumerate(queue, 1):
        head = f"{INDENT}{place}. "
        needs = f", needs {gib(one['needed_gb'])}" if one["needed_gb"] else ""
        name = render.cut(one["name"], _room(style, head), unicode=style.unicode)
        rest = f"  priority {one['priority']}{needs}"
        rest = render.cut(rest, _room(style, head + name), unicode=style.unicode)
        yield f"{head}{style.paint(name, 'yellow')}{rest}"
        if one["reason"]:
            yield from wrapped(render.clean(one["reason"]), style, " " * len(head), " " * len(head))


def _room(style: Style, before: str) -> int | None:
    """The columns that are left on a line."""
    return None if style.width is None else max(0, style.width - render.cells(before))


def summary(gpus: Figures, style: Style) -> Iterator[str]:
    """The overview's part: a line a GPU, then who waits."""
    if gpus.get("trouble"):
        yield from wrapped(f"GPUs: {render.clean(gpus['trouble'])}", style, look="red")
    rows: list[render.Row] = []
    for device in gpus["devices"]:
        free = device["memory_free_gb"]
        rows.append(
            (
                str(device["gpu_id"]),
                render.clean(device["name"]),
                gib(device["memory_total_gb"]),
                gib(device["memory_used_gb"]),
                gib(device["memory_reserved_gb"]),
                gib(device["memory_foreign_gb"]),
                Cell(gib(free), "red" if free < 0 else ""),
                Cell(f"lost: {render.clean(device['lost'])}" if device["lost"] else "", "red"),
            )
        )
    if rows:
        yield from render.table(_SUMMARY, rows, style)
    if gpus.get("queue"):
        yield ""
        yield from queue_lines(gpus["queue"], style)


_SUMMARY = (
    Column("GPU", right=True),
    Column("NAME", shrink=10, drop=4),
    Column("TOTAL", right=True),
    Column("USED", right=True),
    Column("RESERVED", right=True),
    Column("FOREIGN", right=True, drop=3),
    Column("FREE", right=True),
    Column("", shrink=10),
)


def _packed(parts: Sequence[str], style: Style, indent: int, gap: str = ", ") -> Iterator[str]:
    """Parts on as few lines as hold them, none broken; one wider than the terminal is cut."""
    room = None if style.width is None else max(1, style.width - indent)
    line = ""
    for part in parts:
        short = render.cut(part, None if room is None else room - len(gap.rstrip()), unicode=style.unicode)
        longer = f"{line}{gap}{short}" if line else short
        if line and room is not None and render.cells(longer + gap.rstrip()) > room:
            yield line + gap.rstrip()
            line = short
        else:
            line = longer
    if line:
        yield line
