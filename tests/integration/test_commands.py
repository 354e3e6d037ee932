from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from sagectl.system.commands import CommandResult, run_command

ENV = {"PATH": "/usr/bin:/bin"}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


async def until(happened: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not happened():  # noqa: ASYNC110 (another process makes it so)
            await asyncio.sleep(0.005)


async def until_gone(pid: int) -> None:
    await until(lambda: gone(pid))


async def test_code_and_output_of_a_command_are_returned() -> None:
    result = await run_command(["sh", "-c", "echo out; echo err >&2; exit 3"], env=ENV, timeout=5)
    assert result == CommandResult(3, "out\nerr\n")


async def test_a_signal_is_a_negative_code() -> None:
    result = await run_command(["sh", "-c", "kill -9 $$"], env=ENV, timeout=5)
    assert result.code == -signal.SIGKILL


async def test_environment_and_directory_are_those_given(tmp_path: Path) -> None:
    result = await run_command(
        ["sh", "-c", "pwd; echo $A"], env={**ENV, "A": "x"}, cwd=str(tmp_path), timeout=5
    )
    assert result.output == f"{tmp_path}\nx\n"


async def test_a_missing_program_and_a_missing_directory_are_told_apart(tmp_path: Path) -> None:
    missing = await run_command(["no-such-program"], env=ENV, cwd=str(tmp_path), timeout=5)
    assert missing.error == "cannot run no-such-program: No such file or directory"
    nowhere = await run_command(["true"], env=ENV, cwd=str(tmp_path / "x"), timeout=5)
    assert nowhere.error == f"there is no directory {tmp_path / 'x'}"


async def test_a_command_over_its_time_is_killed_with_its_children(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 60 & echo $! > {pids}; echo begun; wait"
    result = await run_command(["sh", "-c", script], env=ENV, timeout=0.5)
    assert result == CommandResult(None, "begun\n", timed_out=True)
    await until_gone(int(pids.read_text()))


async def test_a_child_that_holds_the_pipe_does_not_delay_the_result() -> None:
    async with asyncio.timeout(5):
        result = await run_command(["sh", "-c", "sleep 60 & echo $!"], env=ENV, timeout=30)
    assert result.code == 0
    await until_gone(int(result.output))


async def test_only_the_end_of_a_long_output_is_kept() -> None:
    code = "import sys; sys.stdout.write('x' * 1000000 + 'the end')"
    result = await run_command([sys.executable, "-c", code], env=ENV, timeout=10, keep=100)
    assert len(result.output) == 100
    assert result.output.endswith("the end")


async def test_a_cancelled_caller_leaves_no_process_and_no_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pid_file = tmp_path / "pid"
    script = f"echo $$ > {pid_file}.new; mv {pid_file}.new {pid_file}; exec sleep 60"
    task = asyncio.ensure_future(run_command(["sh", "-c", script], env=ENV, timeout=60))
    await until(pid_file.exists)
    task.cancel()
    await asyncio.wait([task])
    await until(lambda: not Path(f"/proc/{pid_file.read_text().strip()}").exists())
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_end_of_a_command_is_told_once() -> None:
    faults: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    results = await asyncio.gather(*(run_command(["true"], env={}, timeout=10) for _ in range(20)))
    assert [result.code for result in results] == [0] * 20
    assert faults == []
