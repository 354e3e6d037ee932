"""Which tokens are trained, with real tokenizers and chat templates; in an interpreter with transformers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.heavy

PLUGINS = Path(__file__).parents[2] / "plugins"
# Loaded by itself, as the trainer does: the interpreter has nothing else of ours.
PROGRAM = """
import json, sys
sys.path[:0] = sys.argv[1:]
import data
import starter

assert "torch" not in sys.modules
asked = json.load(sys.stdin)
tokenizer = starter.build_tokenizer()
tokenizer.add_special_tokens({"additional_special_tokens": asked["special"]})
tokenizer.chat_template = asked["template"]
if "eos" in asked:
    tokenizer.eos_token = asked["eos"]
if asked["trimmed"]:
    from tokenizers import processors
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
if asked["slow"]:
    class Slow(type(tokenizer)):
        is_fast = False
        def __call__(self, text, return_offsets_mapping=False, **given):
            assert not return_offsets_mapping
            return super().__call__(text, **given)
    tokenizer.__class__ = Slow
try:
    rows = data.read(asked["path"], skip_bad_rows=asked["skip_bad_rows"])
    made = data.tokenise(rows, tokenizer, **asked["settings"])
except data.DataError as error:
    json.dump({"error": str(error)}, sys.stdout)
    sys.exit()

def runs(row):
    found, last = [], False
    for token, label in zip(row["input_ids"], row["labels"]):
        assert label in (token, data.UNTRAINED)
        if label != data.UNTRAINED:
            found += [] if last else [[]]
            found[-1].append(token)
        last = label != data.UNTRAINED
    return [tokenizer.decode(run) for run in found]

