"""Memory of simulated GPUs, for programs that play an engine. Needs the standard library alone.

A simulated GPU is a sparse file `gpuN` in a directory, as large as its memory. Who maps a part of it
holds as much memory; nothing is ever read or written there. What is held follows from /proc/*/maps, so
that the death of a process releases what it held, and nothing else has to.

    device = runpy.run_path("…/sagectl/simulated_device.py")      # or: from sagectl import simulated_device
    memory = device["allocate"](0, 2 << 30)                       # MemoryError where it does not fit

Run as a program it holds memory until it is killed: `simulated_device.py 512 1024` takes 512 MiB of the
first visible GPU and 1024 MiB of the second, and says `holding` when it has them.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import signal
import sys

DIRECTORY = "SAGECTL_SIMULATED_GPUS"
"""The variable that names the directory."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
CHUNK = 1 << 16


def allocate(index: int, size: int) -> mmap.mmap:
    """Hold `size` bytes of the GPU that this process calls `index`, as CUDA_VISIBLE_DEVICES has it.

    Held until `free`, or until every process that inherited it by fork has ended too. Raises MemoryError
    where the GPU has not as much left, RuntimeError where there is no such GPU.
    Without the rights to see other users' processes theirs are not counted.
    """
    shown = visible()
    directory = os.path.realpath(os.environ[DIRECTORY])
    if not 0 <= index < len(shown):
        raise RuntimeError(f"there is no GPU {index}: {len(shown)} are visible")
    device = shown[index]
    try:
        fd = os.open(f"{directory}/gpu{device}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise RuntimeError(f"GPU {index} is lost: {error}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # nobody else maps while we count
        total = os.fstat(fd).st_size
        length = -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
        free_now = total - sum(held(directory).get(device, {}).values())
        if length > free_now:
            raise MemoryError(
                f"out of memory on GPU {index}: tried to allocate {_gib(size)}, "
                f"{_gib(max(free_now, 0))} of {_gib(total)} are free"
            )
        return mmap.mmap(fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=_somewhere(total - length))
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # the mapping has a duplicate: closing ours would not unlock
        os.close(fd)


def free(memory: mmap.mmap) -> None:
    """Give back what `allocate` gave. Children forked meanwhile hold theirs until they end."""
    memory.close()


def visible() -> list[int]:
    """The GPUs that this process sees, in its order; all where CUDA_VISIBLE_DEVICES is not set.

    As for CUDA, what comes after an entry that means nothing is not visible either. Raises RuntimeError
    where there is no driver.
    """
    directory = os.environ.get(DIRECTORY)
    if not directory:
        raise RuntimeError(f"no simulated GPUs: {DIRECTORY} is not set")
    try:
        names = [name.removeprefix("gpu") for name in os.listdir(directory) if name.startswith("gpu")]
    except OSError as error:
        raise RuntimeError(f"the simulated driver is not there: {error}") from error
    if VISIBLE not in os.environ:
        return sorted(int(name) for name in names if name.isdecimal())
    shown: list[int] = []
    for entry in os.environ[VISIBLE].split(","):
        if not entry.strip().isdecimal():
            break
        shown.append(int(entry))
    return shown


def held(directory: str) -> dict[int, dict[int, int]]:
    """Who holds how much: {GPU: {pid: bytes}}, from one pass over /proc.

    directory: as os.path.realpath has it. A mapping that a process inherited by fork (at the same
    address, of the same part of the file) is the same memory: it counts once, for the oldest holder.
    Mappings of a file that was removed count no more: that GPU is gone, or it is another one.
    """
    needle = os.fsencode(directory) + b"/gpu"
    holders: dict[tuple[int, bytes, bytes], int] = {}
    for entry in os.listdir("/proc"):
        text = _maps(entry) if entry.isdigit() else b""
        if needle not in text:
            continue
        pid = int(entry)
        for line in text.splitlines():
            start = line.find(needle)
            name = line[start + len(needle) :] if start >= 0 else b""
            if name.isdigit():  # not of "gpu0 (deleted)"
                fields = line.split(None, 3)
                key = int(name), fields[0], fields[2]
                other = holders.setdefault(key, pid)
                if other != pid and _started(pid) < _started(other):
                    holders[key] = pid
    found: dict[int, dict[int, int]] = {}
    for (device, address, _), pid in holders.items():
        low, _, high = address.partition(b"-")
        sizes = found.setdefault(device, {})
        sizes[pid] = sizes.get(pid, 0) + int(high, 16) - int(low, 16)
    return found


def _maps(pid: str) -> bytes:
    """/proc/PID/maps; nothing for kernel threads, zombies and what we may not see."""
    try:
        fd = os.open(f"/proc/{pid}/maps", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    parts = []
    try:
        while part := os.read(fd, CHUNK):
            parts.append(part)
    except OSError:  # it ended just now
        return b""
    finally:
        os.close(fd)
    return b"".join(parts)


def _started(pid: int) -> tuple[int, int]:
    """When it began, in clock ticks since boot; of two in one tick the lower pid is taken for the older."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[19]), pid
    except OSError:
        return sys.maxsize, pid


def _somewhere(room: int) -> int:
    """Any page up to `room`: without it two processes at equal addresses would look like fork's."""
    return int.from_bytes(os.urandom(8), "little") % (room // mmap.PAGESIZE + 1) * mmap.PAGESIZE


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"


def main() -> None:
    """Hold as many MiB of the visible GPUs as the arguments say, until killed."""
    try:
        kept = [allocate(index, int(size) << 20) for index, size in enumerate(sys.argv[1:])]
    except (MemoryError, RuntimeError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    sys.stdout.write("holding\n")
    sys.stdout.flush()
    while kept:
        signal.pause()


if __name__ == "__main__":
    main()
