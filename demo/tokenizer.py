"""The demo model's tokenizer: llama.cpp's "SPM" kind (bytes, characters, merged pieces with scores), learnt from a corpus.

Encoding follows llama.cpp's ``llm_tokenizer_spm``: a text's characters; then, again and again, the adjacent pair whose
concatenation is the piece with the highest score; a character without a piece of its own becomes its UTF-8 bytes. No piece
goes beyond a word, so that each word can be encoded by itself.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from typing import Iterable, Sequence

UNKNOWN, BEGIN, END, SYSTEM, USER, ASSISTANT = "<unk>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL: Sequence[str] = (UNKNOWN, BEGIN, END, SYSTEM, USER, ASSISTANT)
SPACE = "▁"  # how pieces write a space
SIZE = 1024
_BYTES = tuple(f"<0x{value:02X}>" for value in range(256))
_CHARACTERS = (SPACE, *(chr(code) for code in range(33, 127)))
# Only these may be merged: lower-case words, each with the space before it. Digits and signs stay alone.
_WORD = re.compile(f"{SPACE}?[a-z]+")
_SPECIAL = re.compile("(" + "|".join(map(re.escape, SPECIAL[2:])) + ")")
_CHUNK = re.compile(f"{SPACE}?[^{SPACE}]*")


class Tokenizer:
    """A vocabulary, and how a text becomes its numbers.

    Args:
        merges: the merged pieces, those learnt first having the highest score.
    """

    def __init__(self, merges: Sequence[str]) -> None:
        self.pieces: Sequence[str] = (*SPECIAL, *_BYTES, *_CHARACTERS, *merges)
        self._ids = {piece: number for number, piece in enumerate(self.pieces)}
        self._first_byte = len(SPECIAL)
        self.first_merge = len(self.pieces) - len(merges)
        self._chunk = functools.lru_cache(maxsize=1 << 18)(self._encode_chunk)

    @property
    def scores(self) -> Sequence[float]:
        """Each piece's score: the order in which merges were learnt."""
        return [float(min(0, self.first_merge - number)) for number in range(len(self.pieces))]

    def is_byte(self, number: int) -> bool:
        """Whether this token is one byte."""
        return self._first_byte <= number < self._first_byte + 256

    def encode(self, text: str) -> list[int]:
        """The numbers of a text; the names of special tokens become those tokens."""
        found: list[int] = []
        for part in _SPECIAL.split(text):
            if part in SPECIAL:
                found.append(self._ids[part])
            else:
                for chunk in _CHUNK.findall(part.replace(" ", SPACE)):
                    found += self._chunk(chunk)
        return found

    def decode(self, numbers: Iterable[int]) -> str:
        """The text of some numbers; special tokens are left out."""
        data = b""
        for number in numbers:
            if self.is_byte(number):
                data += bytes([number - self._first_byte])
            elif number >= len(SPECIAL):
                data += self.pieces[number].replace(SPACE, " ").encode()
        return data.decode("utf-8", "replace")

    def _encode_chunk(self, chunk: str) -> tuple[int, ...]:
        parts, absent = list(chunk), len(self.pieces)
        while True:
            # The best pair has the smallest number, as the scores fall with the numbers; the leftmost one among equals.
            found = [self._ids.get(left + right, absent) for left, right in zip(parts, parts[1:])]
            best = min(found, default=absent)
            if best == absent:
                break
            place = found.index(best)
            parts[place : place + 2] = [self.pieces[best]]
        return tuple(number for part in parts for number in self._numbers(part))

    def _numbers(self, part: str) -> Sequence[int]:
        number = self._ids.get(part)
        return [self._first_byte + byte for byte in part.encode()] if number is None else [number]


def learn(texts: Iterable[str], size: int = SIZE) -> Tokenizer:
    """A tokenizer with ``size`` pieces by byte-pair encoding (Sennrich et al. 2016): merge the commonest pair, and again.

    Raises:
        ValueError: the corpus has too few different pairs.
    """
    counts = Counter(word for text in texts for word in _WORD.findall(text.replace(" ", SPACE)))
    words = [(list(word), count) for word, count in sorted(counts.items())]
    merges: list[str] = []
    room = size - len(SPECIAL) - len(_BYTES) - len(_CHARACTERS)
    while len(merges) < room:
        pairs: Counter[tuple[str, str]] = Counter()
        for parts, count in words:
            for pair in zip(parts, parts[1:]):
                pairs[pair] += count
        if not pairs:
            raise ValueError(f"only {len(merges)} merges in this corpus, not {room}")
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        for parts, _ in words:
            place = 0
            while place < len(parts) - 1:
                if parts[place] == left and parts[place + 1] == right:
                    parts[place : place + 2] = [left + right]
                place += 1
        if left + right not in merges:
            merges.append(left + right)
    return Tokenizer(merges)
