"""Sees to it that results of completed jobs are served, and that engines get back what they had loaded.

A result is given to an engine that runs and can take it in, else to an engine of its own. What is to be
done is in the engines (`serving`, `loaded`), so that the next daemon goes on with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from sagectl.core import events as ev
from sagectl.core import serving as rules
from sagectl.core.engine import Engine, LoadedModel, Serving, ServingPhase, Sub
from sagectl.daemon.supervisor import Supervisor
from sagectl.errors import SagectlError
from sagectl.plugin import HttpProbe, Loading, Refusal, Successor
from sagectl.system.http_call import call
from sagectl.system.journal import Journal
from sagectl.system.probes import Target

log = logging.getLogger("sagectl.results")

END_SECONDS = 2.0
"""An engine that does not take a result in because it ended is heard of by then."""


class Operations(Protocol):
    """What is asked of the daemon: `Control`."""

    async def define(self, body: Mapping[str, Any]) -> Engine: ...

    def start(self, engine: Engine, *, again: bool = False) -> None: ...


class HowToLoad(Protocol):
    """`Preflight.loading`."""

    def __call__(
        self, engine: Engine, model: str, name: str, edition: int
    ) -> Awaitable[Loading | Refusal]: ...


class Results:
    """One task for each result that is to be served, and one for each engine that lost what it had loaded."""

    def __init__(
        self,
        supervisor: Supervisor,
        journal: Journal,
        operations: Operations,
        how_to_load: HowToLoad,
        target: Callable[[Engine], Target],
        models_dir: str,
    ) -> None:
        self._supervisor = supervisor
        self._journal = journal
        self._operations = operations
        self._how_to_load = how_to_load
        self._target = target
        self._models_dir = models_dir
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Results that are to have one name are served one after the other."""

    # --- When ------------------------------------------------------------------------------------

    def look_at_all(self) -> None:
        """Go on with what an earlier daemon left."""
        for engine in self._supervisor:
            self.moved(engine)

    def moved(self, engine: Engine) -> None:
        """An engine's state changed."""
        if engine.sub is Sub.COMPLETED and engine.serving and engine.serving.phase is ServingPhase.PENDING:
            self._run(engine, self._serve(engine.id, engine.serving))
        elif engine.sub is Sub.RUNNING and engine.plan and engine.plan.successor:
            self._warn(engine, engine.plan.successor)
        elif rules.lost(engine):
            self._run(engine, self._give_back(engine.id))

    def _warn(self, job: Engine, successor: Successor) -> None:
        """What will be in the way is said before the job has trained for hours."""
        why = rules.conflict(self._supervisor, successor, self._models_dir)
        if why is not None:
            text = f"its result will not be served as {successor.name}: {why}"
            self._journal.record(job.name, job.id, "job-warning", text, "warning")

    def _run(self, engine: Engine, work: Coroutine[Any, Any, None]) -> None:
        before = self._tasks.pop(engine.id, None)
        if before is not None:
            before.cancel()
        task = asyncio.get_running_loop().create_task(work, name=f"result {engine.name}")
        self._tasks[engine.id] = task
        task.add_done_callback(lambda done: self._done(engine.id, done))

    def _done(self, engine_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(engine_id) is task:
            del self._tasks[engine_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": f"serving a result ({engine_id}) failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def close(self) -> None:
        """Stop; the next daemon goes on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- A result --------------------------------------------------------------------------------

    async def _serve(self, job_id: str, serving: Serving) -> None:
        name = serving.successor.name
        if self._taken(job_id, serving):
            return
        async with self._turns[name]:
            await self._await_return(job_id, serving)
            if self._taken(job_id, serving):
                return
            if self._supervisor.named(name) is None:
                if await self._load_somewhere(job_id, serving):
                    return
                if await self._await_start(job_id, serving) and await self._load_somewhere(job_id, serving):
                    return
            if self._taken(job_id, serving):
                return
            try:
                await self._serve_alone(job_id, serving)
            except SagectlError as error:
                self._fail(job_id, serving, str(error))

    def _taken(self, job_id: str, serving: Serving) -> bool:
        """Whether somebody else answers to the name, who may have come while this one waited."""
        why = rules.conflict(self._supervisor, serving.successor, self._models_dir)
        if why is not None:
            self._fail(job_id, serving, why)
        return why is not None

    async def _await_return(self, job_id: str, serving: Serving) -> None:
        """An engine that serves the earlier result and is restarting now is the one to get this."""
        name = serving.successor.name
        engine = rules.returning(self._supervisor, name)
        if engine is not None:
            self._tell(job_id, rules.awaiting(serving, engine))
            await self._supervisor.until(lambda: rules.returning(self._supervisor, name) is None)

    async def _await_start(self, job_id: str, serving: Serving) -> bool:
        """Whether an engine was waited for that is starting and could take it in: a second one costs more."""
        name, model = serving.successor.name, serving.successor.model
        for engine in rules.starting(self._supervisor, serving.successor):
            if isinstance(await self._how(engine, model, name, 0), Refusal):
                continue
            self._tell(job_id, rules.awaiting(serving, engine))
            await self._moves_on(engine)
            return True
        return False

    async def _load_somewhere(self, job_id: str, serving: Serving, *, again: bool = False) -> bool:
        """Have a running engine take it in. False where none does, and it needs one of its own.

        again: an engine that ended meanwhile is not waited for once more; the result may be why it ended.
        """
        name = serving.successor.name
        for engine in rules.candidates(self._supervisor, serving.successor):
            trouble = await self._load(engine, serving.successor.model, name, job_id)
            if trouble is None:
                self._tell(job_id, rules.served(serving, engine.name))
                return True
            text = f"the engine {engine.name} does not take it in: {trouble}"
            if rules.has(engine, name):
                # That its process ended is heard of a moment after.
                if not again and await self._moves_on(engine, END_SECONDS):
                    await self._await_return(job_id, serving)
                    if self._taken(job_id, serving):
                        return True
                    return await self._load_somewhere(job_id, serving, again=True)
                # It goes on with the earlier result, and two must not answer to one name.
                self._fail(job_id, serving, f"{text}; what it serves under that name is the earlier result")
                return True
            self._journal.record(self._name(job_id), job_id, "serving", text)
        return False

    async def _moves_on(self, engine: Engine, timeout: float | None = None) -> bool:
        """Wait until it is in another substate than here, or another start of it; False where time is up."""

        def moved_on() -> bool:
            now = self._supervisor.get(engine.id)
            return now is None or (now.generation, now.sub) != (engine.generation, engine.sub)

        return await self._supervisor.until(moved_on, timeout)

    async def _serve_alone(self, job_id: str, serving: Serving) -> None:
        """By an engine of its own, which was there already or is made now. Raises SagectlError."""
        successor = serving.successor
        engine = self._supervisor.named(successor.name)
        if engine is None:
            engine = await self._operations.define(rules.definition(successor))
        elif rules.serves_earlier(engine, serving):
            self._supervisor.post(engine.id, ev.RestartRequested(why=f"restarted for a new {successor.name}"))
        elif not engine.up:
            self._operations.start(engine)
        text = f"its result is to be served as {successor.name}: the engine {engine.name} is starting"
        self._tell(job_id, replace(serving, engine=engine.name, text=text))
        engine_id = engine.id
        await self._supervisor.until(lambda: self._settled(engine_id))
        found = rules.outcome(self._supervisor.get(engine_id), successor.name)
        assert found is not None
        self._tell(job_id, replace(serving, phase=found[0], engine=successor.name, text=found[1]))

    def _settled(self, engine_id: str) -> bool:
        return rules.outcome(self._supervisor.get(engine_id), "") is not None

    def _fail(self, job_id: str, serving: Serving, why: str) -> None:
        text = f"not served as {serving.successor.name}: {why}"
        self._tell(job_id, replace(serving, phase=ServingPhase.FAILED, text=text))

    def _tell(self, job_id: str, serving: Serving) -> None:
        self._supervisor.post(job_id, ev.ServingChanged(serving))

    def _name(self, engine_id: str) -> str | None:
        engine = self._supervisor.get(engine_id)
        return engine.name if engine else None

    # --- Engines that take something in ------------------------------------------------------------

    async def _load(self, engine: Engine, model: str, name: str, job_id: str) -> str | None:
        """Have an engine take in a model; why it did not, None where it did."""
        edition = rules.edition(engine, name)
        how = await self._how(engine, model, name, edition)
        if isinstance(how, Refusal):
            return how.reason
        trouble = await self._ask_all(engine, how.steps)
        if trouble is not None:
            undone = await self._ask_all(engine, how.undo)
            if undone is not None:
                log.warning("%s keeps what it did not take in properly: %s", engine.name, undone)
            return trouble
        now = self._supervisor.get(engine.id)
        if now is None or now.generation != engine.generation or now.sub is not Sub.READY:
            return "it ended meanwhile"
        loaded = LoadedModel(name, model, job_id, engine.generation, edition)
        self._supervisor.post(engine.id, ev.ModelsLoaded(rules.with_model(now, loaded)))
        self._journal.record(engine.name, engine.id, "loaded", f"took in {model} as {name}")
        return None

    async def _how(self, engine: Engine, model: str, name: str, edition: int) -> Loading | Refusal:
        try:
            return await self._how_to_load(engine, model, name, edition)
        except Exception as error:  # a plugin's fault, and there are other engines
            log.exception("the kind %s failed to say how %s loads a model", engine.spec.kind, engine.name)
            return Refusal(f"{type(error).__name__}: {error}", "report it to the plugin's author")

    async def _ask_all(self, engine: Engine, requests: tuple[HttpProbe, ...]) -> str | None:
        try:
            target = self._target(engine)
        except (OSError, ValueError, LookupError) as error:  # its env_file or its user is gone
            return str(error)
        for request in requests:
            trouble = await call(target, request)
            if trouble is not None:
                return trouble
        return None

    async def _give_back(self, engine_id: str) -> None:
        """What an engine had loaded before it was started anew."""
        engine = self._supervisor.get(engine_id)
        for model in rules.lost(engine) if engine else ():
            engine = self._supervisor.get(engine_id)
            if engine is None or model not in rules.lost(engine):
                continue
            trouble = await self._load(engine, model.path, model.name, model.job)
            if trouble is not None:
                text = f"does not serve {model.name} any more ({model.path}): {trouble}"
                self._journal.record(engine.name, engine.id, "load-failed", text, "error")
            self._tell_job(engine.name, model, trouble)

    def _tell_job(self, engine: str, model: LoadedModel, trouble: str | None) -> None:
        """What became of a job's result when the engine that serves it was started anew."""
        job = self._supervisor.get(model.job)
        serving = job.serving if job else None
        if serving is None or serving.engine != engine or serving.phase is ServingPhase.PENDING:
            return
        if trouble is None:
            self._tell(model.job, rules.served(serving, engine))
            return
        text = (
            f"not served as {model.name} any more: the engine {engine} was restarted, and does not take it in"
        )
        self._tell(model.job, replace(serving, phase=ServingPhase.FAILED, text=f"{text}: {trouble}"))

    def taken_out(self, engine: Engine, models: Sequence[LoadedModel]) -> None:
        """The user wants an engine to serve these no more."""
        self._run(engine, self._take_out(engine, models))

    async def _take_out(self, engine: Engine, models: Sequence[LoadedModel]) -> None:
        for model in models:
            trouble = None
            if engine.sub is Sub.READY and model.generation == engine.generation:
                how = await self._how(engine, model.path, model.name, 0)
                trouble = how.reason if isinstance(how, Refusal) else await self._ask_all(engine, how.undo)
            text = f"{model.name} was taken out by the user"
            if trouble is not None:
                text += f", but it answers to that name until it is restarted: {trouble}"
            level = "info" if trouble is None else "warning"
            self._journal.record(engine.name, engine.id, "unloaded", text, level)
            job = self._supervisor.get(model.job)
            if job is not None and job.serving is not None and job.serving.engine == engine.name:
                text = f"not served as {model.name} any more: taken out of {engine.name} by the user"
                self._tell(job.id, replace(job.serving, phase=ServingPhase.ENDED, text=text))
