"""What single tokens are in text and in bytes, as log-probabilities tell them."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any, NamedTuple

from leanthink.models.tiny.tokenizer import byte_symbols

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # how vocabularies with byte fallback write one byte
BYTES = {symbol: byte for byte, symbol in enumerate(byte_symbols())}  # how byte-level vocabularies write them
UNKNOWN = "\ufffd"  # what bytes that are no text decode to


class TokenText(NamedTuple):
    r"""A token's text, its UTF-8, and whether that is text by itself.

    A piece of a character reads as its bytes, `\xe2\x82`; `utf8` is None where the vocabulary does not tell them.
    """

    text: str
    utf8: bytes | None
    is_whole: bool


class TokenTexts:
    """The texts of a tokenizer's tokens, each as it reads behind another one: a decoder may drop the first blank."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _before(self) -> list[int]:
        ids: list[int] = self._tokenizer("a", add_special_tokens=False).input_ids
        return ids

    def __getitem__(self, token_id: int) -> TokenText:
        """Of one token."""
        shown = self._decode([*self._before, token_id])[len(self._decode(self._before)) :]
        utf8 = shown.encode() if UNKNOWN not in shown else self._utf8(token_id)
        if utf8 is None:
            return TokenText(shown, None, is_whole=False)
        try:
            return TokenText(utf8.decode(), utf8, is_whole=True)
        except UnicodeDecodeError:
            return TokenText(utf8.decode("ascii", errors="backslashreplace"), utf8, is_whole=False)

    def _utf8(self, token_id: int) -> bytes | None:
        """As the vocabulary writes them."""
        written: str = self._tokenizer.convert_ids_to_tokens(token_id)
        if byte := BYTE_TOKEN.fullmatch(written):
            return bytes([int(byte[1], 16)])
        if BYTES.keys() >= set(written):
            return bytes(BYTES[symbol] for symbol in written)
        return written.encode() if UNKNOWN in written else None

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text
