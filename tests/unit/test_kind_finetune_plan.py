"""How the kind `finetune` launches its trainer, reads its progress and explains its end."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from sagectl.plugin import (
    Diagnosis,
    EngineRequest,
    ExitStatus,
    Facts,
    FailureReport,
    FileFacts,
    FileQuery,
    GpuGrant,
    InterpreterFacts,
    InterpreterQuery,
    LaunchPlan,
    Point,
    Progress,
    Refusal,
)
from sagectl_finetune import FinetuneKind
from sagectl_finetune.options import FinetuneOptions
from sagectl_finetune.trainer.settings import Settings, parse

KIND = FinetuneKind()
ALL = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
INSTALLED: dict[str, str | None] = dict.fromkeys(ALL, "5.23")
DATA = {
    "/data/train.jsonl": "file",
    "/home/models/base": "directory",
    "/home/models/base/config.json": "file",
}


def request(options: dict[str, Any] | None = None, **changes: Any) -> EngineRequest[FinetuneOptions]:
    chosen = FinetuneOptions(
        **({"dataset": "/data/train.jsonl", "output": "models/support"} | (options or {}))
    )
    values: dict[str, Any] = {
        **{"name": "tune", "model": "base", "host": "127.0.0.1", "port": None, "gpu_ids": ()},
        **{"python": "/envs/train/bin/python", "options": chosen, "probe": None},
        **{"models_dir": "/home/models", "state_dir": "/state/tune"},
    }
    return EngineRequest(**(values | changes))


def planned(
    asked: EngineRequest[FinetuneOptions],
    modules: dict[str, str | None] | None = None,
    there: dict[str, str] | None = None,
    **interpreter: Any,
) -> LaunchPlan | Refusal:
    found = DATA if there is None else there
    answers: dict[Any, Any] = {}
    for query in KIND.facts(asked):
        if isinstance(query, InterpreterQuery):
            answers[query] = InterpreterFacts(INSTALLED if modules is None else modules, **interpreter)
        elif isinstance(query, FileQuery):
            kind: Any = found.get(query.path, "missing")
            answers[query] = FileFacts(kind)
    return KIND.plan(asked, Facts(answers))


def told(asked: EngineRequest[FinetuneOptions]) -> Settings:
    plan = planned(asked)
    assert isinstance(plan, LaunchPlan), plan
    return parse(plan.argv[2])


def refused(asked: EngineRequest[FinetuneOptions], **facts: Any) -> str:
    found = planned(asked, **facts)
    assert isinstance(found, Refusal), found
    return f"{found.reason} -> {found.remedy}"


# --- the plan --------------------------------------------------------------------------------------


def test_the_trainer_runs_in_the_engines_interpreter_with_its_settings() -> None:
    plan = planned(request({"lora_rank": 4, "target_modules": ("q_proj", "v_proj")}))
    assert isinstance(plan, LaunchPlan)
    python, program, _ = plan.argv
    assert python == "/envs/train/bin/python"
    assert program.endswith("/sagectl_finetune/run_trainer.py")
    assert plan.progress_file == "/state/tune/progress.json"
    assert plan.history_file == "/state/tune/history.jsonl"
    assert plan.env["CUDA_VISIBLE_DEVICES"] == ""
    found = parse(plan.argv[2])
    assert (found.job, found.model, found.lora_rank) == ("tune", "/home/models/base", 4)
    assert found.target_modules == ("q_proj", "v_proj")
    assert (found.device, found.gpus) == ("cpu", 1)


def test_every_option_reaches_the_trainer() -> None:
    ours = {field.name for field in fields(FinetuneOptions)}
    elsewhere = {"policy", "serve_as", "yield_on_queue", "quantization", "double_quantization", "use_8bit"}
    assert ours - elsewhere <= {field.name for field in fields(Settings)}
    assert told(request({"method": "qlora", "use_8bit": True})).stored == "int8"
    assert told(request({"early_stopping": 3, "eval_split": 0.1})).early_stopping == 3
    assert told(request({"resume_from_checkpoint": "/old/checkpoint-7"})).resume_from_checkpoint == (
        "/old/checkpoint-7"
    )


def test_the_defaults_of_the_trainer_are_those_of_the_options() -> None:
    ours = {field.name: field.default for field in fields(FinetuneOptions)}
    for field in fields(Settings):
        if field.name in ours and field.name not in ("dataset", "output"):
            assert field.default == ours[field.name], field.name


def test_relative_paths_are_taken_from_the_parent_of_models() -> None:
    found = told(request())
    assert found.output == "/home/models/support"
    assert found.checkpoints == "/home/models/finetuned/tune"
    relative = request({"dataset": "data/train.jsonl"})
    assert "/home/data/train.jsonl does not exist; a relative path" in refused(relative)
    there = planned(relative, there=DATA | {"/home/data/train.jsonl": "file"})
    assert isinstance(there, LaunchPlan)


def test_gpus_are_used_as_granted_and_torch_is_kept_within_the_grant() -> None:
    grant = GpuGrant((1, 2), (8 << 30, 8 << 30), (16 << 30, 16 << 30))
    plan = planned(request(gpu_ids=(1, 2), grant=grant))
    assert isinstance(plan, LaunchPlan)
    assert (parse(plan.argv[2]).device, parse(plan.argv[2]).gpus) == ("cuda", 2)
    assert 0.4 < float(plan.env["SAGECTL_GPU_MEMORY_FRACTION"]) < 0.5
    assert "CUDA_VISIBLE_DEVICES" not in plan.env
    assert told(request(gpu_ids=None, gpus=1)).device == "auto"
    assert told(request(gpu_ids=None, gpus=0)).device == "cpu"


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({}, "peft"),
        ({"method": "qlora"}, "bitsandbytes"),
        ({"optimizer": "paged_adamw"}, "bitsandbytes"),
        ({"report_to": ("wandb",)}, "wandb"),
        ({"dataset": "/data/rows.Parquet"}, "pyarrow"),
    ],
)
def test_a_missing_module_is_named_with_what_installs_it(options: dict[str, Any], missing: str) -> None:
    words = refused(request(options), modules=INSTALLED | {missing: None})
    assert f"lacks {missing}" in words
    assert f"-m pip install {missing}" in words


def test_what_is_not_needed_may_be_missing() -> None:
    assert isinstance(planned(request(), modules=INSTALLED | {"bitsandbytes": None}), LaunchPlan)
    assert isinstance(planned(request({"method": "full"}), modules=INSTALLED | {"peft": None}), LaunchPlan)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"dataset": None}, "no data is named"),
        ({}, {"output": None}, "no place for the result"),
        ({}, {"dataset": "/nowhere"}, "dataset: /nowhere does not exist"),
        ({}, {"output": "~/x"}, "names a home directory"),
        ({}, {"output": "/data/train.jsonl"}, "is what the job reads"),
        ({}, {"output": "models"}, "holds all models"),
        ({"model": None}, {}, "no model is named"),
        ({"model": "/nowhere"}, {}, "/nowhere does not exist"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], options: dict[str, Any], words: str) -> None:
    assert words in refused(request(options, **changes))


def test_an_interpreter_that_does_not_fit_is_refused() -> None:
    assert "cannot be run: it is not there" in refused(request(), error="it is not there")
    assert "older than 5.0" in refused(request(), modules=INSTALLED | {"transformers": "4.57.1"})
    assert "is Python 3.10.2" in refused(request(), version="3.10.2")


# --- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"keep": 1}, "keep: 1 is not at least 2"),
        ({"eval_split": 1.0}, "eval_split: 1 is no share"),
        ({"early_stopping": 2}, "early_stopping: needs evaluations"),
        ({"warmup": -1}, "warmup: -1 is not between"),
        ({"weight_decay": 1}, "weight_decay: 1 is not"),
        ({"resume_from_checkpoint": "here"}, "no absolute path"),
        ({"method": "full", "merge": True}, "no adapter to merge"),
        ({"save_steps": 0}, "save_steps: 0 is not between"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FinetuneOptions(**options)


# --- progress --------------------------------------------------------------------------------------


def test_progress_is_read() -> None:
    text = json.dumps(
        {"done": 3, "total": 10, "eta_seconds": 2.5, "details": {"loss": 1.5, "event": "NaN", "odd": []}}
    )
    assert KIND.progress(text) == Progress(3, 10, "steps", 2.5, {"loss": 1.5, "event": "NaN"})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"done": "3"}'])
def test_progress_that_says_nothing_is_none(text: str) -> None:
    assert KIND.progress(text) is None


def test_history_has_each_step_once_and_no_more_than_its_figures() -> None:
    entries: list[Any] = [
        {"step": 1, "at": 5.0, "loss": 2.5, "learning_rate": 0.1, "other": "x"},
        {"step": 2, "at": 6.0, "loss": "nan"},
        {"step": 2, "at": 7.5, "eval_loss": 2.25},
        {"step": 2, "at": 8.0, "event": "the loss is NaN"},
        *({"step": "3"}, {"step": True}, [], 7),
    ]
    text = "\n".join(map(json.dumps, entries)) + '\n{"step": 3, "lo\n{"step": NaN}\n[[[\n'
    assert KIND.history(text) == [
        Point(1, 5.0, {"loss": 2.5, "learning_rate": 0.1}),
        Point(2, 8.0, {"loss": "nan", "eval_loss": 2.25, "event": "the loss is NaN"}),
    ]
    assert KIND.history('{"step": 1, "loss": NaN}\n') == [Point(1, None, {"loss": "nan"})]
    assert KIND.history("[" * 100_000) == []


# --- explaining ------------------------------------------------------------------------------------


def explained(code: int | None, *log: str, **status: Any) -> Diagnosis | None:
    return KIND.explain(request(), FailureReport("running", ExitStatus(code=code, **status), log))


def test_a_refusal_of_the_trainer_is_its_explanation_and_is_not_tried_again() -> None:
    found = explained(
        65, "loading", "refused: nothing of the data would be trained on", "remedy: add answers"
    )
    assert found == Diagnosis("Nothing of the data would be trained on.", "Add answers.", retryable=False)
    kept = explained(65, "refused: target_modules: no such", "remedy: correct `target_modules`")
    assert kept is not None
    assert kept.summary == "target_modules: no such."


def test_a_loss_that_is_no_number_is_not_tried_again() -> None:
    found = explained(70, "diverged: the loss is NaN at step 12; the checkpoints are in /x")
    assert found is not None
    assert found.summary.startswith("The loss is NaN at step 12")
    assert not found.retryable


def test_a_full_disk_is_where_the_job_writes() -> None:
    error = "I/O error: No space left on device (os error 28)"
    found = explained(1, f"safetensors._safetensors_rust.SafetensorError: Error while serializing: {error}")
    assert found is not None
    assert (found.summary, found.retryable) == ("The disk is full, or a quota on it.", False)
    assert "`output`, the checkpoints" in found.remedy
    assert "goes on from the newest checkpoint" in found.remedy


def test_a_stop_that_sagectl_did_not_ask_for_is_tried_again() -> None:
    found = explained(75, "stopped after step 3 of 9, with a checkpoint")
    assert found is not None
    assert found.retryable


def test_memory_that_ran_out_is_tried_again_only_with_a_smaller_batch() -> None:
    gpu = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB. 1.00 GiB allowed; 3 GiB"
    smaller = explained(71, gpu, "event: out of memory with batch_size 4: going on with 2, and so on")
    assert smaller is not None
    assert smaller.retryable
    assert "smaller batch" in smaller.summary
    least = explained(71, gpu, "out of memory with a batch of one row: CUDA out of memory")
    assert least is not None
    assert not least.retryable
    assert "gpu_memory" in least.remedy
    host = explained(71, "RuntimeError: DefaultCPUAllocator: can't allocate memory", "out of memory before")
    assert host is not None
    assert "machine" in host.summary
    killed = explained(None, oom_kill=True, signal=9)
    assert killed is not None
    assert "batch_size" in killed.remedy


def test_a_missing_module_and_a_gated_model_are_explained() -> None:
    found = explained(1, "ModuleNotFoundError: No module named 'sentencepiece'")
    assert found is not None
    assert "sentencepiece" in found.remedy
    gated = explained(1, "403 Client Error.", "Cannot access gated repo for url https://x")
    assert gated is not None
    assert "HF_TOKEN" in gated.remedy
    nobody = explained(1, "wandb.errors.errors.UsageError: No API key configured. Use `wandb login`.")
    assert nobody is not None
    assert "WANDB_API_KEY" in nobody.remedy
    assert not nobody.retryable
    assert explained(1, "Traceback") is None


def test_data_is_looked_at_before_a_gpu_is_waited_for() -> None:
    plan = planned(request())
    assert isinstance(plan, LaunchPlan)
    assert plan.rehearsal == (*plan.argv, "--dry-run")
