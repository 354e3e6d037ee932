"""Write conversations as the model reads them, and tell which parts of the text the assistant wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, TypeAlias

from .chat_forms import FORMS, Form, check
from .conversations import REASONING
from .model import DataError, Example, Message, RowError

OURS = (
    "{{ bos_token or '' }}"
    "{% if tools %}<|tools|>\n{{ tools | tojson }}\n{% endif %}"
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}"
    "{% if message['tool_calls'] %}<|calls|>{{ message['tool_calls'] | tojson }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
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

    stops: tokens at which the model's generation stops, beside the end-of-text token.
    own: whether it is the tokenizer's.
    marks: whether it marks the assistant's turns itself, with {% generation %}.
    forms: the forms in which it was given messages; see `chat_forms`.
    unrolled: conversations so far that became more than one text, because the template writes earlier turns
    otherwise than the last one.
    mute: conversations so far of which it left reasoning out.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.own = has_template(tokenizer)
        self.marks = False
        self.forms: list[str] = []
        self.unrolled = 0
        self.mute = 0
        self._tokenizer = tokenizer
        self._frozen: dict[bool, str] = {}
        if not self.own and not tokenizer.eos_token:
            raise DataError(
                "The tokenizer has neither a chat template nor an end-of-text token",
                "Give the model's tokenizer_config.json an eos_token, or a chat_template.",
            )
        self._stops = tuple(stop for stop in (tokenizer.eos_token, *stops) if stop)
        added = tokenizer.added_tokens_decoder.values()
        self._added = tuple(token.content for token in added)
        self._special = tuple({*self._stops, *(token.content for token in added if token.special)})

    @property
    def source(self) -> Any:
        """The template as it is saved with the tokenizer."""
        return self._tokenizer.chat_template if self.own else OURS

    def write(self, example: Example) -> list[Written]:
        """The texts of a conversation. Each trained turn is trained in one of them. Raises RowError."""
        refused: RowError | None = None
        # The one that was right for another conversation comes first.
        for name in dict.fromkeys((*self.forms[-1:], *FORMS)):
            try:
                texts = self._written(example, FORMS[name])
            except RowError as error:
                refused = refused or error
                continue
            if name not in self.forms:
                self.forms.append(name)
            self.unrolled += len(texts) > 1
            return texts
        assert refused is not None
        raise refused

    def _written(self, example: Example, form: Form) -> list[Written]:
        given = form(example.messages)
        gone = len(example.messages) - len(given)
        trained = [index - gone for index in example.trained]
        tools = list(example.tools)
        marked = self._by_generation(given, trained, tools)
        texts = [marked] if marked is not None else self._by_prefixes(given, trained, tools)
        self.marks = self.marks or marked is not None
        said = "\n".join(text.text[start:end] for text in texts for start, end in text.spans)
        check(example.messages, example.trained, said)
        reasons = (example.messages[index].get(key) for index in example.trained for key in REASONING)
        self.mute += any(reason.strip() not in said for reason in reasons if reason)
        return [self._ended(text) for text in texts]

    def _ended(self, written: Written) -> Written:
        """Up to the end of the last trained turn, with an end-of-text token if the template writes no end:
        without it the model would learn never to stop."""
        start, end = written.spans[-1]
        text = written.text[:end]
        stop = self._tokenizer.eos_token
        if not stop or written.text[end:].strip() or text[start:].rstrip().endswith(self._special):
            return Written(text, written.spans)
        return Written(text + stop, (*written.spans[:-1], (start, end + len(stop))))

    # --- the template says it itself -----------------------------------------------------------

    def _by_generation(self, messages: list[Message], trained: list[int], tools: list[Any]) -> Written | None:
        template = self._template(bool(tools))
        if not _GENERATION.search(template):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            texts, found = render_jinja_template(
                conversations=[messages],
                tools=tools or None,
                chat_template=template,
                return_assistant_tokens_mask=True,
                add_generation_prompt=False,
                **self._tokenizer.special_tokens_map,
            )
        except Exception as error:  # templates are programs, and raise what they like
            raise _refused(error) from None
        spans = [(start, end) for start, end in found[0] if end > start]
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if len(spans) != len(turns) and (not spans or len(trained) != len(turns)):
            # It marks more or less than the turns: which one is to be left untrained is not known.
            return None
        if len(trained) != len(turns):
            spans = [span for turn, span in zip(turns, spans, strict=True) if turn in trained]
        return Written(texts[0], tuple(self._with_stop(texts[0], span) for span in spans))

    def _with_stop(self, text: str, span: Span) -> Span:
        """Marks that leave out the token that ends the turn would teach the model never to stop."""
        start, end = span
        if text[start:end].rstrip().endswith(self._special):
            return span
        return start, end + max((len(stop) for stop in self._stops if text.startswith(stop, end)), default=0)

    # --- by what each turn adds ----------------------------------------------------------------

    def _by_prefixes(self, messages: list[Message], trained: list[int], tools: list[Any]) -> list[Written]:
        """What a turn adds to the conversation before it, as the template writes both.

        A template may write earlier turns otherwise than the last (Qwen3 takes the reasoning out of them).
        What the model then sees when it writes such a turn is the conversation that ends with it, which
        becomes a text of its own.
        """
        turns = {index: self._turn(messages, index, tools) for index in trained}
        written: list[Written] = []
        left = list(trained)
        while left:
            whole = turns[left[-1]][0]
            spans: dict[int, Span] = {}
            for index in left:
                text, start = turns[index]
                # Phi-3's ends every conversation, and none in its midst.
                begun = text if index == left[-1] else text.removesuffix(self._tokenizer.eos_token or "")
                if whole.startswith(text) or (len(begun) > start and whole.startswith(begun)):
                    end = len(text) if whole.startswith(text) else len(begun)
                    spans[index] = self._without_tail(whole, (start, end))
            left = [index for index in left if index not in spans]
            written.append(Written(whole, tuple(spans.values())))
        written.reverse()
        return written

    def _turn(self, messages: list[Message], index: int, tools: list[Any]) -> tuple[str, int]:
        """The conversation that ends with a turn, and where in it begins what the model writes."""
        text = self._render(messages[: index + 1], tools)
        invited = self._render(messages[:index], tools, prompt=True)
        if text.startswith(invited):
            return text, len(invited)
        # The invitation may hold what the answer need not, such as the start of reasoning.
        before = self._render(messages[:index], tools)
        if not text.startswith(before):
            raise RowError(
                f"message {index + 1}: once this turn is there, the model's chat template writes what comes "
                "before it otherwise, so that what the assistant wrote cannot be told apart; a template that "
                "marks it with {% generation %} would tell"
            )
        common = text[: common_length(text, invited)]
        bounds = [common.rfind(mark) + len(mark) for mark in (*self._added, "\n") if mark in common]
        return text, max(len(before), *bounds) if bounds else len(before)

    def _without_tail(self, text: str, span: Span) -> Span:
        """Without the line break after the token that ends the turn: nothing is generated after that."""
        start, end = span
        stripped = len(text[start:end].rstrip()) + start
        return (start, stripped) if text[start:stripped].endswith(self._special) else span

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


def has_template(tokenizer: Any) -> bool:
    """Whether it has a chat template of its own: that of a resumed job may have been saved with ours."""
    return bool(tokenizer.chat_template) and tokenizer.chat_template != OURS


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How much of their beginnings is the same."""
    for index, (here, there) in enumerate(zip(one, other, strict=False)):
        if here != there:
            return index
    return min(len(one), len(other))


def _refused(error: Exception) -> RowError:
    said = " ".join(str(error).split())[:300]
    return RowError(f"the model's chat template refuses it: {said or type(error).__name__}")


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
