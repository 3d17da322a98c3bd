"""Loads a model and its tokenizer, and refuses by name what the bounded cache cannot serve."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from leanthink.models.context import context_of
from leanthink.models.gguf_reading import read_once
from leanthink.models.kv_shape import KVShape
from leanthink.models.state_shape import STATE_LAYERS, state_shape
from leanthink.models.tiny import TINY, load_tiny, weights_path
from leanthink.models.transformers_versions import unpacked_gguf, withholds_options
from leanthink.utils.device import check_device
from leanthink.utils.errors import DamagedFile, LeanThinkError, UnsupportedModel, UsageError, unknown
from leanthink.utils.file_reading import said

MODEL_TYPES = (  # each of them stands among the architectures of tests/models.py, which all tests of models go through
    "afmoe", "apertus", "bamba", "cohere2", "cwm", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe",
    "falcon_h1", "gemma3_text", "gemma4_text", "glm4", "glm4_moe", "gpt_oss", "granite", "granitemoe",
    "granitemoehybrid", "hunyuan_v1_dense", "hunyuan_v1_moe", "lfm2", "lfm2_moe", "llama", "minimax_m2", "ministral",
    "ministral3", "mistral", "mixtral", "nemotron_h", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "phi3", "phimoe",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "qwen3_next", "seed_oss",
    "smollm3",
)  # fmt: skip
SLOT_LAYERS = frozenset({"full_attention", "hybrid"})  # whose keys and values lie in slots
SERVED_LAYERS = SLOT_LAYERS | STATE_LAYERS | {"sliding_attention", "mlp", "moe"}
WITH_VISION = ("gemma3", "gemma4", "mistral3", "qwen3_5", "qwen3_5_moe")
# Of their checkpoints, older and newer: where the text model's weights are, and what they are called in one of its own.
TEXT_WEIGHTS = {r"^(model\.language_model|language_model\.model)\.": "model.", r"^language_model\.lm_head": "lm_head"}
DType = torch.dtype | Literal["auto"] | None


def as_dtype(name: str | None) -> DType:
    """What `load` takes, for a name such as "bfloat16", for "auto" or for None."""
    return cast(DType, name if name is None or name == "auto" else getattr(torch, name))


def load(
    name_or_path: str | Path, device: str | None = None, dtype: DType = None, *, tokenizer: Any = None, **options: Any
) -> tuple[Any, Any]:
    """The model, in evaluation mode, and its tokenizer.

    Args:
        name_or_path: "tiny" (the embedded reasoner), a folder, a GGUF file, or a model's id on the Hugging Face hub.
        device: where to put it; default "cuda" where there is one, else "cpu".
        dtype: of the weights; default bfloat16 on CUDA, float32 elsewhere. "auto" is the same, but for a checkpoint in
            float16, which stays so on CUDA.
        tokenizer: what `load_tokenizer` has returned, to be taken as it is; None: it is loaded.
        options: further ones of transformers' `from_pretrained`, such as quantization_config; with device_map among
            them the weights stay where it says.

    Raises:
        UsageError: there is no such model, folder, file or device, or it lacks a part.
        DamagedFile: the weights cannot be read.
        UnsupportedModel: the bounded cache cannot serve its architecture; found before any weight is read.
    """
    if device is not None:
        check_device(device)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if str(name_or_path) == TINY and not options:
        return load_tiny(device=device, dtype=None if dtype == "auto" else dtype, tokenizer=tokenizer)
    name, located = _locate(str(weights_path()) if str(name_or_path) == TINY else str(name_or_path))
    reading = read_once() if "gguf_file" in located else nullcontext()
    with _told(str(name_or_path), quantised="quantization_config" in options), reading:
        config = _read_config(name, located)
        check_supported(config)
        if tokenizer is None:
            tokenizer = _load_tokenizer(name, str(name_or_path), located)
        chosen = dtype_for(dtype, device, config)
        usual: dict[str, Any] = unpacked_gguf() if "gguf_file" in located else {"key_mapping": TEXT_WEIGHTS}
        model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=chosen, **located, **usual | options)
    model.config._name_or_path = str(name_or_path)  # a GGUF file's is else its folder
    model = model.eval() if "device_map" in options else model.to(device).eval()
    _unpack(model)
    return model, tokenizer


def load_tokenizer(name_or_path: str | Path) -> Any:
    """The tokenizer that `load` returns, without the weights; raises what `load` does."""
    given = str(weights_path() if str(name_or_path) == TINY else name_or_path)
    name, options = _locate(given)
    with _told(given):
        return _load_tokenizer(name, given, options)


def load_config(name_or_path: str | Path, *, also: Sequence[str] = ()) -> Any:
    """The config of a model alone: of a folder that may lack weights, a GGUF file's header, a hub id or "tiny".

    Args:
        name_or_path: as `load` takes it.
        also: other names that the caller knows, for the message about one that is unknown.

    Raises:
        UsageError: there is no such model, or it has no config.
        DamagedFile: its config cannot be read.
        UnsupportedModel: the bounded cache cannot serve its architecture.
    """
    given = str(weights_path()) if str(name_or_path) == TINY else str(name_or_path)
    name, options = _locate(given, needs_weights=False, also=also)
    with _told(given):
        config = _read_config(name, options)
        check_supported(config)
    return config


def _read_config(name: str, options: dict[str, Any]) -> Any:
    file = options.get("gguf_file")
    if file is None:
        return _text_part(AutoConfig.from_pretrained(name, **options))
    modified = (Path(name) / file).stat().st_mtime_ns
    return deepcopy(_gguf_config(name, modified, **options))


def _text_part(config: Any) -> Any:
    """The config of the text model, which transformers loads alone from a checkpoint that holds a vision tower, too."""
    if config.model_type not in WITH_VISION:
        return config
    text = config.get_text_config()
    text.tie_word_embeddings = config.tie_word_embeddings
    if getattr(config, "quantization_config", None) is not None:
        text.quantization_config = config.quantization_config
    return text


@lru_cache(maxsize=1)
def _gguf_config(name: str, modified: int, **options: Any) -> Any:
    """Of the latest GGUF file, as it was then: transformers takes seconds to read it, and a run asks more than once."""
    return AutoConfig.from_pretrained(name, **options)


@contextmanager
def _told(given: str, *, quantised: bool = False) -> Iterator[None]:
    """What reading a model's files raises, as our own errors; `given` is its name, `quantised`: as it is read."""
    try:
        yield
    except LeanThinkError:
        raise
    except ImportError as error:
        raise UsageError(
            f"{given!r} needs a package that is not here ({_first_line(error)}): install it, or take a "
            "checkpoint whose weights are not quantized"
        ) from error
    except SafetensorError as error:
        raise DamagedFile(f"the weights in {given!r} are damaged ({error}): download them again") from error
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"cannot load a model from {given!r}: {said(error)}") from error
    except Exception as error:  # what a pickle, a header that is cut off or a config of other types raises
        if quantised:
            raise UsageError(
                f"{given!r} cannot be quantised as quantization_config says ({said(error)}): give one that this "
                "device and the packages here know, or none"
            ) from error
        raise DamagedFile(f"a file of {given!r} cannot be read ({said(error)}): download it again") from error


