"""What torch says when it runs into the limit that a reservation sets."""

from __future__ import annotations

from sagectl_models.rules import Rule


def reserved(smaller: str) -> Rule:
    """Belongs before the rule for cards that are full: here the card may have room.

    Args:
        smaller: what makes the engine need less, in the kind's options.
    """
    return Rule(
        r"(?:CUDA|HIP) out of memory[\s\S]{0,600}?(?P<allowed>[\d.]+ [KMG]iB) allowed",
        "{model} needs more GPU memory than sagectl reserved for it: torch may take {allowed}.",
        f'Raise `gpu_memory` (a size such as "8GiB"), or need less: {smaller}.',
    )
