"""One training run from settings: model, data and trainer are made, the run is carried out or resumed."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from leanthink.models.transformers_versions import old_names
from leanthink.rl import data
from leanthink.rl.adapters import DEFAULTS, OF_TRL, USE, lora_config, with_lora_section
from leanthink.rl.field_kinds import refused_settings
from leanthink.rl.resume import as_recorded, check_same, last_whole_checkpoint
from leanthink.rl.run_files import FINAL, LOG, REPORT, ROLLOUTS, RUN
from leanthink.rl.run_model import OPTIONS, check_options, load_model, make_tokenizer
from leanthink.utils.errors import LeanThinkWarning, UsageError, unknown
from leanthink.utils.file_reading import COUNT, INTEGER, OBJECT, TEXT, Kind, check_kinds, is_int
from leanthink.utils.file_writing import held, write_json, writing

if TYPE_CHECKING:
    from datasets import Dataset

SECTIONS = ("model", "dtype", *OPTIONS, "chat_template", "data", "eval_data", "lora", "out")
SOURCES: dict[str, tuple[str, ...]] = {
    "tasks": ("levels", "count", "seed", "split"),
    "problems": ("instruction",),
    "dataset": ("name", "split", "problem", "answer", "id", "instruction"),
    "gym": ("count", "seed", "instruction"),
}
PATH = Kind("a path or a name", lambda value: isinstance(value, str | os.PathLike))
KINDS = {
    "tasks": Kind("all, or a list of families", lambda value: isinstance(value, str | list | tuple)),
    "problems": PATH,
    "dataset": PATH,
    "gym": Kind(
        "a name, or a mapping of names to settings",
        lambda value: isinstance(value, str) or (OBJECT.holds(value) and all(map(OBJECT.holds, value.values()))),
    ),
    "levels": Kind(
        "a list of levels, or a mapping of levels to counts",
        lambda value: (
            isinstance(value, Collection)
            and all(map(is_int, value))
            and all(map(COUNT.holds, value.values() if isinstance(value, Mapping) else ()))
        ),
    ),
    "count": COUNT,
    "seed": INTEGER,
    **dict.fromkeys(("split", "name", "problem", "answer", "id", "instruction"), TEXT),
}


def train(
    settings: Mapping[str, Any],
    *,
    resume: bool = False,
    overwrite: bool = False,
    tell: Callable[[str], None] | None = None,
    callbacks: Sequence[Any] = (),
) -> dict[str, Any] | None:
    """Train and return what came out.

    Writes into the folder `out`: `run.json` (settings and provenance), `log.jsonl` and `rollouts.jsonl` (see
    `leanthink.rl.run_log`), TRL's `checkpoint-N` and, at the end, `final`: the model, adapters merged, tokenizer and
    model card.

    Args:
        settings: `model` (as of `leanthink.load`), `dtype` (of its weights, default float32), `chat_template` (a file,
            in place of the tokenizer's), `data` and `eval_data` (see `make_data`), `lora` ({} for its defaults, r 16
            and alpha 32 on all linear layers, or keys of peft's LoraConfig; left out: all weights are trained), `out`
            (a folder), TRL's options of models (`attn_implementation`, `load_in_4bit`, `load_in_8bit`, `use_peft`,
            `lora_r`, ...), and any field of `DeepCompressConfig`.
        resume: go on from the last checkpoint in `out` that is whole, with the settings it was started with; how long,
            what is saved, logged and evaluated may differ.
        overwrite: remove what an earlier run left in `out`.
        tell: is told what the run needs, then how it goes, a line for each logging step.
        callbacks: further ones of transformers, such as one that stops the run.

    Returns:
        `out`, `steps`, `final` (a folder), `average` (of the pass ratio) and the latest `metrics`; None on all
        processes but the main one.

    Raises:
        UsageError: an unknown setting or one out of range, nothing to resume or with other settings, an earlier run in
            `out`, another process that writes there, or a run that cannot fit into the device's memory.
        CannotWrite: there is no room for a checkpoint, a log or the model; the checkpoints before stay.
        UnsupportedModel: the bounded cache cannot serve the model.
    """
    from leanthink.rl.config import check_installed
    from leanthink.rl.trainer_checks import check_evaluation, warn_of_rate

    settings = with_lora_section(settings)
    out, checkpoint = check_settings(settings, resume=resume, overwrite=overwrite)
    dataset = make_data(settings["data"])  # before all that rests on what machine and batch allow
    eval_dataset = make_data(settings["eval_data"]) if settings.get("eval_data") is not None else None
    args = make_config(settings)
    check_options(settings, rollouts=args.rollouts)
    check_installed(args)
    check_evaluation(args, given=eval_dataset is not None)
    if args.process_index == 0:
        warn_of_rate(args, adapters=settings.get("lora") is not None)
    with held(out / RUN) if args.process_index == 0 else nullcontext():
        return _train(settings, args, dataset, eval_dataset, checkpoint, overwrite, tell, callbacks)


def _train(
    settings: Mapping[str, Any],
    args: Any,
    dataset: Dataset,
    eval_dataset: Dataset | None,
    checkpoint: str | None,
    overwrite: bool,
    tell: Callable[[str], None] | None,
    callbacks: Sequence[Any],
) -> dict[str, Any] | None:
    """`train`, of what was checked and where nobody else writes to the same folder."""
    from transformers import PrinterCallback, ProgressCallback

    from leanthink.rl.rollouts import check_whole
    from leanthink.rl.run_log import RunLog
    from leanthink.rl.run_needs import announce
    from leanthink.rl.trainer import DeepCompressTrainer
    from leanthink.rl.trainer_checks import check_template
    from leanthink.rl.trl_reward import STATE

    out, writes = Path(settings["out"]), args.process_index == 0
    lora, tell = settings.get("lora"), tell if writes else None
    adapters = None if lora is None else lora_config(lora, rollouts=args.rollouts)
    tokenizer = make_tokenizer(settings)
    check_template(tokenizer, dataset[0]["prompt"], args)  # before weights are read
    announce(settings, args, adapters, tokenizer, dataset, eval_dataset, tell=tell)
    model = load_model(settings, args.device, tokenizer)
    log = RunLog(out, writes=writes, tell=tell)
    with old_names():
        with refused_settings():  # of those that are looked at here first
            trainer = DeepCompressTrainer(
                model,
                args,
                dataset,
                eval_dataset=eval_dataset,
                processing_class=tokenizer,
                on_scored=log.on_scored,
                origin=_origin(settings),
                callbacks=[log, *callbacks],
                peft_config=adapters,
            )
        trainer.remove_callback(PrinterCallback)  # both write among what we print
        trainer.remove_callback(ProgressCallback)
        if lora is not None:
            check_whole(trainer, "merging LoRA")
        if writes and overwrite:  # nothing is refused any more
            clear(out)
        if writes and checkpoint is None:
            _write_run(out, settings)
        trainer.train(resume_from_checkpoint=checkpoint)
        _save_final(trainer, out / FINAL, adapters=lora is not None)
    if not writes:
        return None
    kept = trainer.state.stateful_callbacks.get(STATE, {}).get("attributes", {})
    return {
        "out": str(out),
        "steps": trainer.state.global_step,
        "final": str(out / FINAL),
        "average": kept.get("average"),
        "metrics": log.latest,
    }


def check_settings(settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> tuple[Path, str | None]:
    """The folder of the run and the checkpoint to go on from. Raises UsageError before anything is loaded."""
    from leanthink.rl.config import DeepCompressConfig

    known = [*SECTIONS, USE, *OF_TRL, *(field.name for field in fields(DeepCompressConfig) if field.init)]
    for name in settings:
        if name not in known or name == "output_dir":
            see = "docs/training.md tells of ours, TRL's page of GRPOConfig of the others"
            raise unknown("setting", name, sorted({*known} - {"output_dir"}), see=see)
    for name in ("data", "out"):
        if name not in settings:
            raise UsageError(f"the settings lack {name!r}: {_LACKING[name]}")
    for name in ("model", "dtype", "chat_template", "attn_implementation", "out"):
        value = settings.get(name, "")
        if not PATH.holds(value) and not (value is None and name in ("chat_template", "attn_implementation")):
            raise UsageError(f"{name}={value!r}: must be text")
    out = Path(settings["out"])
    if resume and overwrite:
        raise UsageError("resume and overwrite exclude each other: give one of them")
    if resume:
        return out, _checkpoint(settings, out)
    if not overwrite and (out / RUN).exists():
        raise UsageError(f"{out} holds a run already: give another folder, or resume it, or overwrite it")
    return out, None


def _checkpoint(settings: Mapping[str, Any], out: Path) -> str:
    """What to go on from. A checkpoint that is not whole is passed over, and a warning says so. Raises UsageError."""
    check_same(settings, out)
    last, wrong = last_whole_checkpoint(out)
    if last is None:
        told = f", and {len(wrong)} that cannot be read ({wrong[0]})" if wrong else ""
        cure = "overwrite it" if wrong or (out / RUN).exists() else "start without resume"
        raise UsageError(f"there is no checkpoint in {out} to go on from{told}: {cure}")
    for why in wrong:
        warnings.warn(f"{why}; going on from {last.name}", LeanThinkWarning, stacklevel=2)
    return str(last)


_LACKING = {
    "data": "say what to train on, such as {tasks: [multiply], levels: [1, 2], count: 64}",
    "out": "name the folder of the run",
}


def make_config(settings: Mapping[str, Any]) -> Any:
    """The `DeepCompressConfig` of these settings. Where TRL wants bfloat16 without a GPU it gets float32."""
    from leanthink.rl.config import DeepCompressConfig

    chosen = {name: value for name, value in settings.items() if name not in SECTIONS}
    on_gpu = torch.cuda.is_available()
    defaults: dict[str, Any] = {"logging_steps": 1, "report_to": "none", "bf16": on_gpu, "use_cpu": not on_gpu}
    defaults |= {"disable_tqdm": True, "seed": 0}
    return DeepCompressConfig(output_dir=str(settings["out"]), **{**defaults, **chosen})


def make_data(source: Mapping[str, Any]) -> Dataset:
    """The data set of one of these sources, each with further keys that have defaults.

    - `tasks`: families of the embedded tasks, or "all"; levels, count (of each family and level), seed, split; levels
      may be a mapping of each level to a count of its own.
    - `problems`: a JSONL file of {id, problem, answer}; instruction.
    - `dataset`: as of `leanthink.rl.data.from_dataset`; its arguments.
    - `gym`: environments of reasoning-gym with their settings; count, seed, instruction.

    A further key that is None is one that is not given.

    Raises:
        UsageError: no source or several, an unknown key, a value of another kind, or what the source itself refuses.
    """
    if not isinstance(source, Mapping):
        raise UsageError(f"data={source!r}: give a mapping with one of {', '.join(SOURCES)}")
    kinds = [kind for kind in SOURCES if kind in source]
    if len(kinds) != 1:
        raise UsageError(f"data has {' and '.join(kinds) or 'no source'}: give exactly one of {', '.join(SOURCES)}")
    (kind,) = kinds
    for name in source:
        if name != kind and name not in SOURCES[kind]:
            raise unknown(f"key of data with {kind}", name, SOURCES[kind])
    options = {name: value for name, value in source.items() if name != kind and value is not None}
    wanted = source[kind]
    given = {kind: wanted, **options}
    check_kinds(given, {name: KINDS[name] for name in given})
    if kind == "tasks":
        from leanthink.data.tasks.registry import FAMILIES, LEVELS

        families = list(FAMILIES) if wanted == "all" else [wanted] if isinstance(wanted, str) else list(wanted)
        return data.from_tasks(families, **{"levels": LEVELS, "count": 64, **options})
    if kind == "problems":
        return data.from_jsonl(wanted, **options)
    if kind == "gym":
        environments = {wanted: {}} if isinstance(wanted, str) else wanted
        return data.from_gym(environments, **{"count": 256, **options})
    return data.from_dataset(str(wanted), **options)


def clear(out: Path) -> None:
    """Remove an earlier run: its checkpoints would be taken for those of the new one."""
    for folder in (*out.glob("checkpoint-*"), out / FINAL):
        if folder.is_dir():
            shutil.rmtree(folder)
    for name in (RUN, LOG, ROLLOUTS, REPORT):
        (out / name).unlink(missing_ok=True)


def _origin(settings: Mapping[str, Any]) -> Any:
    """What the model card says of base, data and adapters."""
    from leanthink.rl.model_card import Origin, public_name

    lora = settings.get("lora")
    adapters = {} if lora is None else {"lora": {"r": DEFAULTS["r"], "alpha": DEFAULTS["alpha"], **lora}}
    return Origin(base=public_name(str(settings.get("model", "tiny"))), data=settings["data"], more=adapters)


def _write_run(out: Path, settings: Mapping[str, Any]) -> None:
    from leanthink.utils.provenance import provenance_record

    write_json(
        out / RUN, {"settings": as_recorded({**settings, "out": str(out)}), "birth": provenance_record()}, indent=1
    )


def _save_final(trainer: Any, folder: Path, *, adapters: bool) -> None:
    """Write model, tokenizer and model card."""
    if trainer.is_fsdp_enabled:  # where checkpoints are shards, transformers writes no weights of a model beside them
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    with writing(folder):
        if not adapters:
            trainer.save_model(str(folder))
        elif trainer.args.process_index == 0:
            policy = trainer.accelerator.unwrap_model(trainer.model)
            # Adapters merged into quantized weights would be rounded with them: they stay adapters.
            whole = policy if getattr(policy, "is_quantized", False) else policy.merge_and_unload()
            whole.save_pretrained(folder)
            trainer.processing_class.save_pretrained(folder)
        trainer.write_card(folder)
