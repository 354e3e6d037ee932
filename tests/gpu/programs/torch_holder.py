"""Holds memory of the first visible GPU through torch, as told line by line. Runs with CUDA's torch alone.

warm            open a context, with a little memory; `child` before a verb hands it to a child process
hold BYTES      take so much
cap BYTES       let the allocator have no more than so much in all
"""

from __future__ import annotations

import subprocess
import sys

import torch

MIB = 1 << 20


def main() -> None:
    kept: list[torch.Tensor] = []
    child: subprocess.Popen[str] | None = None
    for line in sys.stdin:
        verb, *rest = line.split()
        if verb == "child":
            if child is None:
                child = subprocess.Popen(
                    [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(" ".join(rest) + "\n")
            child.stdin.flush()
            answer = f"{child.pid} {child.stdout.readline().strip()}"
        else:
            answer = obey(verb, [int(word) for word in rest], kept)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def obey(verb: str, numbers: list[int], kept: list[torch.Tensor]) -> str:
    """Do it; `ok`, or what torch said."""
    try:
        if verb == "cap":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(numbers[0] / total)
        else:
            size = numbers[0] if verb == "hold" else 64 * MIB
            kept.append(torch.ones(size, dtype=torch.uint8, device="cuda"))
            torch.cuda.synchronize()
    except torch.OutOfMemoryError as error:
        return f"OutOfMemoryError {str(error).splitlines()[0]}"
    return "ok"


main()