def dtype_for(dtype: DType, device: str, config: Any) -> torch.dtype:
    """The type of the weights that `load` chooses for this device."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if not device.startswith("cuda"):
        return torch.float32
    is_half = dtype == "auto" and getattr(config, "dtype", None) == torch.float16
    return torch.float16 if is_half else torch.bfloat16


def _load_tokenizer(name: str, given: str, options: dict[str, Any]) -> Any:
    """The tokenizer; raises UsageError where there is none. Some of transformers' then come without a vocabulary."""
    why = "it knows no text"
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except ValueError as error:
        tokenizer, why = None, _first_line(error)
    if tokenizer is None or not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise UsageError(
            f"{given!r} holds no tokenizer that can be read ({why}): put tokenizer.json and tokenizer_config.json of "
            "the model that it was made from beside its weights"
        )
    return tokenizer


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(" .:")


def _locate(name: str, *, needs_weights: bool = True, also: Sequence[str] = ()) -> tuple[str, dict[str, Any]]:
    """What to pass to from_pretrained, after the checks that give a clearer message than it does."""
    if not name:
        raise UsageError('the name of the model is empty: give "tiny", a folder, a GGUF file or a hub id')
    path = Path(name).expanduser()
    if name == "tiny-brief" and not path.exists():
        raise UsageError("tiny-brief does not ship: make it with examples/tiny-brief.sh and give the folder it writes")
    closed = {"trust_remote_code": False}  # said aloud: the default asks on the terminal
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"there is no GGUF file {name!r}: check the path")
        try:
            import gguf  # noqa: F401
        except ImportError as error:
            raise UsageError(f"reading {name!r} needs the gguf package: pip install 'leanthink[gguf]'") from error
        return str(path.parent), {"gguf_file": path.name, **closed}
    if not path.is_dir():
        if path.exists():
            raise UsageError(f"{name!r} is a file: give the folder that holds config.json, or a .gguf file")
        if name.count("/") > 1 or name.startswith((".", "/", "~")):
            raise UsageError(f"there is no folder {name!r}, and it is no hub id either: check the path")
        if "/" not in name:
            raise unknown("model", name, (TINY, *also, "a folder", "a .gguf file", "a hub id such as Qwen/Qwen3-4B"))
        return name, closed
    if not (path / "config.json").is_file():
        raise UsageError(f"the folder {name!r} holds no config.json: give the folder of a saved model")
    patterns = ("*.safetensors", "*.safetensors.index.json", "*.bin")
    if needs_weights and not any(next(path.glob(pattern), None) for pattern in patterns):
        raise UsageError(f"the folder {name!r} holds no weights (*.safetensors or *.bin): the download is incomplete")
    return str(path), closed