rows_made = [made.tokens[index] for index in range(len(made.tokens))]
json.dump({
    "texts": [tokenizer.decode(row["input_ids"]) for row in rows_made],
    "trained": [runs(row) for row in rows_made],
    "lengths": [row["seq_lengths"] for row in rows_made],
    "report": data.report(made),
    "again": data.sha256(data.tokenise(rows, tokenizer, **asked["settings"])),
    "template": tokenizer.chat_template,
}, sys.stdout)
"""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{% endgeneration %}<|im_end|>\n"
    "{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Qwen3's: only the last answer has room for reasoning.
REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content or '' }}\n</think>\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek's: the invitation holds the start of reasoning, which the answer has not.
INVITING = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
# As Phi-3's: the end of the conversation has a token of its own.
ENDED = CHATML.replace("{% if add", "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% if add")
ENDLESS = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
PARTS = CHATML.replace("{{ m.content }}", "{% for p in m.content %}{{ p.text }}{% endfor %}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system here') }}{% endif %}" + CHATML
CALLING = CHATML.replace(
    "{{ m.content }}",
    "{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name + '=' + c.function.arguments }}{% endfor %}",
)
DATED = "Today is {{ strftime_now('%d %B %Y') }}.\n" + CHATML

Q1, Q2 = {"role": "user", "content": "One?"}, {"role": "user", "content": "Two\n?"}
A1, A2 = {"role": "assistant", "content": " Ünö 🙂"}, {"role": "assistant", "content": "Two.\n"}
SYSTEM = {"role": "system", "content": "Be brief."}
LONG = {"messages": [SYSTEM, Q1, A1, Q2, A2]}


def tokenise(
    python: str,
    path: Path,
    rows: list[Any] | str,
    template: str | None = CHATML,
    skip_bad_rows: bool = False,
    slow: bool = False,
    trimmed: bool = False,
    special: tuple[str, ...] = (),
    max_length: int = 512,
    **settings: Any,
) -> Any:
    """What becomes of rows, in the engine's interpreter."""
    file = path / ("data.txt" if isinstance(rows, str) else "data.jsonl")
    file.write_text(rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n" for row in rows))
    asked = {
        "path": str(file),
        "template": template,
        "skip_bad_rows": skip_bad_rows,
        "slow": slow,
        "trimmed": trimmed,
        "special": list(special),
        "settings": {"max_length": max_length, **settings},
    }
    done = subprocess.run(
        [python, "-c", PROGRAM, str(PLUGINS / "finetune/sagectl_finetune"), str(PLUGINS / "llm/sagectl_llm")],
        input=json.dumps(asked),
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize(
    ("template", "marks"), [(CHATML, "prefixes"), (MARKED, "generation")], ids=["plain", "marked"]
)
def test_the_trained_text_is_what_the_assistant_wrote(
    transformers_python: str, tmp_path: Path, template: str, marks: str, slow: bool
) -> None:
    found = tokenise(transformers_python, tmp_path, [LONG] * 3, template, slow=slow)
    assert found["trained"] == [[" Ünö 🙂<|im_end|>", "Two.\n<|im_end|>"]] * 3
    assert found["texts"][0] == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\n Ünö 🙂<|im_end|>\n<|im_start|>user\nTwo\n?<|im_end|>\n"
        "<|im_start|>assistant\nTwo.\n<|im_end|>"
    )
    report = found["report"]
    assert report["template"]["marks"] == marks
    assert (report["rows"], report["bad"], report["format"]) == (3, 0, "messages")
    # Each byte is a token, and so is each marker.
    assert report["tokens_trained"] == 3 * (len(" Ünö 🙂".encode()) + 1 + len("Two.\n") + 1)
    assert report["share_trained"] == round(report["tokens_trained"] / report["tokens"], 4)
    assert found["again"] == report["sha256"]


def test_a_turn_without_weight_is_not_trained(transformers_python: str, tmp_path: Path) -> None:
    rows = [{"messages": [Q1, {**A1, "weight": 0}, Q2, A2]}]
    for template in (CHATML, MARKED):
        assert tokenise(transformers_python, tmp_path, rows, template)["trained"] == [["Two.\n<|im_end|>"]]


def test_a_template_that_changes_earlier_turns_makes_a_text_of_each(
    transformers_python: str, tmp_path: Path
) -> None:
    rows = [{"messages": [Q1, {**A1, "reasoning_content": "Hm."}, Q2, A2]}, {"messages": [Q1, A1]}]
    found = tokenise(transformers_python, tmp_path, rows, REASONING)
    assert found["trained"] == [
        ["<think>\nHm.\n</think>\n Ünö 🙂<|im_end|>"],
        ["<think>\n\n</think>\nTwo.\n<|im_end|>"],
        ["<think>\n\n</think>\n Ünö 🙂<|im_end|>"],
    ]
    # What the model sees before it writes the second answer is the first without its reasoning.
    assert "Hm." not in found["texts"][1]
    assert found["report"]["template"]["unrolled"] == 1
    assert found["report"]["sequences"] == 3
    assert found["report"]["rows"] == 2


@pytest.mark.parametrize(
    "template", [INVITING, ENDED, PARTS, NO_SYSTEM], ids=["inviting", "ended", "parts", "system"]
)
def test_templates_of_other_manners(transformers_python: str, tmp_path: Path, template: str) -> None:
    found = tokenise(transformers_python, tmp_path, [LONG], template)
    end = "<|im_end|>\n<|im_end|>" if template == ENDED else "<|im_end|>"
    assert found["trained"] == [[" Ünö 🙂<|im_end|>", f"Two.\n{end}"]]
    assert "Be brief." in found["texts"][0]
    form = {PARTS: "text as parts", NO_SYSTEM: "system text in the first user turn"}.get(template, "plain")
    assert found["report"]["template"]["forms"] == [form]


def test_a_template_that_ends_no_turn_gets_an_end(transformers_python: str, tmp_path: Path) -> None:
    found = tokenise(transformers_python, tmp_path, [{"messages": [Q1, A1]}], ENDLESS)
    assert found["trained"] == [["assistant:  Ünö 🙂\n<|im_end|>"]]


def test_a_stop_of_the_model_belongs_to_the_turn(transformers_python: str, tmp_path: Path) -> None:
    template = MARKED.replace("<|im_end|>", "<|stop|>")
    rows = [{"messages": [Q1, A1]}]
    special = ("<|stop|>",)
    # 259 is the first token that is added to the starter's 256 bytes and 3 markers.
    found = tokenise(transformers_python, tmp_path, rows, template, special=special, stops=[259])
    assert found["trained"] == [[" Ünö 🙂<|stop|>"]]


def test_arguments_of_calls_are_written_as_the_template_wants_them(
    transformers_python: str, tmp_path: Path
) -> None:
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "add", "arguments": '{"a": "ü"}'}}]}
    rows = [{"messages": [Q1, call, {"role": "tool", "content": "2"}, A2]}]
    found = tokenise(transformers_python, tmp_path, rows, CALLING)
    assert found["trained"] == [['add={"a": "ü"}<|im_end|>', "Two.\n<|im_end|>"]]
    refused = tokenise(transformers_python, tmp_path, rows, CHATML)
    assert (
        "data.jsonl:1: the model's chat template leaves out the tool calls of message 2" in refused["error"]
    )


def test_what_a_template_refuses_is_a_bad_row(transformers_python: str, tmp_path: Path) -> None:
    template = "{% if messages | length > 2 %}{{ raise_exception('Too much is said') }}{% endif %}" + CHATML
    rows = [{"messages": [Q1, A1]}, LONG]
    refused = tokenise(transformers_python, tmp_path, rows, template)
    assert "data.jsonl:2: the model's chat template refuses it: Too much is said" in refused["error"]
    found = tokenise(transformers_python, tmp_path, rows, template, skip_bad_rows=True)
    assert found["report"]["bad_rows"][0]["row"] == 2
    assert found["report"]["rows"] == 2
    assert len(found["trained"]) == 1


def test_a_model_without_a_template_gets_one(transformers_python: str, tmp_path: Path) -> None:
    found = tokenise(transformers_python, tmp_path, [LONG], None)
    assert found["trained"] == [[" Ünö 🙂<|im_end|>", "Two.\n<|im_end|>"]]
    assert found["texts"] == [
        "<|system|>\nBe brief.\n<|user|>\nOne?\n<|assistant|>\n Ünö 🙂<|im_end|>\n"
        "<|user|>\nTwo\n?\n<|assistant|>\nTwo.\n<|im_end|>"
    ]
    assert found["report"]["template"]["name"] == "sagectl"
    # It is saved with the tokenizer, so that the model is served with it.
    assert "<|assistant|>" in found["template"]
    # A resumed job may have that tokenizer at hand.
    assert found["again"] == found["report"]["sha256"]


