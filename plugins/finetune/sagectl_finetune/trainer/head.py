"""The loss in tiles of tokens, of the trained ones only: all logits at once would be most of a step's memory.

A tile's gradient is computed together with its loss, so that its logits can go before the next ones come.
What a model does to its logits (scaling, capping) is left to the model's own code, which is run on a tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast, MoeModelOutputWithPast

from sagectl_finetune.trainer.rows import IGNORED

BYTES = 8
"""Of a logit, while a tile's gradient is computed: itself, its probability and its gradient."""
TILE = 256 << 20
"""Bytes of a tile's logits; `training_memory` counts on it."""
LEAST = 128
"""Tokens of a tile, however many words there are: fewer keep no processor busy."""
TILE_ON_CPU = 16 << 20
"""Larger ones are slower there."""
_SMALL = 64.0
"""What gradients in float16 are multiplied by meanwhile, lest small ones vanish."""

Tail = Callable[[Tensor], Tensor]


def fuse(model: Any) -> bool:
    """Have a model compute its loss in tiles where it is given labels; whether it can.

    model: of transformers, not yet wrapped. It is tried: its loss in tiles has to be the one it computes.
    """
    prefix = model.base_model_prefix
    if prefix not in model._modules or getattr(model.config.get_text_config(), "output_router_logits", False):
        return False
    plain, fused = model.forward, _Fused(model, prefix)
    rows = torch.arange(1, 25).reshape(2, 12) % min(200, int(model.config.get_text_config().vocab_size))
    rows = rows.to(model.device)
    labels = rows.clone()
    labels[:, :5] = IGNORED
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            wanted, found = (float(each(input_ids=rows, labels=labels).loss) for each in (plain, fused))
    except (AttributeError, KeyError, TypeError, ValueError):
        return False  # its code asks its own backbone for more than a tile
    finally:
        model.train(training)
    if not abs(found - wanted) <= 0.01 * abs(wanted):
        return False
    model.forward = fused
    return True


class _Fused:
    """Stands for a model's `forward`."""

    def __init__(self, model: Any, prefix: str) -> None:
        self._model, self._prefix, self._plain = model, prefix, model.forward
        self.__wrapped__ = model.forward  # whoever looks at its parameters sees the model's

    def __call__(
        self, *args: Any, labels: Tensor | None = None, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        if labels is None:
            return self._plain(*args, **kwargs)
        where, targets = kwargs.pop("where", None), kwargs.pop("targets", None)
        if where is None or targets is None:
            where, targets = chosen(labels)
        hidden = self._model._modules[self._prefix](*args, **kwargs).last_hidden_state
        rows = hidden.flatten(0, 1).index_select(0, where)
        head = self._model.get_output_embeddings()
        parameters = [one for one in head.parameters() if one.requires_grad]
        size = _tile(rows, int(head.weight.shape[0]))
        if torch.is_grad_enabled():
            loss = _Tiles.apply(rows, targets, self._tail, size, *parameters)
        else:
            tiles = zip(rows.split(size), targets.split(size), strict=True)
            loss = torch.stack([_loss(self._tail(tile), words)[0] for tile, words in tiles]).sum()
        count = len(targets) if num_items_in_batch is None else num_items_in_batch
        return CausalLMOutputWithPast(loss=loss / count)

    def _tail(self, tile: Tensor) -> Tensor:
        """What the model makes of a tile of its backbone's output."""
        with _in_place_of(self._model, self._prefix, _Given(tile[None])):
            logits: Tensor = self._plain(inputs_embeds=tile[None]).logits[0]
        return logits


class _Output(MoeModelOutputWithPast):  # type: ignore[misc]
    """Has nothing else, whatever a model asks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


class _Given(nn.Module):  # type: ignore[misc]
    """A backbone whose output is known."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self._hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> _Output:
        return _Output(last_hidden_state=self._hidden)


@contextmanager
def _in_place_of(model: Any, name: str, other: nn.Module) -> Iterator[None]:
    own = model._modules[name]
    model._modules[name] = other
    try:
        yield
    finally:
        model._modules[name] = own


class _Tiles(torch.autograd.Function):  # type: ignore[misc]
    """The sum of the losses of all rows. parameters: those of the head that are trained."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, targets: Tensor, tail: Tail, size: int, *parameters: Tensor
    ) -> Tensor:
        scale = _SMALL if rows.dtype == torch.float16 else 1.0
        gradient = torch.empty_like(rows)
        sums = [torch.zeros_like(one) for one in parameters]
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        for begin in range(0, len(targets), size):
            part = slice(begin, begin + size)
            with torch.enable_grad():
                tile = rows[part].detach().requires_grad_()
                logits = tail(tile)
            loss, slope = _loss(logits, targets[part], slope=True)
            total += loss
            slope = slope.mul_(scale).to(logits.dtype)
            found = torch.autograd.grad(logits, [tile, *parameters], slope)
            gradient[part] = found[0]
            for one, more in zip(sums, found[1:], strict=True):
                one += more
        ctx.scale = scale
        ctx.save_for_backward(gradient, *sums)
        return total

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> Any:
        gradient, *sums = ctx.saved_tensors
        factor = factor / ctx.scale
        return gradient * factor, None, None, None, *(one.mul_(factor) for one in sums)


def _loss(logits: Tensor, targets: Tensor, slope: bool = False) -> tuple[Tensor, Tensor]:
    """The sum of the losses, and its gradient by the logits in float32 where it is asked for."""
    with torch.no_grad():
        logs = torch.log_softmax(logits, -1, dtype=torch.float32)
        index = targets[:, None]
        loss = -logs.gather(1, index).sum()
        if slope:
            logs.exp_().scatter_add_(1, index, logs.new_full(index.shape, -1.0))
    return loss, logs


def chosen(labels: Tensor) -> tuple[Tensor, Tensor]:
    """The positions, in all rows one after the other, whose next token is trained; and those tokens."""
    following = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED).flatten()
    where = (following != IGNORED).nonzero().flatten()
    return where, following[where]


def _tile(rows: Tensor, words: int) -> int:
    size = TILE_ON_CPU if rows.device.type == "cpu" else TILE
    return max(LEAST, size // (BYTES * words))
