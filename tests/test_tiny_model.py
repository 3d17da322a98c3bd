"""The embedded reasoner's tokenizer, packing, optimiser, training loop and saved folder, on small models on the CPU."""

from __future__ import annotations

import json
import os
import random
import string
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from leanthink.data.grading.grading import last_boxed
from leanthink.data.tasks import registry
from leanthink.engine.generation import generate
from leanthink.engine.sampling import Sampling
from leanthink.models.tiny import load_tiny, train, weights_path
from leanthink.models.tiny.checkpoint import save_run
from leanthink.models.tiny.model import attend_masked, build_model, packed_logits, tiny_config
from leanthink.models.tiny.muon import BatchedMuon
from leanthink.models.tiny.sequence_packing import NO_TARGET, Batch, BatchShape, batch_stream, laid_out, packed
from leanthink.models.tiny.tokenizer import END, END_THINK, PAD, build_tokenizer, encode_document, save_tokenizer
from leanthink.models.tiny.train import Options, lr_factor
from leanthink.policies.budget import Budget
from leanthink.utils.errors import DamagedFile, LeanThinkError, UsageError

SMALL = {"layers": 2, "hidden": 64, "heads": 2, "kv_heads": 1, "mlp": 96}
FORKS = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@dataclass(frozen=True)
class Copy:
    prompt: str
    thought: str
    answer: str


def copy_task(rng: random.Random) -> Copy:
    text = "".join(rng.choices("ab", k=rng.randint(1, 6)))
    return Copy(prompt=text, thought=f"{text}={text}", answer=text)