def check_supported(config: Any) -> None:
    """Raise UnsupportedModel, naming the model type and the reason, unless the bounded cache can serve this model."""
    reason = _why_unsupported(config)
    if reason is not None:
        raise UnsupportedModel(
            f"model type {config.model_type!r} is not supported: {reason}. LeanThink serves decoders with layers of "
            "full attention, and others with a sliding window, linear attention or a state space beside them, of the "
            f"types {', '.join(MODEL_TYPES)}"
        )


def _why_unsupported(config: Any) -> str | None:
    layer_types = getattr(config, "layer_types", None)
    other_layers = sorted(set(layer_types or ()) - SERVED_LAYERS)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder"
    if getattr(config, "kv_lora_rank", None):
        return "it uses latent attention (MLA)"
    if other_layers:
        return f"it has layers of type {', '.join(other_layers)}"
    if getattr(config, "attn_logit_softcapping", None):
        return "it caps its attention scores (softcap)"
    if getattr(config, "num_kv_shared_layers", 0):
        return "some of its layers share their keys and values"
    if config.model_type in WITH_VISION:
        return "it also sees; leanthink.load takes the text model alone"
    if config.model_type not in MODEL_TYPES:
        return "its attention has not been tested with the bounded cache"
    if withholds_options(config.model_type):
        return (
            f"transformers {transformers.__version__} does not tell its attention of the cache: install 5.17 or newer"
        )
    if getattr(config, "max_position_embeddings", None) is None:
        return "its config has no max_position_embeddings"
    if layer_types is not None and not SLOT_LAYERS.union({"sliding_attention"}).intersection(layer_types):
        return "none of its layers has attention, so there is nothing to evict"
    if not _layers_of(SLOT_LAYERS, config) or (
        layer_types is None and window is not None and window < context_of(config)
    ):
        return f"all its layers use a sliding window of {window} tokens, so there is nothing left to evict"
    if "sliding_attention" in (layer_types or ()) and not window:
        return "its config has layers with a sliding window, and no sliding_window"
    if getattr(config, "use_bidirectional_attention", None) not in (None, False, "vision"):
        return "its attention is bidirectional"
    return None


def kv_shape(config: Any) -> KVShape:
    """The shape of this model's keys and values."""
    full, sliding = _layers_of(SLOT_LAYERS, config), _layers_of({"sliding_attention"}, config)
    kv_heads, head_dim = _heads_of(full[0], config)
    window_kv_heads, window_head_dim = _heads_of(sliding[0], config) if sliding else (0, 0)
    return KVShape(
        layers=len(full),
        kv_heads=kv_heads,
        group=config.num_attention_heads // kv_heads,
        head_dim=head_dim,
        slot_layers=full if len(full) < config.num_hidden_layers else None,
        sliding_layers=sliding,
        window=min(config.sliding_window, context_of(config)) if sliding else 0,
        window_kv_heads=window_kv_heads,
        window_head_dim=window_head_dim,
        states=state_shape(config),
    )


def _heads_of(layer: int, config: Any) -> tuple[int, int]:
    """How many kv heads a layer has, and the numbers of a key; in Gemma 4 they depend on the layer's type."""
    of_layer = config if getattr(config, "per_layer_config", None) is None else config.per_layer_config[layer]
    heads: int = of_layer.num_attention_heads
    kv_heads: int = getattr(of_layer, "num_key_value_heads", None) or heads
    head_dim: int = getattr(of_layer, "head_dim", None) or of_layer.hidden_size // heads
    return kv_heads, head_dim


def _layers_of(kinds: Collection[str], config: Any) -> tuple[int, ...]:
    """The layers of these types; a config that tells no types has full attention alone."""
    types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return tuple(layer for layer, found in enumerate(types) if found in kinds)


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end a generation: those of the generation config and the tokenizer's, each of which may lack one.

    The model config's count where they are special tokens: an id that it has from its class may be any word.
    """
    special = {token_id for token_id, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    of_config = as_ids(getattr(model.config, "eos_token_id", None))
    of_tokenizer = as_ids(getattr(tokenizer, "eos_token_id", None))
    found = [*as_ids(model.generation_config.eos_token_id), *of_tokenizer, *(i for i in of_config if i in special)]
    return tuple(dict.fromkeys(found))


def as_ids(ids: int | Sequence[int] | None) -> list[int]:
    """A list of token ids, as configs give them: one, several or none."""
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _unpack(model: Any) -> None:
    """Have compressed-tensors unpack the weights, which a hook on the model would do in its first forward.

    Prompts are fed to the body alone, where that hook is not, and a model's fingerprint is asked for before.
    """
    if hasattr(model, "ct_decompress_hook"):
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=model.device), use_cache=False)


def check_model(model: Any) -> None:
    """Raise UnsupportedModel unless the bounded cache can serve this model as it is loaded; unpack what is packed."""
    check_supported(model.config)
    _unpack(model)
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) > 1:
        names = ", ".join(sorted(str(device) for device in devices))
        raise UnsupportedModel(f"the model is spread over {names}: the cache lives on one device, so load it onto one")
