"""Target `tensors` of bench/fuzz.py: files of predictors and of labels, their header as JSON and bytes after it."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fuzz_mutations import JSON_WORDS
from fuzz_target import Target, promised, scratch
from safetensors.torch import save

from leanthink.importance import label_file
from leanthink.models.predictor import Predictor, predictor_of, read_metadata, save_predictor
from leanthink.utils.errors import LeanThinkError

CONFIG = SimpleNamespace(hidden_size=4, vocab_size=20, num_hidden_layers=2, num_attention_heads=2,
                         num_key_value_heads=1, head_dim=2, model_type="qwen3")  # fmt: skip
WORDS = (b'"F32"', b'"BF16"', b'"I64"', b'"BOOL"', b'"F8_E4M3"', b'"shape":[', b'"__metadata__"', b"sets of ")


def target() -> Target:
    """Each input is read as a predictor, and as labels."""
    path = scratch() / "file.safetensors"

    def run(data: bytes) -> None:
        path.write_bytes(data)
        for check in (check_predictor, check_labels):
            with promised(LeanThinkError):
                check(path)

    return Target(run=run, seeds=tuple(files(path)), words=(*WORDS, *JSON_WORDS), unpack=safetensors_header)


def check_predictor(path: Path) -> None:
    """It scores, and its metadata are the same after it was written and read."""
    metadata = read_metadata(path)
    for ours in ("f", "another"):
        with promised(LeanThinkError):
            found = predictor_of(path, ours, CONFIG, ignore_predictor_mismatch=True)
            states_NWF = torch.zeros(2, len(found.offsets), 2 * CONFIG.hidden_size)
            shape = (2, found.num_sets * max(1, len(found.horizons)))
            assert metadata["hidden_size"] != CONFIG.hidden_size or found(states_NWF).shape == shape
            again = path.with_name("again.safetensors")
            save_predictor(found, again, base_fingerprint=metadata["fingerprint"], data=metadata["data"],
                           metrics=metadata["metrics"], base_shape=metadata["base_shape"])  # fmt: skip
            written = read_metadata(again)
            written.pop("format", None)  # of the package that wrote it
            assert written == {name: metadata[name] for name in written}, "another after it was written and read"


def check_labels(path: Path) -> None:
    """All that is read has the dtypes and shapes that are promised."""
    found = label_file.read_labels(path)
    for key, values_TC in found.labels.items():
        assert values_TC.dtype == torch.float32
        assert values_TC.shape == (len(values_TC), 1 + len(found.horizons))
        assert isinstance(found.checksums[key], int)
        assert found.granularity == "model" or found.sets[key].dtype == torch.uint8


def files(path: Path) -> Iterator[bytes]:
    """Small predictors and labels of each kind; predictors are written to this path first."""
    about = {"thought_tokens": 3.5, "tokens": 7, "traces": 2, "recipe": {"tokens_per_trace": 4}}
    shape = {"layers": 2, "kv_heads": 1, "vocab_size": 20}
    for found, data in (
        (Predictor(target="answer", hidden_size=4), {}),
        (Predictor(target="horizon", hidden_size=4, horizons=(2, 8), offsets=(0, 1), width=1), about),
        (Predictor(target="horizon", hidden_size=4, horizons=(2,), granularity="layer", num_sets=2, width=1), {}),
    ):
        save_predictor(found, path, base_fingerprint="f", data=data, metrics={"m": 0.5}, base_shape=shape)
        yield path.read_bytes()
    told = {"leanthink": "labels", "version": "2", "horizons": "[2]", "fingerprint": "f", "checksums": '{"a#0": 1}'}
    labels, sets = {"a#0": torch.zeros(3, 2)}, {"sets of a#0": torch.zeros(2, 3, 1, dtype=torch.uint8)}
    yield save(labels, metadata={**told, "granularity": "model", "answer_from": "null"})
    yield save(labels | sets, metadata={**told, "granularity": "layer", "answer_from": "null"})


def safetensors_header(data: bytes) -> tuple[Any, Callable[[str], bytes]]:
    """The metadata, with what is JSON in its texts as such, and the rest of the header."""
    (size,) = struct.unpack("<Q", data[:8])
    tensors = json.loads(data[8 : 8 + size])
    metadata = tensors.pop("__metadata__", {})
    for name, text in metadata.items():
        with contextlib.suppress(ValueError, TypeError):
            metadata[name] = {"as text": json.loads(text)}

    def framed(text: str) -> bytes:
        found = {"metadata": {}, "tensors": {}, **json.loads(text)}
        for name, value in found["metadata"].items():
            if isinstance(value, Mapping) and "as text" in value:
                found["metadata"][name] = json.dumps(value["as text"])
        head = json.dumps({"__metadata__": found["metadata"], **found["tensors"]}).encode()
        return struct.pack("<Q", len(head)) + head + data[8 + size :]

    return {"metadata": metadata, "tensors": tensors}, framed
