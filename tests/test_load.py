from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordLevel
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedTokenizerFast

from leanthink.data.think_tags import think_tags
from leanthink.engine.decoder import is_llama_like
from leanthink.models.gguf_reading import read_once
from leanthink.models.loading import MODEL_TYPES, check_supported, end_ids, kv_shape, load
from leanthink.models.transformers_versions import withholds_options
from leanthink.utils.errors import DamagedFile, UnsupportedModel, UsageError
from models import ARCHITECTURES, CLOSE, END, HYBRIDS, MIXTURES, OPEN, make_model, make_tokenizer


def config_of(model_type: str, **facts: Any) -> Any:
    return CONFIG_MAPPING[model_type](**facts)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_model("qwen3").save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_listed_architectures_are_supported(architecture: str) -> None:
    model = make_model(architecture)
    check_supported(model.config)
    shape = kv_shape(model.config)
    attends = [part for part in model.modules() if hasattr(part, "num_key_value_groups")]
    sliding = {part.layer_idx for part in attends if getattr(part, "is_sliding", getattr(part, "sliding_window", None))}
    assert set(shape.sliding_layers) == sliding
    assert shape.layers + len(sliding) == len(attends)
    full = next(part for part in attends if part.layer_idx not in sliding)
    assert (shape.group, shape.head_dim) == (full.num_key_value_groups, full.head_dim)


def test_what_the_docs_list_is_served_and_tested() -> None:
    root = Path(__file__).parent.parent
    section = (root / "docs" / "python.md").read_text().partition("## Models")[2].partition("\n## ")[0]
    found = re.findall(
        r"^\| (dense|mixtures of experts|with linear or state-space layers) \|(.*)$", section, re.MULTILINE
    )
    rows = {kind: re.findall(r"`(\w+)`", cells) for kind, cells in found}
    assert rows["mixtures of experts"] == sorted(MIXTURES)
    served = [name for name in MODEL_TYPES if not withholds_options(name)]
    hybrids = rows["with linear or state-space layers"]
    assert [name for name in hybrids if name in served] == sorted(HYBRIDS)
    assert rows["dense"] == sorted(set(MODEL_TYPES) - {*MIXTURES, *hybrids})
    assert set(served) == set(ARCHITECTURES)
    assert f"[{len(MODEL_TYPES)} types]" in (root / "README.md").read_text()
    lean = re.findall(r"`(\w+)`", section.partition("|\n\n")[2].partition(" decode by")[0])
    assert sorted(lean) == [name for name in sorted(served) if is_llama_like(make_model(name))]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (config_of("mistral", sliding_window=1024), "all its layers use a sliding window of 1024"),
        (config_of("phi3", sliding_window=2047), "sliding window of 2047"),
        (config_of("ministral", sliding_window=128), "all its layers use a sliding window of 128"),
        (
            config_of("qwen2", use_sliding_window=True, max_window_layers=0),
            "all its layers use a sliding window of 4096",
        ),
        (config_of("gemma3_text", sliding_window=None), "layers with a sliding window, and no sliding_window"),
        (config_of("gemma2"), "softcap"),
        (config_of("gemma3n_text"), "share their keys and values"),
        (config_of("gemma4_text", num_kv_shared_layers=5), "share their keys and values"),
        (config_of("gemma4_text", use_bidirectional_attention="all"), "bidirectional"),
        (config_of("gemma3_text", layer_types=["full_attention"] * 26, attn_logit_softcapping=50.0), "softcap"),
        (
            config_of("gemma3_text", layer_types=["full_attention"] * 26, use_bidirectional_attention=True),
            "bidirectional",
        ),
        (config_of("deepseek_v3"), "latent attention"),
        (config_of("t5"), "encoder-decoder"),
        (config_of("granitemoehybrid"), "none of its layers has attention"),
        (config_of("minimax"), "has not been tested"),
        (config_of("gpt2"), "has not been tested"),
    ],
)
def test_other_models_are_refused_by_type_with_the_reason(config: Any, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        check_supported(config)
    assert repr(config.model_type) in str(caught.value)
    assert "llama" in str(caught.value)


def test_a_sliding_window_that_reaches_the_whole_context_is_no_window() -> None:
    check_supported(config_of("phi3", sliding_window=4096, max_position_embeddings=4096))


def test_attention_that_is_bidirectional_among_pixels_alone_is_causal_here() -> None:
    check_supported(config_of("gemma4_text", use_bidirectional_attention="vision"))


def test_a_saved_model_loads_in_evaluation_mode_and_the_dtype_asked_for(saved: Path) -> None:
    model, tokenizer = load(saved, device="cpu")
    assert (model.dtype, model.training) == (torch.float32, False)
    assert tokenizer("a</think>").input_ids[-1] == CLOSE
    assert load(str(saved), device="cpu", dtype=torch.bfloat16)[0].dtype == torch.bfloat16


QWEN_SEES = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 64}
SEES = {"num_hidden_layers": 1, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "head_dim": 8}


