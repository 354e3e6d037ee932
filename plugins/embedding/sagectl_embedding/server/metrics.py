"""Counters, gauges and histograms in Prometheus's text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
TOKENS = (16, 64, 256, 1024, 4096, 16384, 65536, 262144)


class Counter:
    """Only grows; by label where it has one."""

    type = "counter"

    def __init__(self, label: str = "") -> None:
        self._label = label
        self._values: dict[str, float] = {} if label else {"": 0}

    def add(self, amount: float = 1, value: str = "") -> None:
        """Count. `value` is the label's."""
        self._values[value] = self._values.get(value, 0) + amount

    def samples(self) -> Iterator[tuple[str, float]]:
        """(suffix with labels, value)."""
        for value, amount in sorted(self._values.items()):
            yield (f'{{{self._label}="{value}"}}' if self._label else ""), amount


class Gauge:
    """What a function says now."""

    type = "gauge"

    def __init__(self, read: Callable[[], float]) -> None:
        self._read = read

    def samples(self) -> Iterator[tuple[str, float]]:
        """(suffix with labels, value)."""
        yield "", self._read()


class Histogram:
    """How values are spread over buckets, each up to its bound."""

    type = "histogram"

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[tuple[str, float]]:
        """(suffix with labels, value)."""
        total = 0
        for bound, count in zip((*self._bounds, "+Inf"), self._counts, strict=True):
            total += count
            text = bound if isinstance(bound, str) else f"{bound:g}"
            yield f'_bucket{{le="{text}"}}', total
        yield "_sum", self._sum
        yield "_count", total


class Metrics:
    """Everything that /metrics shows. `lock` guards what the model's thread and the loop both touch."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.requests = Counter("status")
        self.inputs = Counter()
        self.tokens = Counter()
        self.padding = Counter()
        self.withdrawn = Counter()
        self.failures = Counter()
        self.request_seconds = Histogram(SECONDS)
        self.queue_seconds = Histogram(SECONDS)
        self.batch_seconds = Histogram(SECONDS)
        self.batch_inputs = Histogram(COUNTS)
        self.batch_tokens = Histogram(TOKENS)
        self._gauges: dict[str, tuple[str, Gauge]] = {}

    def gauge(self, name: str, help: str, read: Callable[[], float]) -> None:
        """Show what `read` says."""
        self._gauges[name] = (help, Gauge(read))

    def text(self) -> str:
        """The whole page."""
        with self.lock:
            return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        known: dict[str, tuple[str, Counter | Gauge | Histogram]] = {
            "requests_total": ("Requests answered, by HTTP status.", self.requests),
            "request_seconds": ("From a request's arrival to its answer.", self.request_seconds),
            "inputs_total": ("Inputs embedded.", self.inputs),
            "tokens_total": ("Tokens embedded, without padding.", self.tokens),
            "padding_tokens_total": ("Tokens computed for padding.", self.padding),
            "withdrawn_inputs_total": ("Inputs whose client left before their turn.", self.withdrawn),
            "batch_failures_total": ("Batches that the model failed to compute.", self.failures),
            "queue_seconds": ("From an input's arrival in the queue to its batch.", self.queue_seconds),
            "batch_seconds": ("Computing one batch.", self.batch_seconds),
            "batch_inputs": ("Inputs in a batch.", self.batch_inputs),
            "batch_tokens": ("Tokens in a batch, padding included.", self.batch_tokens),
            **self._gauges,
        }
        for name, (help_, metric) in known.items():
            yield f"# HELP embedding_{name} {help_}"
            yield f"# TYPE embedding_{name} {metric.type}"
            for suffix, value in metric.samples():
                yield f"embedding_{name}{suffix} {value:.15g}"
