"""The program: read the flags, bind, load, serve, drain."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from .app import Service
from .batching import Limits
from .metrics import Metrics
from .protocol import MAX_INPUTS, Rules
from .scheduler import LoadError, Scheduler

log = logging.getLogger("sagectl.embedding")

SPARE = {"cpu": 48, "gpu": 4096}
"""Tokens of padding that take as long as starting a batch; on the CPU as measured with 22M weights."""
FRACTION = "SAGECTL_GPU_MEMORY_FRACTION"
"""Variable with the share of each GPU that sagectl reserved for torch."""
DRAIN_LIMIT = 24 * 3600.0
"""Seconds; who asked for the stop decides how long it may take."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; the exit code."""
    options = _options(arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", force=True
    )
    for noisy in ("httpx", "sentence_transformers", "transformers", "filelock"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if options.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    code = asyncio.run(_run(options))
    logging.shutdown()
    sys.stderr.flush()
    # The model's thread may be inside torch, which an orderly end would tear down under it.
    os._exit(code)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sagectl-embedding-server",
        description="OpenAI-compatible embeddings from a sentence-transformers model.",
        allow_abbrev=False,
    )
    parser.add_argument("--model", required=True, help="a directory, or NAME[@REVISION] on the hub")
    parser.add_argument("--name", help="what clients call it; default: as --model")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8090)
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:0, …")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "float16", "bfloat16"])
    parser.add_argument("--threads", type=_positive, help="CPU threads")
    parser.add_argument("--max-batch-size", type=_positive, default=32, help="inputs in a batch")
    parser.add_argument("--max-batch-tokens", type=_positive, default=16384, help="tokens, padding included")
    parser.add_argument("--max-wait", type=float, default=0.0, help="seconds to wait for a fuller batch")
    parser.add_argument("--max-queue", type=_positive, default=4096, help="inputs that may wait")
    parser.add_argument("--max-input-tokens", type=_positive, help="for one input; default: the model's own")
    parser.add_argument("--truncate", action="store_true", help="cut longer inputs instead of refusing them")
    parser.add_argument("--normalize", action="store_true", help="unit vectors, whatever the model does")
    parser.add_argument("--matryoshka", action="store_true", help="allow any `dimensions`")
    parser.add_argument("--trust-remote-code", action="store_true")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


async def _run(options: argparse.Namespace) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop, stop, number)
    metrics = Metrics()
    limits = Limits(
        size=options.max_batch_size,
        tokens=options.max_batch_tokens,
        spare=SPARE["cpu" if options.device == "cpu" else "gpu"],
        wait=options.max_wait,
    )
    scheduler = Scheduler(limits, options.max_queue, metrics)
    service = Service(options.name or options.model, scheduler, metrics)
    runner = web.AppRunner(
        service.application(), handler_cancellation=True, access_log=None, shutdown_timeout=DRAIN_LIMIT
    )
    await runner.setup()
    # Before the model: a port that is taken is told at once, and /health can say that it loads.
    try:
        await web.TCPSite(runner, options.host, options.port).start()
    except OSError as error:
        log.error("cannot listen on %s:%d: %s", options.host, options.port, error)
        return 1
    log.info("listening on http://%s:%d, loading the model", options.host, options.port)
    ended = _load(options, scheduler, service)
    stopped = asyncio.ensure_future(stop.wait())
    both: set[asyncio.Future[Any]] = {ended, stopped}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        reason = ended.exception()
        trace = None if isinstance(reason, LoadError) else reason
        log.error("the model cannot be loaded: %s", reason, exc_info=trace)
        if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no", "off"):
            log.error("HF_HUB_OFFLINE is set: nothing was asked of the hub")
        return 1
    service.draining = True
    await runner.cleanup()
    log.info("every request is answered; ending")
    return 0


def _stop(stop: asyncio.Event, number: signal.Signals) -> None:
    if stop.is_set():
        log.warning("%s again: ending at once", signal.Signals(number).name)
        sys.stderr.flush()
        os._exit(1)
    log.info("%s: finishing the requests in flight", signal.Signals(number).name)
    stop.set()


def _load(options: argparse.Namespace, scheduler: Scheduler, service: Service) -> asyncio.Future[None]:
    began = time.monotonic()

    def load() -> _Loaded:
        return _Loaded(options)

    def loaded(model: object) -> None:
        assert isinstance(model, _Loaded)
        service.loaded(model, model.rules)
        log.info("ready after %.1f s: %s", time.monotonic() - began, model.words)

    return scheduler.start(load, loaded)


def _limit_gpu_memory(torch: Any) -> None:
    """Let torch take no more of each GPU than sagectl reserved."""
    share = os.environ.get(FRACTION)
    if share is None or not torch.cuda.is_available():
        return
    for device in range(torch.cuda.device_count()):
        torch.cuda.set_per_process_memory_fraction(float(share), device)
        log.info("torch may take %.2f%% of GPU %d, as sagectl reserved", 100 * float(share), device)


class _Loaded:
    """The embedder and its rules. Imports torch only when it is made, in the model's thread."""

    def __init__(self, options: argparse.Namespace) -> None:
        log.info("importing torch and sentence-transformers")
        import torch

        from .model import Choice, Embedder

        if options.threads is not None:
            torch.set_num_threads(options.threads)
        if options.device != "cpu":
            _limit_gpu_memory(torch)
        log.info("loading %s on %s", options.model, options.device)
        embedder = Embedder(
            Choice(
                model=options.model,
                device=options.device,
                dtype=options.dtype,
                max_tokens=options.max_input_tokens,
                normalize=options.normalize,
                matryoshka=options.matryoshka,
                trust_remote_code=options.trust_remote_code,
            )
        )
        self.embed = embedder.embed
        self.tokenize = embedder.tokenize
        self.rules = Rules(
            name=options.name or options.model,
            width=embedder.width,
            vocabulary=embedder.vocabulary,
            max_tokens=embedder.max_tokens,
            max_inputs=min(MAX_INPUTS, options.max_queue),
            truncate=options.truncate,
            dimensions=embedder.dimensions,
        )
        threads = f", {torch.get_num_threads()} threads" if embedder.device == "cpu" else ""
        self.words = (
            f"embeddings of {embedder.width} numbers, inputs of up to {embedder.max_tokens} tokens, "
            f"{str(embedder.dtype).removeprefix('torch.')} on {embedder.device}{threads}"
        )