@pytest.mark.parametrize(
    ("model_type", "text_type", "vision"),
    [
        ("gemma3", "gemma3_text", SEES),
        ("gemma4", "gemma4_text", SEES),
        ("mistral3", "ministral3", {"model_type": "pixtral", **SEES}),
        ("qwen3_5", "qwen3_5_text", QWEN_SEES),
        ("qwen3_5_moe", "qwen3_5_moe_text", QWEN_SEES),
    ],
)
def test_of_a_checkpoint_that_also_sees_the_text_model_is_loaded(
    model_type: str, text_type: str, vision: dict[str, Any], tmp_path: Path
) -> None:
    text, ids = make_model(text_type).config.to_dict(), torch.arange(12)[None]
    torch.manual_seed(0)
    config = config_of(model_type, text_config=text, vision_config=vision)
    whole = AutoModelForImageTextToText.from_config(config).eval()
    whole.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with torch.no_grad():
        logits = whole(input_ids=ids).logits
        for older in ("model.language_model.", "language_model.model."):
            file = tmp_path / "model.safetensors"
            weights = {re.sub(r"^(model.language_model|language_model.model)\.", older, name): weight
                       for name, weight in load_file(file).items()}  # fmt: skip
            save_file(weights, file, metadata={"format": "pt"})
            model = load(tmp_path, device="cpu")[0]
            assert model.config.model_type == text_type
            assert torch.equal(model(ids).logits, logits)
    with pytest.raises(UnsupportedModel, match=r"leanthink\.load takes the text model alone"):
        check_supported(whole.config)


def test_an_unsupported_model_is_refused_before_its_weights_are_read(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    (saved / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UnsupportedModel, match="gpt2"):
        load(saved)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "there is no folder"),
        ("./neither", "there is no folder"),
        ("", "name of the model is empty"),
        ("model.gguf", "there is no GGUF file"),
        (__file__, "is a file"),
        (str(Path(__file__).parent), "no config.json"),
    ],
)
def test_what_cannot_be_a_model_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(name)


def test_a_folder_without_weights_is_an_incomplete_download(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="holds no weights"):
        load(saved)


@pytest.mark.parametrize("architecture", ["qwen3", "llama", "gemma3_text"])
@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]], ids=["nothing", "its config"])
def test_a_folder_without_a_tokenizer_says_what_is_missing(architecture: str, left: list[str], tmp_path: Path) -> None:
    make_model(architecture).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    for path in tmp_path.glob("tokenizer*"):
        if path.name not in left:
            path.unlink()
    with pytest.raises(UsageError, match=r"holds no tokenizer .*: put tokenizer\.json") as caught:
        load(tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "facts", "package"),
    [
        ("gptq", {"bits": 4, "group_size": 128}, "optimum"),
        ("awq", {"bits": 4, "group_size": 128}, "gptqmodel"),
        ("bitsandbytes", {"load_in_4bit": True}, "bitsandbytes"),
        ("compressed-tensors", {"format": "pack-quantized", "config_groups": {}}, "compressed-tensors"),
        ("torchao", {"quant_type": "int8_weight_only"}, "torchao"),
    ],
)
def test_quantized_weights_whose_package_is_missing_say_what_to_install(
    method: str, facts: dict[str, Any], package: str, saved: Path
) -> None:
    if find_spec(package.replace("-", "_")) is not None:
        pytest.skip(f"{package} is installed")
    config = json.loads((saved / "config.json").read_text())
    quantization = {"quantization_config": {"quant_method": method, **facts}}
    (saved / "config.json").write_text(json.dumps(config | quantization))
    with pytest.raises(UsageError, match=rf"{package}.*\): install it, or take") as caught:
        load(saved, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_quantisation_that_fails_is_not_called_damage(saved: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be quantised as quantization_config says \(AttributeError: 'int'"):
        load(saved, device="cpu", quantization_config=5)


def test_damaged_weights_are_named_with_the_folder(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(b"{")
    with pytest.raises(DamagedFile, match=f"weights in '{saved}'"):
        load(saved)


def test_a_gguf_file_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r"leanthink\[gguf\]"):
        load(tmp_path / "m.gguf")


def test_the_embedded_model_goes_by_its_name() -> None:
    model, tokenizer = load("tiny", device="cpu")
    assert (model.config._name_or_path, model.dtype, model.training) == ("tiny", torch.float32, False)
    assert tokenizer.convert_tokens_to_ids("<think>") is not None


def test_the_model_that_shipped_once_is_told_how_to_make(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = "examples/tiny-brief.sh"
    assert (Path(__file__).parent.parent / recipe).is_file()
    monkeypatch.chdir(saved.parent)
    with pytest.raises(UsageError, match=recipe):
        load("tiny-brief")
    saved.rename("tiny-brief")
    load("tiny-brief")


def test_tags_are_single_tokens_or_nothing() -> None:
    tags = think_tags(make_tokenizer())
    assert (tags.open_id, tags.close_id) == (OPEN, CLOSE)

    without = think_tags(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE(vocab={"a": 0}, merges=[]))))
    assert (without.open_id, without.close_id) == (None, None)
    words = WordLevel(vocab={"?": 0, "<think>": 1}, unk_token="?")
    half = think_tags(PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), unk_token="?"))
    assert (half.open_id, half.close_id) == (1, None)


