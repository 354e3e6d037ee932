"""The GPUs in words: what is told, in any width, in ASCII too."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagectl.cli import gpu_view, render
from sagectl.cli.render import Style
from tests.gpu_figures import device, engine, gpus, waiting

PLAIN = Style()
COLOUR = Style(colour=True, width=80)


def shown(found: dict[str, Any], style: Style = PLAIN) -> str:
    return "\n".join(gpu_view.lines(found, style))


def squeezed(text: str) -> str:
    return re.sub(r"[ \n]+", " ", text)


def test_a_device_is_told_with_all_that_is_known() -> None:
    card = device(
        name="NVIDIA H200", utilization=0.87, temperature_celsius=61, power_watts=412.4,
        power_limit_watts=700.0, nvlink=[1, 2], numa_node=0,
        engines=[engine("chat", 20.0, 18.7), engine("embed", 2.0, 2.5)],
        memory_total_gb=140.0, memory_used_gb=23.4, memory_foreign_gb=2.2, memory_free_gb=114.3,
        foreign_processes=[{"pid": 4711, "used_gb": 1.7, "command": "python3"}],
        budgets={"llm": {"budget_gb": 98.0, "held_gb": 20.0, "left_gb": 78.0}},
    )  # fmt: skip
    text = squeezed(shown(gpus(card)))
    assert text.startswith(
        "GPU 0 NVIDIA H200, 140.0 GiB, 87% busy, 61 °C, 412 of 700 W, NVLink to GPUs 1, 2, NUMA node 0 "
    )
    figures = "used 23.4 GiB █ measured 21.2 GiB ▒ reserved 22.0 GiB ▓ foreign 2.2 GiB"
    assert f"{figures} ╌ kept free 1.0 GiB · free 114.3 GiB" in text
    assert "chat llm resident 20.0 GiB 18.7 GiB embed llm resident 2.0 GiB 2.5 GiB ▲ 512 MiB over" in text
    assert "PID FOREIGN PROCESS USED 4711 python3 1.7 GiB the driver itself 512 MiB" in text
    assert "BUDGET OF SIZE HELD LEFT llm 98.0 GiB 20.0 GiB 78.0 GiB" in text


def test_what_the_driver_does_not_tell_is_left_out() -> None:
    text = shown(gpus(device()))
    for word in ("busy", "°C", " W", "NVLink", "NUMA", "MIG", "PID", "BUDGET", "Lost", "Waiting"):
        assert word not in text
    assert "No engine holds memory of it." in text


def test_a_driver_that_shows_no_processes_is_said_to_do_so() -> None:
    text = shown(gpus(device(attribution="difference", foreign_processes=None, memory_foreign_gb=3.0)))
    assert "By difference: the driver shows no processes here, as in a container." in text
    assert "▓ foreign 3.0 GiB" in text


def test_a_lost_gpu_and_a_silent_driver_are_told_in_words() -> None:
    text = shown(gpus(device(lost="it fell off the bus"), trouble="the driver was unloaded"))
    assert text.startswith("Trouble: the driver was unloaded\nThe figures below are the last ones known.\n")
    assert "Lost: it fell off the bus" in text


def test_more_held_than_there_is_is_told() -> None:
    card = device(memory_free_gb=-2.0, engines=[engine("chat", 12.0, 13.0)])
    card["budgets"] = {"llm": {"budget_gb": 10.0, "held_gb": 13.0, "left_gb": -3.0}}
    text = squeezed(shown(gpus(card)))
    assert "overdrawn by 2.0 GiB" in text
    assert "llm 10.0 GiB 13.0 GiB 0 GiB ▲ 3.0 GiB over" in text


def test_an_engine_without_a_reservation_is_marked() -> None:
    assert "▲ nothing reserved" in shown(gpus(device(engines=[engine("stray", 0.0, 1.0)])))


def test_who_waits_is_told_in_full_and_in_order() -> None:
    why = "waiting for GPU memory: needs 20.0 GiB on 1 GPU; the most that is free is 16.0 GiB, on GPU 0"
    found = gpus(device(), queue=[waiting("big", why), waiting("small", "waiting behind big")])
    text = shown(found, Style(width=50))
    assert squeezed(text).endswith(
        "Waiting for GPU memory, the next one first"
        f" 1. big priority normal, needs 20.0 GiB {why} 2. small priority normal, needs 20.0 GiB"
        " waiting behind big"
    )


def test_many_foreign_processes_are_summed_up() -> None:
    many = [{"pid": 100 + n, "used_gb": 0.5, "command": f"p{n}"} for n in range(20)]
    text = squeezed(shown(gpus(device(foreign_processes=many, memory_foreign_gb=10.0))))
    assert text.count(" MiB") >= 12
    assert "and 8 more 4.0 GiB" in text
    assert "the driver itself" not in text


def test_without_gpus_it_is_said_why_and_what_to_do() -> None:
    text = squeezed(shown(gpus(backend="none", managed=False)))
    assert text.startswith("No GPUs are managed here: [gpu] backend is `none`")
    assert 'set [gpu] backend = "nvml"' in text
    text = shown(gpus(trouble="NVML cannot be loaded"))
    assert text == "Trouble: NVML cannot be loaded\n\nThe back end nvml shows no GPU."


def test_ascii_terminals_get_ascii() -> None:
    card = device(engines=[engine("chat", 1.0, 2.0)], temperature_celsius=61, memory_foreign_gb=4.0)
    text = shown(gpus(card, queue=[waiting("big", "why")]), Style(unicode=False, width=50))
    assert text.isascii()
    assert "61 C" in text
    assert "x foreign 4.0 GiB" in text


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("unicode", [True, False])
def test_no_line_is_wider_than_the_terminal(width: int, unicode: bool) -> None:
    card = device(
        name="カード " * 8, nvlink=[*range(16)], lost="why " * 40, mig_parent="GPU-" + "8" * 36,
        engines=[engine("e" * 63, 20.0, 25.0)], power_watts=100.0, temperature_celsius=50,
        foreign_processes=[{"pid": 4194304, "used_gb": None, "command": "コマンド" * 9}],
        budgets={"k" * 40: {"budget_gb": 1000.0, "held_gb": 2000.0, "left_gb": -1000.0}},
    )  # fmt: skip
    found = gpus(card, queue=[waiting("w" * 15, "because " * 30)], trouble="trouble " * 30)
    style = Style(unicode=unicode, width=width)
    views = (gpu_view.lines, gpu_view.summary, gpu_view.compact)
    for line in [line for view in views for line in view(found, style)]:
        assert render.cells(line) <= width, line


def test_colours_change_no_text() -> None:
    card = device(engines=[engine("chat", 1.0, 2.0)], memory_free_gb=-1.0, lost="gone")
    found = gpus(card, queue=[waiting("big", "why")])
    painted = shown(found, COLOUR)
    assert "\x1b[" in painted
    assert re.sub(r"\x1b\[[0-9;]*m", "", painted) == shown(found, Style(width=80))


def test_control_characters_of_foreign_names_do_not_reach_the_terminal() -> None:
    card = device(foreign_processes=[{"pid": 1, "used_gb": 1.0, "command": "\x1b[2Jevil\n"}])
    assert "\x1b" not in shown(gpus(card))


SIZES = st.lists(st.floats(0, 200).map(lambda size: round(size, 3)), min_size=1, max_size=5)


@given(SIZES, st.integers(8, 120))
def test_a_bar_is_full_and_whatever_is_there_has_a_column(sizes: list[float], width: int) -> None:
    columns = gpu_view.apportion(sizes, width)
    assert sum(columns) == width
    total = sum(sizes)
    for size, count in zip(sizes, columns, strict=True):
        assert (count > 0) == (size >= gpu_view.LEAST) or total < gpu_view.LEAST
        if total >= gpu_view.LEAST:
            assert abs(count - size / total * width) <= len(sizes)


def test_a_bar_shows_the_shares_of_the_card() -> None:
    card = device(engines=[engine("chat", 8.0, 4.0)], memory_foreign_gb=4.0, memory_free_gb=11.0)
    assert gpu_view.bar(card, PLAIN, 24) == "████▒▒▒▒▓▓▓▓╌···········"


def test_a_paused_engine_holds_only_what_it_measures() -> None:
    card = device(engines=[engine("chat", 8.0, 2.0, phase="paused")], memory_free_gb=21.0)
    assert gpu_view.bar(card, PLAIN, 24) == "██╌·····················"


def test_the_compact_view_has_a_line_for_each_gpu_and_each_engine() -> None:
    card = device(engines=[engine("chat", 8.0, 9.0)], utilization=0.5, memory_free_gb=14.0)
    found = gpus(card, device(gpu_id=1, lost="gone"), queue=[waiting("big", "no room")], trouble="hm")
    text = "\n".join(gpu_view.compact(found, PLAIN))
    assert text.startswith("Trouble: hm\n")
    assert re.search(r"0 +█{9}╌·{14} +24.0 GiB +0 GiB +8.0 GiB +14.0 GiB +50%", text)
    assert re.search(r"1 .*lost: gone", text)
    assert re.search(r"0 +chat +llm +resident +8.0 GiB +9.0 GiB +▲ 1.0 GiB over", text)
    assert text.endswith("no room")


def test_the_summary_has_a_line_for_each_gpu_and_who_waits() -> None:
    found = gpus(device(), device(gpu_id=1, lost="gone"), queue=[waiting("big", "no room")])
    text = "\n".join(gpu_view.summary(found, PLAIN))
    assert re.search(r"0 +A card +24.0 GiB +0 GiB +0 GiB +0 GiB +23.0 GiB", text)
    assert re.search(r"1 +A card .*lost: gone", text)
    assert text.endswith("no room")
