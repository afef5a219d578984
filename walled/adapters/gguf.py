"""Reading a GGUF file's header: is it one, is it whole, what is in it. No engine needed.

May live here: the file format. May not: loading a model.

Everything here is checked before llama.cpp sees the file, because what it does with a bad one ranges from an
exception without a reason to the end of the process.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

from walled.errors import BootError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
FULL_HASH_BYTES = 64 * 1024 * 1024
"""Larger files are known by their size, their header and SAMPLES blocks of their weights."""
SAMPLES = 64
SAMPLE_BYTES = 1024 * 1024
MAX_TEXT_BYTES = 16 * 1024 * 1024

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9

# ggml's tensor types: elements per block, bytes per block. A type that is not here is not checked for size.
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110),
    22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8),
    29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip


class GgufInfo(NamedTuple):
    """What the header says."""

    architecture: str
    chat_template: str
    context_tokens: int
    """The context the model was trained for; 0 when the file does not say."""
    pooling: bool
    """The file says how the vectors of a text's tokens become one (embedding models do)."""
    token_bytes: int
    """No token stands for more bytes of a text than this; 0 where the tokenizer may drop some of a text."""
    tensors: int
    digest: str
    """SHA-256 of the file, or of its size, header and samples (see FULL_HASH_BYTES)."""


class _Reader:
    """A cursor over the mapped file; running past its end is a truncated file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.at = 0

    def scalar(self, code: str) -> Any:
        size = struct.calcsize("<" + code)
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def text(self) -> str:
        return self.raw().decode("utf-8", "replace")

    def raw(self) -> bytes:
        size = self.scalar("Q")
        if size > MAX_TEXT_BYTES or self.at + size > len(self.data):
            raise struct.error("text past the end")
        self.at += size
        return self.data[self.at - size : self.at]

    def value(self, kind: int) -> Any:
        """A value; arrays are skipped, and one of texts comes back as the length of the longest."""
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"unknown value type {kind}")
        kind, count = self.scalar("I"), self.scalar("Q")
        if kind == _STRING:
            return max((len(self.raw()) for _ in range(count)), default=0)
        if kind in _SCALARS:
            self.at += struct.calcsize("<" + _SCALARS[kind]) * count
            if self.at > len(self.data):
                raise struct.error("array past the end")
        else:
            for _ in range(count):
                self.value(kind)
        return None


def inspect(path: Path) -> GgufInfo:
    """Check the file and read its header. Raises BootError with the path, what is wrong and what to do."""
    try:
        if path.is_dir():
            raise BootError(f"{path}: is a directory; backends.*.model_path needs a .gguf file")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            if start[:4] != MAGIC:
                what = "is empty" if not start else "is not a GGUF file (it does not begin with GGUF)"
                raise BootError(f"{path}: {what}; download it again, or convert the model to GGUF")
            if len(start) < 8 or size < 24:
                raise BootError(f"{path}: is cut off after {size} bytes; download it again")
            (version,) = struct.unpack("<I", start[4:])
            if version not in VERSIONS:
                raise BootError(
                    f"{path}: GGUF version {version}; versions 2 and 3 are read. Convert the model again"
                )
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _inspect(path, data)
    except OSError as exc:
        raise BootError(
            f"{path}: cannot be read: {exc.strerror or exc}; correct backends.*.model_path"
        ) from None


def _inspect(path: Path, data: mmap.mmap) -> GgufInfo:
    reader = _Reader(data)
    reader.at = 8
    known: dict[str, Any] = {}
    try:
        tensors, values = reader.scalar("Q"), reader.scalar("Q")
        for _ in range(values):
            key = reader.text()
            known[key] = reader.value(reader.scalar("I"))
        ends = [_tensor_end(reader) for _ in range(tensors)]
    except (struct.error, IndexError):
        raise BootError(f"{path}: is cut off inside its header; download it again") from None
    except (ValueError, RecursionError) as exc:
        raise BootError(f"{path}: its header is damaged ({exc}); download it again") from None
    if not tensors:
        raise BootError(f"{path}: holds no weights (a vocabulary-only file?); a model is needed")
    alignment = known.get("general.alignment") or 32
    if not isinstance(alignment, int) or alignment < 1:
        raise BootError(f"{path}: its header is damaged (alignment {alignment!r}); download it again")
    begin = -(-reader.at // alignment) * alignment
    missing = begin + max(ends) - len(data)
    if missing > 0:
        raise BootError(
            f"{path}: is cut off: {missing} bytes of weights are missing of {begin + max(ends)}; "
            "download it again"
        )
    architecture = str(known.get("general.architecture") or "")
    window = known.get(f"{architecture}.context_length")
    return GgufInfo(
        architecture=architecture,
        chat_template=str(known.get("tokenizer.chat_template") or ""),
        context_tokens=window if isinstance(window, int) else 0,
        pooling=f"{architecture}.pooling_type" in known,
        token_bytes=_token_bytes(known),
        tensors=tensors,
        digest=_digest(data, begin),
    )


def _token_bytes(known: dict[str, Any]) -> int:
    longest = known.get("tokenizer.ggml.tokens")
    # As the file spells them, tokens are never shorter than what they stand for (BPE maps bytes to characters
    # of one or two, SentencePiece a space to three). Others replace whole words they do not know.
    keeps_all = known.get("tokenizer.ggml.model") in ("gpt2", "llama")
    return longest if keeps_all and isinstance(longest, int) else 0


def _tensor_end(reader: _Reader) -> int:
    """Offset of the end of a tensor's data, from the start of the data."""
    reader.raw()
    dimensions = reader.scalar("I")
    if not 1 <= dimensions <= 8:
        raise ValueError(f"a tensor of {dimensions} dimensions")
    elements = 1
    for _ in range(dimensions):
        elements *= reader.scalar("Q")
    kind, offset = reader.scalar("I"), reader.scalar("Q")
    per_block, block_bytes = _BLOCKS.get(kind, (1, 0))
    return int(offset + elements // per_block * block_bytes)


def _digest(data: mmap.mmap, begin: int) -> str:
    size = len(data)
    if size <= FULL_HASH_BYTES:
        return hashlib.sha256(data).hexdigest()
    hasher = hashlib.sha256(b"walled-gguf-sample %d " % size)
    hasher.update(memoryview(data)[:begin])
    step = (size - begin) // SAMPLES
    for index in range(SAMPLES):
        at = begin + index * step
        hasher.update(data[at : at + SAMPLE_BYTES])
    hasher.update(data[-SAMPLE_BYTES:])
    return hasher.hexdigest()