def test_what_ends_a_text_is_what_the_model_and_the_tokenizer_say_together() -> None:
    model, tokenizer = make_model(), make_tokenizer()
    model.config.eos_token_id = None
    model.generation_config.eos_token_id = [3, END, 4]
    assert end_ids(model, tokenizer) == (3, END, 4)
    model.generation_config.eos_token_id = 5  # a base model's, whose fine-tuned tokenizer has another
    assert end_ids(model, tokenizer) == (5, END)
    model.generation_config.eos_token_id = tokenizer.eos_token = None
    model.config.eos_token_id = 2  # a default of its class, which is a word of this tokenizer
    assert end_ids(model, tokenizer) == ()
    model.config.eos_token_id = [2, 259]
    assert end_ids(model, tokenizer) == (259,)


@pytest.fixture
def asked_of_gguf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Loads a GGUF file and returns what transformers is told of it."""
    pytest.importorskip("gguf")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    asked: dict[str, Any] = {}
    for name, found in (("_read_config", make_model().config), ("_load_tokenizer", make_tokenizer())):
        monkeypatch.setattr(f"leanthink.models.loading.{name}", lambda *_, found=found: found)
    take = lambda *_, **options: asked.update(options) or make_model()  # noqa: E731 (it is a call)
    monkeypatch.setattr("leanthink.models.loading.AutoModelForCausalLM", SimpleNamespace(from_pretrained=take))
    return lambda: load(tmp_path / "m.gguf", device="cpu") and asked


@pytest.mark.skipif(not hasattr(transformers, "GgufConfig"), reason="this release never leaves weights packed")
def test_packed_weights_of_a_gguf_file_are_unpacked(asked_of_gguf: Callable[[], dict[str, Any]]) -> None:
    assert asked_of_gguf()["quantization_config"].dequantize


def test_a_release_that_packs_no_weights_is_told_nothing_of_them(
    asked_of_gguf: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leanthink.models.transformers_versions.transformers", SimpleNamespace())
    assert "quantization_config" not in asked_of_gguf()


@pytest.mark.parametrize("shape", [(64,), (1, 64), (3, 64), (48, 64), (4, 6, 96)])
@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_gguf_weights_are_unpacked_in_larger_groups_to_the_same_numbers(kind: str, shape: tuple[int, ...]) -> None:
    gguf = pytest.importorskip("gguf")
    of = gguf.GGMLQuantizationType[kind]
    packed = gguf.quantize(torch.randn(shape).numpy(), of)
    wanted = gguf.dequantize(packed, of)
    with read_once():
        assert (gguf.dequantize(packed, of) == wanted).all()


def test_a_gguf_header_is_parsed_once_and_as_before(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    names = gguf.GGUFReader, gguf.dequantize
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_token_list(["a", "é", "</think>"])
    writer.add_tensor("w", torch.randn(4, 64).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wanted = gguf.GGUFReader(tmp_path / "m.gguf")
    with read_once():
        got = gguf.GGUFReader(tmp_path / "m.gguf")
        assert got is gguf.GGUFReader(tmp_path / "m.gguf")
        assert {name: one.contents() for name, one in got.fields.items()} == {
            name: one.contents() for name, one in wanted.fields.items()
        }
        assert (got.tensors[0].data == wanted.tensors[0].data).all()
    with pytest.raises(ZeroDivisionError), read_once():
        raise ZeroDivisionError
    assert (gguf.GGUFReader, gguf.dequantize) == names
