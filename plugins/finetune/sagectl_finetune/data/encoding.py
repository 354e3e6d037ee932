"""Make tokens of examples, and know which are trained."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from typing import Any, Literal, TypeAlias

from .corpus import Corpus, Cut, Settings, Tokens
from .model import DataError, Example, RowError
from .reading import Rows
from .template import Span, Template, Written, as_chat, bare, common_length, has_template

BATCH = 256
"""Examples whose texts are given to the tokenizer at once: it works on them in parallel."""
MOST = 2**24

Encoded: TypeAlias = tuple[list[int], bytearray]
"""Ids, and a 1 for each that is trained."""


@dataclass(slots=True)
class Prepared:
    """A data set as it is trained on, and what is known about it.

    template: None where nothing was written by one.
    """

    tokens: Tokens
    rows: Rows
    cut: Cut
    template: Template | None
    tokenizer: Any


def tokenise(
    rows: Rows,
    tokenizer: Any,
    max_length: int,
    packing: bool = False,
    pairs: Literal["auto", "chat", "raw"] = "auto",
    stops: Sequence[int] = (),
) -> Prepared:
    """Read all rows and make tokens of them.

    tokenizer: of transformers. Where it has no chat template and the data needs one, it gets ours.
    max_length: tokens; what is longer is cut at its end, texts are divided.
    pairs: how a prompt with its completion is written: `chat` by the chat template, `raw` one after the
    other; `auto` is `chat` where the model has a template of its own, since it is then asked by it.
    stops: tokens at which the model's generation stops (`eos_token_id` of its generation_config.json).
    Raises DataError where rows are bad and are not to be skipped, or nothing would be trained.
    """
    if not 2 <= max_length <= MOST:
        raise DataError(
            f"max_length = {max_length} is no length of a row", f"Write 2 or more, up to {MOST:,}."
        )
    style: Literal["chat", "raw"] = (
        ("chat" if has_template(tokenizer) else "raw") if pairs == "auto" else pairs
    )
    settings = Settings(max_length, packing, rows.named or "auto", style)
    maker = _Maker(rows, tokenizer, settings, tokenizer.convert_ids_to_tokens(list(stops)))
    examples = iter(rows)
    while batch := list(islice(examples, BATCH)):
        maker.add(batch)
    rows.check()
    template = maker.template
    if template is not None and not template.own:
        tokenizer.chat_template = template.source
    return Prepared(
        Tokens(maker.corpus, range(len(maker.corpus)), settings), rows, maker.cut, template, tokenizer
    )


class _Maker:
    def __init__(self, rows: Rows, tokenizer: Any, settings: Settings, stops: Sequence[str]) -> None:
        self.corpus = Corpus()
        self.cut = Cut()
        self.template: Template | None = None
        self._rows = rows
        self._tokenizer = tokenizer
        self._settings = settings
        self._stops = stops
        self._files = {name: index for index, name in enumerate(rows.names())}

    def add(self, examples: Sequence[Example]) -> None:
        """Take examples in; those that cannot be written or would train nothing are rejected."""
        written: list[list[Written]] = []
        for example in examples:
            try:
                written.append(self._write(example))
            except RowError as error:
                self._rows.retract(example, str(error))
                written.append([])
        encoded = iter(encode(self._tokenizer, [text for texts in written for text in texts]))
        for example, texts in zip(examples, written, strict=True):
            made = list(islice(encoded, len(texts)))
            if made:
                self._keep(example, made)

    def _write(self, example: Example) -> list[Written]:
        if not example.messages:
            if example.text or self._settings.pairs == "raw":
                return [bare(example)]
            example = as_chat(example)
        if self.template is None:
            self.template = Template(self._tokenizer, self._stops)
        return self.template.write(example)

    def _keep(self, example: Example, made: list[Encoded]) -> None:
        source = self._files[example.file], example.row
        kept = 0
        for ids, trained in made:
            pieces = list(self._pieces(ids, trained, divide=bool(example.text)))
            self.cut.split += len(pieces) > 1
            for piece, flags in pieces:
                if not any(flags[1:]):
                    self.cut.lost += 1
                    continue
                self.corpus.add(piece, flags, source, len(ids))
                kept += 1
        if not kept:
            self._rows.retract(example, self._nothing_left(made))

    def _pieces(self, ids: list[int], trained: bytearray, divide: bool) -> Iterator[Encoded]:
        most = self._settings.max_length
        if len(ids) <= most or not divide:
            yield ids[:most], trained[:most]
            if len(ids) > most:
                self.cut.rows += 1
                self.cut.tokens += len(ids) - most
                self.cut.trained += sum(trained[most:])
            return
        for start in range(0, len(ids), most):
            # One token alone has nothing before it to be predicted from.
            if start + 1 < len(ids):
                yield ids[start : start + most], trained[start : start + most]

    def _nothing_left(self, made: list[Encoded]) -> str:
        first = min((trained.find(1, 1) for _, trained in made if 1 in trained[1:]), default=-1)
        if first < 0:
            return "nothing of it is trained: what the assistant wrote has no token of its own"
        longest = max(len(ids) for ids, _ in made)
        return (
            f"nothing of it is trained: of its {longest:,} tokens the first {self._settings.max_length:,} "
            f"are kept (max_length), and the assistant's begin at {first + 1:,}"
        )


def encode(tokenizer: Any, written: Sequence[Written]) -> list[Encoded]:
    """Tokens of texts, in their order, and which of them are trained."""
    made: list[Encoded | None] = [None] * len(written)
    for bare_ones in (False, True):
        chosen = [index for index, text in enumerate(written) if text.bare == bare_ones]
        if chosen:
            some = [written[index] for index in chosen]
            for index, one in zip(chosen, _encode_alike(tokenizer, some, bare_ones), strict=True):
                made[index] = one
    return [one for one in made if one is not None]


def _encode_alike(tokenizer: Any, written: Sequence[Written], bare_ones: bool) -> Iterator[Encoded]:
    texts = [text.text for text in written]
    fast = bool(tokenizer.is_fast)
    given = {"return_offsets_mapping": True} if fast else {}
    # Not verbose: it would warn of lengths, which are ours to cut.
    found = tokenizer(texts, add_special_tokens=bare_ones, verbose=False, **given)
    for index, one in enumerate(written):
        ids: list[int] = list(found["input_ids"][index])
        if fast:
            trained = _overlapping(found["offset_mapping"][index], one.spans)
        else:
            trained = _by_lengths(tokenizer, one, ids, bare_ones)
        if bare_ones and tokenizer.eos_token_id is not None:
            if ids[-1:] != [tokenizer.eos_token_id]:
                ids.append(tokenizer.eos_token_id)
                trained.append(1)
            trained[-1] = 1
        yield ids, trained


def _overlapping(offsets: Sequence[Span], spans: Sequence[Span]) -> bytearray:
    """A token belongs to the spans that it has a character of.

    One of no width at p stands for what was trimmed before p: byte-level tokenizers take blanks out
    of offsets.
    """
    trained = bytearray(len(offsets))
    count = len(offsets)
    while count and offsets[count - 1] == (0, 0):
        count -= 1  # what the tokenizer itself put at the end, which is not in order
    for start, end in spans:
        first = bisect_right(offsets, start, hi=count, key=itemgetter(1))
        behind = bisect_left(offsets, end, lo=first, hi=count, key=itemgetter(0))
        while behind < count and offsets[behind] == (end, end):
            behind += 1
        trained[first:behind] = b"\1" * (behind - first)
    return trained


def _by_lengths(tokenizer: Any, written: Written, ids: list[int], bare_ones: bool) -> bytearray:
    """For tokenizers without offsets: a span's tokens are those beyond the tokens of what is before it."""
    trained = bytearray(len(ids))
    for start, end in written.spans:
        before = _prefix(tokenizer, written.text[:start], ids, bare_ones)
        after = _prefix(tokenizer, written.text[:end], ids, bare_ones)
        for index in range(before, after):
            trained[index] = 1
    return trained


def _prefix(tokenizer: Any, text: str, ids: list[int], bare_ones: bool) -> int:
    """How many of `ids` are the same as those of the text's beginning."""
    if not text:
        return 0
    return common_length(tokenizer(text, add_special_tokens=bare_ones, verbose=False)["input_ids"], ids)
