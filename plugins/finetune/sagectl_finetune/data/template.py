"""Write conversations as the model reads them, and tell which parts of the text the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeAlias

from .model import DataError, Example, Message, RowError

OURS = (
    "{{ bos_token or '' }}"
    "{% if tools %}<|tools|>\n{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['tool_calls'] %}<|calls|>{{ message['tool_calls'] | tojson }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""For a model without a chat template. Like ChatML, but it needs no new tokens: the markers are plain text,
and an assistant's turn ends with the model's own end-of-text token, at which every server stops."""

TODAY = datetime(2025, 1, 1)
"""What templates that write the date get: with the real one a resumed job would train on other tokens."""

_DATE = re.compile(r"""strftime_now\(\s*(?:'([^']*)'|"([^"]*)")\s*\)""")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")

Span: TypeAlias = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Written:
    """A text of which the characters in `spans` are trained.

    bare: no template wrote it; the tokenizer adds what it puts around a text, and an end-of-text token
    follows, which is trained.
    """

    text: str
    spans: tuple[Span, ...]
    bare: bool = False


class Template:
    """A tokenizer's chat template, or ours where it has none.

    own: whether it is the tokenizer's.
    marks: whether it marks the assistant's turns itself, with {% generation %}.
    unrolled: conversations so far that became more than one text, because the template writes earlier turns
    otherwise than the last one.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.own = bool(tokenizer.chat_template)
        self.marks = False
        self.unrolled = 0
        self._tokenizer = tokenizer
        self._frozen: dict[bool, str] = {}
        if not self.own and not tokenizer.eos_token:
            raise DataError(
                "The tokenizer has neither a chat template nor an end-of-text token",
                "Give the model's tokenizer_config.json an eos_token, or a chat_template.",
            )
        self._ends = _ends(tokenizer)

    @property
    def source(self) -> Any:
        """The template as it is saved with the tokenizer."""
        return self._tokenizer.chat_template if self.own else OURS

    def write(self, example: Example) -> list[Written]:
        """The texts of a conversation. Each trained turn is trained in one of them. Raises RowError."""
        tools = list(example.tools)
        by_template = self._by_generation(example, tools)
        if by_template is not None:
            self.marks = True
            return [by_template]
        return self._by_prefixes(example, tools)

    # --- the template says it itself -----------------------------------------------------------

    def _by_generation(self, example: Example, tools: list[Any]) -> Written | None:
        template = self._template(bool(tools))
        if not _GENERATION.search(template):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, found = render_jinja_template(
                conversations=[list(example.messages)],
                tools=tools or None,
                chat_template=template,
                return_assistant_tokens_mask=True,
                add_generation_prompt=False,
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # templates are programs, and raise what they like
            raise _refused(error) from None
        spans = [(start, end) for start, end in found[0] if end > start]
        turns = [index for index, message in enumerate(example.messages) if message["role"] == "assistant"]
        if len(spans) != len(turns):
            # It marks more or less than the turns: who said which is not known where some are not trained.
            if not spans or len(example.trained) != len(turns):
                return None
            turns = list(range(len(spans)))
            wanted = set(turns)
        else:
            wanted = set(example.trained)
        text = texts[0]
        kept = [self._with_end(text, span) for turn, span in zip(turns, spans, strict=True) if turn in wanted]
        return Written(text, tuple(kept))

    def _with_end(self, text: str, span: Span) -> Span:
        """A template that leaves the end token out would teach the model never to stop."""
        for end in self._ends:
            if text.startswith(end, span[1]) and not text.endswith(end, *span):
                return span[0], span[1] + len(end)
        return span

    # --- by what each turn adds ----------------------------------------------------------------

    def _by_prefixes(self, example: Example, tools: list[Any]) -> list[Written]:
        """What a turn adds to the conversation before it, as the template writes both.

        A template may write earlier turns otherwise than the last (Qwen3 takes the reasoning out of them).
        What the model then sees when it writes such a turn is the conversation that ends with it, which
        becomes a text of its own.
        """
        turns = {
            index: (
                self._render(example.messages[:index], tools, prompt=True),
                self._render(example.messages[: index + 1], tools),
            )
            for index in example.trained
        }
        written: list[Written] = []
        left = list(example.trained)
        while left:
            last = left[-1]
            text = turns[last][1]
            spans: dict[int, Span] = {}
            for index in left:
                before, after = turns[index]
                if text.startswith(after) and after.startswith(before):
                    spans[index] = self._without_tail(text, (len(before), len(after)))
            if last not in spans:
                spans[last] = self._difference(example, last, tools, turns[last])
            left = [index for index in left if index not in spans]
            written.append(Written(text, tuple(spans[index] for index in sorted(spans))))
        self.unrolled += len(written) > 1
        written.reverse()
        return written

    def _difference(self, example: Example, index: int, tools: list[Any], turn: tuple[str, str]) -> Span:
        """Where the invitation to answer is no prefix of the answer, the conversation before it may be."""
        before = self._render(example.messages[:index], tools)
        if not turn[1].startswith(before):
            raise RowError(
                f"message {index + 1}: once this turn is there, the model's chat template writes what comes "
                "before it otherwise, so that what the assistant wrote cannot be told apart; a template that "
                "marks it with {% generation %} would tell"
            )
        return self._without_tail(turn[1], (len(before), len(turn[1])))

    def _without_tail(self, text: str, span: Span) -> Span:
        """Without the line break after the end token: nothing is generated after that."""
        start, end = span
        stripped = len(text[start:end].rstrip()) + start
        return (start, stripped) if text[start:stripped].endswith(self._ends) else span

    def _render(self, messages: Sequence[Message], tools: list[Any], prompt: bool = False) -> str:
        if not messages:
            # Most templates cannot write nothing; the start of the text is before the first turn.
            return ""
        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages),
                tools=tools or None,
                chat_template=self._template(bool(tools)),
                add_generation_prompt=prompt,
                tokenize=False,
            )
        except Exception as error:  # templates are programs, and raise what they like
            raise _refused(error) from None
        return text

    def _template(self, with_tools: bool) -> str:
        if with_tools not in self._frozen:
            found = OURS
            if self.own:
                found = self._tokenizer.get_chat_template(None, tools=[{}] if with_tools else None)
            self._frozen[with_tools] = frozen(found)
        return self._frozen[with_tools]


def _refused(error: Exception) -> RowError:
    said = " ".join(str(error).split())[:300]
    return RowError(f"the model's chat template refuses it: {said or type(error).__name__}")


def _ends(tokenizer: Any) -> tuple[str, ...]:
    """What may end a turn: the end-of-text token first, then the other special ones."""
    others = [token for token in tokenizer.all_special_tokens if token != tokenizer.bos_token]
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(dict.fromkeys(end for end in (tokenizer.eos_token, *others, *added) if end))


def frozen(template: str) -> str:
    """The template with a fixed date for the present one."""
    formats = {first or second for first, second in _DATE.findall(template)}
    if not formats:
        return template
    known: Mapping[str, str] = {form: TODAY.strftime(form) for form in sorted(formats)}
    return f"{{%- macro strftime_now(format) -%}}{{{{ {known!r}[format] }}}}{{%- endmacro +%}}{template}"


def bare(example: Example) -> Written:
    """A text, or a prompt with its completion, as they are."""
    if example.text:
        return Written(example.text, ((0, len(example.text)),), bare=True)
    text = f"{example.prompt}{example.separator}{example.completion}"
    return Written(text, ((len(text) - len(example.completion), len(text)),), bare=True)


def as_chat(example: Example) -> Example:
    """A prompt with its completion as a question with its answer."""
    said = ({"role": "user", "content": example.prompt}, {"role": "assistant", "content": example.completion})
    return replace(example, messages=said, trained=(1,), prompt="", completion="")