def failing_task(rng: random.Random) -> Copy:
    raise RuntimeError("the teacher ran out of chalk")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved two-layer model after 20 steps on the copy task."""
    folder = tmp_path_factory.mktemp("weights")
    options = Options(
        out=folder, steps=20, tokens_per_step=512, max_documents=64, warmup_steps=2, workers=0, compile=False
    )
    model = build_model(tiny_config(**SMALL), seed=0)
    with batch_stream(copy_task, options.batch_shape(), seed=0, num_workers=0) as batches:
        record = train.train(model, batches, options, torch.device("cpu"))
    save_run(model, folder, record, options, ["--steps", "20"])
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_config().save_pretrained(folder)  # AutoTokenizer looks at the model type, too
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def test_fast_encoding_equals_the_saved_tokenizer(tokenizer):
    printable = Copy(prompt=string.printable, thought=" 12 + 34\n\n = 46 ", answer="46 é 漢 🤔")
    for document in (printable, Copy(prompt="", thought="", answer=""), copy_task(random.Random(1))):
        text = f"<|user|>{document.prompt}<|assistant|><think>\n{document.thought}\n</think>\n{document.answer}<|end|>"
        ids, given = encode_document(document)
        assert ids.tolist() == tokenizer(text)["input_ids"] == build_tokenizer()(text)["input_ids"]
        chat = [{"role": "user", "content": document.prompt}]
        prompt_ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
        assert ids[:given].tolist() == prompt_ids


def test_any_unicode_survives_encoding_and_decoding(tokenizer):
    rng = random.Random(0)
    for _ in range(50):
        points = [rng.choice([*range(0xD800), *range(0xE000, 0x3000 + 0xE000)]) for _ in range(30)]
        text = "".join(map(chr, points)) + " '. , \r\n\t ' s don't ' 🤔"
        ids = tokenizer(text)["input_ids"]
        assert ids == list(text.encode())
        assert tokenizer.decode(ids) == text


def test_each_special_token_is_one_token_and_the_think_tags_stay_in_decoded_text(tokenizer):
    for text, token in (("<|pad|>", PAD), ("<think>", 259), ("</think>", END_THINK), ("<|end|>", END)):
        assert tokenizer(text)["input_ids"] == [token]
    assert tokenizer.decode([257, 65, END_THINK, 66, END], skip_special_tokens=True) == "A</think>B"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (END, PAD)


def test_chat_template_lays_out_turns_and_refuses_other_roles(tokenizer):
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|>a<|assistant|>b<|end|><|user|>c<|assistant|><think>\n"
    with pytest.raises(Exception, match="not system"):
        tokenizer.apply_chat_template([{"role": "system", "content": "a"}], tokenize=False)


def test_shipped_shape_has_under_16_million_parameters():
    with torch.device("meta"):
        model = build_model(tiny_config(), seed=0)
    assert 13e6 < sum(parameter.numel() for parameter in model.parameters()) < 16e6


def test_packing_keeps_every_document_in_order_and_learns_only_what_the_model_writes():
    rng, again = random.Random(3), random.Random(3)
    shape = BatchShape(tokens=96, documents=16, max_length=48)
    stream = packed((copy_task(rng) for _ in range(40)), shape)
    documents, learned = [], []
    for batch in stream:
        for start, end in zip(batch.offsets_N[: batch.num_documents], batch.offsets_N[1:], strict=False):
            ids, targets, positions = batch.rows_3T[:, start:end].tolist()
            documents.append(ids)
            learned.append([t for t in targets if t != NO_TARGET])
            assert positions == list(range(end - start))
            assert all(t in (NO_TARGET, following) for t, following in zip(targets, ids[1:], strict=False))
        assert batch.offsets_N[0] == 0
        assert batch.offsets_N[-1] == 96
        assert np.diff(batch.offsets_N).max() <= 48
        assert (batch.rows_3T[1, batch.num_tokens - 1 :] == NO_TARGET).all()
        assert batch.num_targets == (batch.rows_3T[1] != NO_TARGET).sum()
    encoded = [encode_document(copy_task(again)) for _ in range(40)]
    assert documents == [ids.tolist() for ids, _ in encoded]
    assert learned == [ids[given:].tolist() for ids, given in encoded]


def test_a_document_fills_a_batch_exactly_and_a_longer_one_is_counted():
    fits = Copy(prompt="p" * 4, thought="t" * 3, answer="a")
    length = len(encode_document(fits)[0])
    shape = BatchShape(tokens=length, documents=3, max_length=length)
    longer = Copy(prompt="p" * 5, thought="t" * 3, answer="a")
    first, second = packed(iter([fits, longer, fits]), shape)
    assert (first.num_tokens, first.num_too_long) == (length, 1)
    assert (second.num_tokens, second.num_too_long) == (length, 0)


def test_batch_shapes_that_cannot_hold_a_document_are_refused():
    with pytest.raises(UsageError, match="cannot hold"):
        BatchShape(tokens=10, documents=8, max_length=11)
    with pytest.raises(UsageError, match="use 1 more"):
        BatchShape(tokens=10, documents=1, max_length=10)


@FORKS
def test_workers_give_the_same_batches_for_the_same_seed_in_turn():
    shape = BatchShape(tokens=128, documents=32, max_length=64)

    def first_four(seed: int) -> list[list[int]]:
        with batch_stream(copy_task, shape, seed=seed, num_workers=2) as batches:
            return [next(batches).rows_3T.ravel().tolist() for _ in range(4)]

    batches = first_four(0)
    assert batches == first_four(0)
    assert batches != first_four(1)
    assert len({tuple(batch) for batch in batches}) == 4


@FORKS
def test_a_failing_worker_is_reported_with_its_traceback():
    shape = BatchShape(tokens=128, documents=32, max_length=64)
    with (
        batch_stream(failing_task, shape, seed=0, num_workers=1) as batches,
        pytest.raises(LeanThinkError, match="out of chalk"),
    ):
        next(batches)


def small_batch() -> tuple[Batch, list[int]]:
    encoded = [encode_document(copy_task(random.Random(seed))) for seed in range(5)]
    shape = BatchShape(tokens=160, documents=16, max_length=64)
    return laid_out(encoded, shape), [len(ids) for ids, _ in encoded]


def test_packed_documents_have_the_logits_that_they_have_alone():
    batch, lengths = small_batch()
    model = build_model(tiny_config(**SMALL), seed=0).eval()
    ids, _, positions = torch.from_numpy(batch.rows_3T).long()
    together = packed_logits(model, ids, positions, torch.from_numpy(batch.offsets_N))
    model.set_attn_implementation("sdpa")
    for start, length in zip(batch.offsets_N.tolist(), lengths, strict=False):
        alone = model(input_ids=ids[None, start : start + length], use_cache=False).logits[0]
        torch.testing.assert_close(together[start : start + length], alone, atol=1e-5, rtol=1e-4)


def test_training_graph_of_the_flash_kernel_is_captured_whole():
    model = build_model(tiny_config(**SMALL), seed=0).to("meta", torch.bfloat16)
    compiled = torch.compile(packed_logits, dynamic=False, fullgraph=True, backend="aot_eager")
    batch, _ = small_batch()
    ids, _, positions = torch.from_numpy(batch.rows_3T).long().to("meta")
    compiled(model, ids, positions, torch.from_numpy(batch.offsets_N).to("meta")).float().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_masked_attention_sees_the_past_of_its_own_document_only():
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(heads, 7, 64, generator=generator) for heads in (2, 1, 1))
    offsets = torch.tensor([0, 3, 3, 7, 7], dtype=torch.int32)
    out = attend_masked(query, key, value, offsets, 0.125)
    for head in range(2):
        for start, end in ((0, 3), (3, 7)):
            for t in range(start, end):
                weights = torch.softmax(key[0, start : t + 1] @ query[head, t] / 8, dim=0)
                torch.testing.assert_close(out[t, head], weights @ value[0, start : t + 1])


def test_batched_muon_takes_the_steps_of_torch_muon():
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 24), (8, 24), (24, 8), (16, 16), (8, 24)]
    starts = [torch.randn(shape, generator=generator) for shape in shapes]
    ours = [torch.nn.Parameter(start.clone()) for start in starts]
    theirs = [torch.nn.Parameter(start.clone()) for start in starts]
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95}
    optimizers = [
        BatchedMuon(ours, **settings),
        torch.optim.Muon(theirs, nesterov=True, adjust_lr_fn="match_rms_adamw", **settings),
    ]
    for _ in range(4):
        for our, their in zip(ours, theirs, strict=True):
            our.grad = torch.randn(our.shape, generator=generator)
            their.grad = our.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for our, their, start in zip(ours, theirs, starts, strict=True):
        assert (our - their).norm() < 0.02 * (their - start).norm()


def test_every_parameter_has_exactly_one_optimizer():
    model = build_model(tiny_config(**SMALL), seed=0)
    for name in ("muon", "adamw"):
        first, second = train.make_optimizers(model, Options(optimizer=name))
        groups = [[id(p) for group in o.param_groups for p in group["params"]] for o in (first, second)]
        assert sorted(groups[0] + groups[1]) == sorted(id(p) for p in model.parameters())
        assert len(groups[0]) == 2 * 7


def test_learning_rate_warms_up_holds_and_falls_to_zero():
    options = Options(warmup_steps=100, decay_share=0.4)
    assert lr_factor(0, 0.0, options) == 0.01
    assert lr_factor(500, 0.6, options) == 1.0
    assert lr_factor(500, 0.8, options) == pytest.approx(0.5)
    assert lr_factor(500, 1.0, options) == 0.0


def test_micro_batches_add_up_to_the_gradient_of_the_whole_step():
    batch, _ = small_batch()
    encoded = [encode_document(copy_task(random.Random(seed))) for seed in range(5)]
    halves = [
        laid_out(part, BatchShape(tokens=128, documents=16, max_length=64)) for part in (encoded[:2], encoded[2:])
    ]
    losses, gradients = [], []
    for batches in ([batch], halves):
        model = build_model(tiny_config(**SMALL), seed=0)
        loss_sum = train.make_loss_sum(model, torch.device("cpu"), compiled=False)
        losses.append(train.train_step(model, loss_sum, batches, [], 1.0, 1e9))
        gradients.append(torch.cat([parameter.grad.ravel() for parameter in model.parameters()]))
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-4)


def test_training_ends_on_time_and_reports_its_data_wait():
    options = Options(minutes=0.02, tokens_per_step=256, max_documents=32, warmup_steps=2, compile=False, log_every=2)
    model = build_model(tiny_config(**SMALL), seed=0)
    with batch_stream(copy_task, options.batch_shape(), seed=0, num_workers=0) as batches:
        record = train.train(model, batches, options, torch.device("cpu"))
    assert 1.2 <= record.seconds < 10
    assert 0 < record.data_wait_seconds < record.seconds
    assert record.log[-1]["step"] == record.steps


def test_training_lowers_the_loss_and_writes_its_provenance_record(folder: Path):
    provenance = json.loads((folder / "train.json").read_text())
    losses = {entry["step"]: entry["loss"] for entry in provenance["log"]}
    assert losses[1] > 5
    assert provenance["final_loss"] < 0.7 * losses[1]
    assert (provenance["steps"], provenance["device"]) == (20, "cpu")
    assert provenance["command"] == "python -m leanthink.models.tiny.train --steps 20"


def test_saved_folder_loads_with_plain_transformers_and_gives_the_trained_logits(folder: Path):
    model, tokenizer = load_tiny(folder=folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(plain).__name__ == "Qwen3ForCausalLM"
    ids = torch.tensor([tokenizer("<|user|>ab<|assistant|><think>\nab=ab")["input_ids"]])
    torch.testing.assert_close(model(ids).logits, plain(ids).logits)
    assert (plain.config.eos_token_id, plain.generation_config.pad_token_id) == (END, PAD)
    half, _ = load_tiny(folder=folder, dtype=torch.bfloat16)
    assert (half.dtype, half.model.rotary_emb.inv_freq.dtype) == (torch.bfloat16, torch.float32)
    assert plain.lm_head.weight is plain.model.embed_tokens.weight


def test_saving_rounds_to_bf16_and_nothing_else(tmp_path: Path):
    from leanthink.models.tiny.checkpoint import save_weights

    model = build_model(tiny_config(**SMALL), seed=5).eval()
    save_weights(model, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert next(model.parameters()).dtype == torch.float32
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    ids = torch.arange(0, 260, 7)[None]
    torch.testing.assert_close(plain(ids).logits, model(ids).logits)


def test_shards_of_the_shipped_shape_stay_under_15_megabytes(tmp_path: Path):
    from leanthink.models.tiny.checkpoint import save_weights

    save_weights(build_model(tiny_config(), seed=0), tmp_path)
    shards = [path.stat().st_size for path in tmp_path.glob("*.safetensors")]
    assert max(shards) <= 15 * 2**20
    assert sum(shards) < 2 * 14e6


def corrupted(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("damage", [corrupted, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_damaged_file_is_refused_by_name(folder: Path, tmp_path: Path, name: str, damage: Callable[[Path], None]):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    damage(tmp_path / name)
    with pytest.raises(DamagedFile, match=name):
        load_tiny(folder=tmp_path)


def test_a_folder_without_checksums_is_refused(tmp_path: Path):
    with pytest.raises(DamagedFile, match=r"sha256\.json"):
        load_tiny(folder=tmp_path)


def test_weights_lie_beside_the_code():
    assert weights_path().parent.name == "tiny"


def test_the_shipped_model_is_right_under_its_shipped_predictor():
    asked = [problem for family in registry.FAMILIES for problem in registry.sample(family, 1, 2, 3)]
    greedy = Sampling(temperature=0.0, max_new_tokens=900)
    done = generate(
        *load_tiny(), [p.prompt for p in asked], policy="horizon", budget=Budget(slots=192), sampling=greedy
    )
    assert all(registry.is_correct(p, last_boxed(c.answer)) for p, c in zip(asked, done, strict=True))


def test_command_line_refuses_what_it_cannot_do():
    with pytest.raises(UsageError, match="--out"):
        train.parse(["--minutes", "1"])
    with pytest.raises(UsageError, match="adamw"):
        train.parse(["--smoke", "--optimizer", "adam"])
    with pytest.raises(UsageError, match="divide"):
        train.parse(["--smoke", "--micro-batches", "3"])
    with pytest.raises(UsageError, match="error_rate_if_unchecked"):
        train.parse(["--smoke", "--error-rate-if-unchecked", "2"])
    options, smoke = train.parse(["--out", "x", "--steps", "3", "--no-compile", "--lr", "1e-3"])
    assert (options.out, options.steps, options.compile, options.lr, smoke) == (Path("x"), 3, False, 1e-3, False)


def test_command_line_trains_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(train, "tiny_config", lambda: tiny_config(**SMALL))
    flags = ["--out", str(tmp_path), "--steps", "2", "--tokens-per-step", "256", "--workers", "0", "--no-compile"]
    train.main(flags, sample=copy_task)
    model, _ = load_tiny(folder=tmp_path)
    assert model.config.num_hidden_layers == 2


def test_training_goes_on_from_given_weights(folder: Path):
    given, _ = load_tiny(folder=folder)
    went_on = train.first_model(Options(init=str(folder)))
    assert all(torch.equal(old, new) for old, new in zip(given.parameters(), went_on.parameters(), strict=True))
    assert went_on.config._attn_implementation == train.PACKED
    shipped, _ = load_tiny()
    assert torch.equal(train.first_model(Options(init="tiny")).lm_head.weight, shipped.lm_head.weight)
    with pytest.raises(DamagedFile, match="elsewhere"):
        train.first_model(Options(init="elsewhere"))


STAND_IN = """#!/bin/sh
echo "$@" >> said
mkdir -p brief.work/run/final brief.work/predictors
touch brief.work/predictors/horizon.safetensors
"""


def test_the_recipe_of_the_brief_model_gives_every_command_what_it_takes(tmp_path: Path) -> None:
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    recipe = Path(__file__).parent.parent / "examples" / "tiny-brief.sh"
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([recipe, "brief"], env=environment, cwd=tmp_path, check=True, capture_output=True)
    said = [line.split() for line in (tmp_path / "said").read_text().splitlines()]
    trains, fits = (words[:3] for words in said[2:])
    assert (trains, fits) == (["-m", "leanthink", "train"], ["bench/fit_tiny.py", "--model", "brief"])
    for words in said[:2]:
        assert words[:2] == ["-m", "leanthink.models.tiny.train"]
        assert train.parse(words[2:])[0].steps is not None
    assert (tmp_path / "brief" / "horizon.safetensors").is_file()