def test_the_date_in_a_template_stands_still(transformers_python: str, tmp_path: Path) -> None:
    found = tokenise(transformers_python, tmp_path, [{"messages": [Q1, A1]}], DATED)
    assert found["texts"][0].startswith("Today is 01 January 2025.\n<|im_start|>")
    assert "strftime_now('%d %B %Y')" in found["template"]


def test_prompts_with_completions(transformers_python: str, tmp_path: Path) -> None:
    rows = [{"prompt": "One? ", "completion": "Two."}]
    chat = tokenise(transformers_python, tmp_path, rows)
    assert chat["texts"] == ["<|im_start|>user\nOne? <|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>"]
    raw = tokenise(transformers_python, tmp_path, rows, None)
    assert raw["texts"] == ["One? Two.<|im_end|>"]
    assert chat["trained"] == raw["trained"] == [["Two.<|im_end|>"]]
    assert tokenise(transformers_python, tmp_path, rows, pairs="raw")["texts"] == raw["texts"]
    asked = [{"question": "One?", "answer": "Two."}]
    assert tokenise(transformers_python, tmp_path, asked, None)["texts"] == ["One?\nTwo.<|im_end|>"]


def test_a_text_is_trained_whole_and_divided_where_it_is_long(
    transformers_python: str, tmp_path: Path
) -> None:
    found = tokenise(transformers_python, tmp_path, "0123456789\nabc", max_length=8)
    assert found["texts"] == ["01234567", "89<|im_end|>", "abc<|im_end|>"]
    # The first token of a sequence has nothing before it to be predicted from.
    assert found["trained"] == [["1234567"], ["9<|im_end|>"], ["bc<|im_end|>"]]
    cut = found["report"]["truncated"]
    assert (cut["split"], cut["rows"], cut["tokens"]) == (1, 0, 0)
    assert found["report"]["longest"][0] == {"file": "data.txt", "row": 1, "tokens": 11}


def test_what_is_cut_off_is_counted_and_what_trains_nothing_refused(
    transformers_python: str, tmp_path: Path
) -> None:
    late = {"messages": [{"role": "user", "content": "Q" * 40}, {"role": "assistant", "content": "A"}]}
    half = {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A" * 60}]}
    rows = [half, late]
    refused = tokenise(transformers_python, tmp_path, rows, max_length=40)
    assert (
        "data.jsonl:2: nothing of it is trained: of its 61 tokens the first 40 are kept (max_length), "
        "and the assistant's begin at 60" in refused["error"]
    )
    found = tokenise(transformers_python, tmp_path, rows, max_length=40, skip_bad_rows=True)
    report = found["report"]
    assert found["trained"] == [["A" * 20]]
    assert report["truncated"] == {"rows": 2, "tokens": 62, "trained": 43, "lost": 1, "split": 0}
    assert report["bad"] == 1
    alone = tokenise(transformers_python, tmp_path, [late], max_length=40, skip_bad_rows=True)
    assert "Nothing in the data can be trained on: all 1 rows are bad" in alone["error"]


def test_packed_rows_hold_the_same_training(transformers_python: str, tmp_path: Path) -> None:
    rows = [
        {"messages": [Q1, {"role": "assistant", "content": str(number) * (number % 50 + 1)}]}
        for number in range(60)
    ]
    loose = tokenise(transformers_python, tmp_path, rows, max_length=256)
    packed = tokenise(transformers_python, tmp_path, rows, max_length=256, packing=True)
    assert sorted(turn for row in loose["trained"] for turn in row) == sorted(
        turn for row in packed["trained"] for turn in row
    )
    assert packed["report"]["tokens"] == loose["report"]["tokens"]
    assert packed["report"]["packed"]["rows"] == len(packed["texts"]) < 30
    assert packed["report"]["packed"]["fill"] > 0.9
    assert all(sum(lengths) <= 256 for lengths in packed["lengths"])
    one, other = loose["report"]["sha256"], packed["report"]["sha256"]
    assert one["data"] == other["data"]
    assert one["tokenizer"] == other["tokenizer"]
    assert one["settings"] != other["settings"]
    assert one["all"] != other["all"]


def test_blanks_that_a_tokenizer_trims_from_its_offsets_stay_on_their_side(
    transformers_python: str, tmp_path: Path
) -> None:
    found = tokenise(transformers_python, tmp_path, [LONG], trimmed=True)
    assert found["trained"] == [[" Ünö 🙂<|im_end|>", "Two.\n<|im_end|>"]]
    pair = [{"prompt": "One?  ", "completion": "Two. "}]
    raw = tokenise(transformers_python, tmp_path, pair, None, trimmed=True)
    assert raw["trained"] == [["Two. <|im_end|>"]]
