"""The embedded reasoner's byte-level tokenizer: 256 bytes, six special tokens, and a training document's layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A byte's id is its value, so that text becomes ids without a lookup; the special tokens follow.
PAD, USER, ASSISTANT, THINK, END_THINK, END = range(256, 262)
SPECIAL_TOKENS = ("<|pad|>", "<|user|>", "<|assistant|>", "<think>", "</think>", "<|end|>")
VOCABULARY = 264  # padded to a multiple of 8: bf16 matrix units want rows of 16 bytes

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{- '<|user|>' + message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- '<|assistant|>' + message['content'] + '<|end|>' -}}"
    "{%- else -%}{{- raise_exception('the roles are user and assistant, not ' + message['role']) -}}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|><think>\\n' -}}{%- endif -%}"
)


class Document(Protocol):
    """One problem with its worked-out thought; all three are plain text."""

    @property
    def prompt(self) -> str: ...  # noqa: D102
    @property
    def thought(self) -> str: ...  # noqa: D102
    @property
    def answer(self) -> str: ...  # noqa: D102


def encode_document(document: Document) -> tuple[NDArray[np.uint16], int]:
    r"""The ids of `<|user|>{prompt}<|assistant|><think>\n{thought}\n</think>\n{answer}<|end|>` and the prompt's share.

    Every text is taken as bytes, so a special token spelled out inside it stays text.

    Returns:
        uint16 [tokens], and how many of them, from the left, are given to the model and not learned.
    """
    prompt, thought, answer = document.prompt.encode(), document.thought.encode(), document.answer.encode()
    ids_T = np.frombuffer(b"".join((b"?", prompt, b"??\n", thought, b"\n?\n", answer, b"?")), dtype=np.uint8).astype(
        np.uint16
    )
    assistant = 1 + len(prompt)
    thought_start = assistant + 3
    end_think = thought_start + len(thought) + 1
    ids_T[[0, assistant, assistant + 1, end_think, -1]] = (USER, ASSISTANT, THINK, END_THINK, END)
    return ids_T, thought_start


def byte_symbols() -> list[str]:
    """The printable stand-in of each byte 0..255 in byte-level vocabularies: itself, or U+0100 onwards in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(stand_ins)) for byte in range(256)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The same ids through the `tokenizers` library: a byte-level vocabulary without merges, and the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    # The think tags are kept by `skip_special_tokens`: whoever reads the text needs to see where the thought ends.
    tokenizer.add_tokens([AddedToken(text, normalized=False, special="think" not in text) for text in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        padding_side="left",
        model_max_length=4608,
    )


def save_tokenizer(folder: Path) -> None:
    """Write the files that plain `AutoTokenizer.from_pretrained(folder)` reads."""
    build_tokenizer().save_pretrained(folder)
