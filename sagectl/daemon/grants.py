"""Whether an engine can be given what it asks for of the machine. Pure."""

from __future__ import annotations

from sagectl.config.limits import UNLIMITED, cpus_in_words, in_words
from sagectl.core.engine import EngineSpec
from sagectl.plugin import Refusal
from sagectl.system.powers import Powers


def asks(spec: EngineSpec) -> bool:
    """It asks for anything."""
    wanted = (spec.nice, spec.oom_score_adjust, spec.cpu_affinity)
    return bool(spec.limits) or any(one is not None for one in wanted)


def refusal(spec: EngineSpec, powers: Powers) -> Refusal | None:
    """Why it cannot be given, and what would help; None where it can."""
    where = f"engines.{spec.group or spec.name}"
    for name, (_, hard) in spec.limits.items():
        if (found := _limit(f"{where}.limits.{name}", name, hard, powers)) is not None:
            return found
    return _nice(spec, where, powers) or _oom_score(spec, where, powers) or _cpus(spec, where, powers)


def _limit(where: str, name: str, hard: int, powers: Powers) -> Refusal | None:
    asked = f"limits.{name} asks for {in_words(hard)}"
    if name == "nofile" and _above(hard, powers.open_files):
        return Refusal(
            f"{asked}, and the kernel gives no process more than {powers.open_files} (fs.nr_open)",
            f"lower {where}, or raise that: sysctl fs.nr_open=…",
        )
    own = powers.hard.get(name, UNLIMITED)
    if powers.any_limit or not _above(hard, own):
        return None
    unit = f"Limit{name.upper()}={'infinity' if hard == UNLIMITED else hard}"
    return Refusal(
        f"{asked}, and sagectld itself has at most {own}",
        f"lower {where}, or give sagectld more (in its unit: {unit})",
    )


def _above(one: int, other: int) -> bool:
    return other != UNLIMITED and (one == UNLIMITED or one > other)


def _nice(spec: EngineSpec, where: str, powers: Powers) -> Refusal | None:
    best = min(powers.nice, 20 - powers.nice_ceiling)
    if spec.nice is None or powers.any_nice or spec.nice >= best:
        return None
    return Refusal(
        f"nice = {spec.nice} is below {best}, the best that sagectld may give without CAP_SYS_NICE",
        f"raise {where}.nice, or give sagectld the right (in its unit: LimitNICE={spec.nice})",
    )


def _oom_score(spec: EngineSpec, where: str, powers: Powers) -> Refusal | None:
    wanted, own = spec.oom_score_adjust, powers.oom_score_adjust
    if wanted is None or wanted >= own or powers.any_oom_score:
        return None
    return Refusal(
        f"oom_score_adjust = {wanted} is below sagectld's own of {own}, which takes CAP_SYS_RESOURCE",
        f"raise {where}.oom_score_adjust, or lower sagectld's own (in its unit: OOMScoreAdjust={wanted})",
    )


def _cpus(spec: EngineSpec, where: str, powers: Powers) -> Refusal | None:
    lacking = [cpu for cpu in spec.cpu_affinity or () if cpu not in powers.cpus]
    if not lacking:
        return None
    what = "a CPU" if len(lacking) == 1 else "CPUs"
    return Refusal(
        f"cpu_affinity names {what} that sagectld cannot use here: {cpus_in_words(lacking)}",
        f"correct {where}.cpu_affinity: this machine gives it CPUs {cpus_in_words(sorted(powers.cpus))}",
    )
