"""How vLLM divides a model among GPUs: heads and matrices by tensor, layers by pipeline parallelism."""

from __future__ import annotations

from collections.abc import Iterator

from sagectl_models.architecture import Architecture

WIDTHS = (1, 2, 4, 8)
"""Numbers of GPUs that NVLink commonly connects, which is what tensor parallelism wants."""
MORE = (3, 6, 5, 7, 16)
"""Further numbers of GPUs, for machines where none of the common ones will do."""
_GROUPED = frozenset({"gptq", "awq", "fp8", "compressed-tensors"})
_FP8_BLOCK = 128


def stages(layers: int, count: int) -> tuple[range, ...]:
    """The layers of each pipeline stage, as vLLM 0.32 chooses (distributed/utils.py, get_pp_indices)."""
    sizes = [layers // count] * count
    for place in range(2, layers % count + 2):
        sizes[-place] += 1
    found, begin = [], 0
    for size in sizes:
        found.append(range(begin, begin + size))
        begin += size
    return tuple(found)


def kv_heads_on(architecture: Architecture, tensor: int) -> int:
    """Heads of keys and values that a rank holds: copies, where there are fewer heads than ranks."""
    return max(1, -(-architecture.kv_heads // tensor))


def trouble(architecture: Architecture, tensor: int, pipeline: int = 1) -> str | None:
    """Why vLLM cannot divide the model so; None where it can. A sentence without capital and period."""
    heads, kv = architecture.heads, architecture.kv_heads
    if heads % tensor:
        return f"{heads} attention heads cannot be divided by {tensor}"
    if architecture.latent is None and kv % tensor and tensor % kv:
        return f"{kv} heads of keys and values and {tensor} GPUs do not divide each other"
    if pipeline > architecture.layers:
        return f"{architecture.layers} layers cannot make {pipeline} stages"
    return None


def uneven(architecture: Architecture, tensor: int) -> str | None:
    """Why the quantised matrices cannot be divided among so many, where that is likely."""
    found = architecture.quantisation
    if found is None or found.method not in _GROUPED or tensor == 1:
        return None
    if found.bits >= 8 and found.method == "compressed-tensors":
        return None
    group = _FP8_BLOCK if found.method == "fp8" else found.group
    widths = [architecture.intermediate]
    if architecture.experts is not None:
        widths = [architecture.experts.intermediate]
    for width in widths:
        if group > 0 and width % (tensor * group):
            return f"width {width} in groups of {group} cannot be divided by {tensor}"
    return None


def choices(architecture: Architecture, gpus: int | None = None) -> Iterator[tuple[int, int, str]]:
    """Ways to lay the model out over one machine: (tensor, pipeline, why), the best first.

    The fewest GPUs come first, since each costs another engine its place; on as many, tensor parallelism
    is preferred: all of them work on each token. Layers are divided where heads cannot be, and where the
    GPUs turn out not to be linked, which placement finds: then the later ones on as many GPUs count.

    Args:
        gpus: exactly so many; None: any number.
    """
    for count in (gpus,) if gpus is not None else (*WIDTHS, *MORE):
        yield from _ways(architecture, count)


def _ways(architecture: Architecture, count: int) -> Iterator[tuple[int, int, str]]:
    """All ways to use so many GPUs, the widest tensor parallelism first; only the first says why."""
    obstacle, first = "", True
    for tensor in sorted((n for n in range(1, count + 1) if count % n == 0), reverse=True):
        if tensor > WIDTHS[-1]:
            obstacle = obstacle or f"{tensor} GPUs are more than NVLink commonly connects"
            continue
        pipeline = count // tensor
        wrong = trouble(architecture, tensor, pipeline) or uneven(architecture, tensor)
        if wrong is None:
            why = f"tensor {tensor}" + (f" × pipeline {pipeline}" if pipeline > 1 else "")
            why = "one GPU" if count == 1 else f"{why}: {obstacle}" if obstacle else why
            yield tensor, pipeline, why if first else ""
            first = False
        obstacle = obstacle or wrong or ""
