"""Reading GGUF headers: what is in a good one, and that no bytes at all can do more than be refused."""

from __future__ import annotations

import contextlib
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapters.test_llamacpp import built_in
from walled.adapters import gguf
from walled.errors import BootError


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def pair(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def made(*pairs: bytes, elements: int = 64, kind: int = 0, data: int = 256, offset: int = 0) -> bytes:
    """A GGUF file with these metadata and one tensor."""
    tensor = text(b"w") + struct.pack("<IQIQ", 1, elements, kind, offset)
    header = b"GGUF" + struct.pack("<IQQ", 3, 1, len(pairs)) + b"".join(pairs) + tensor
    return header + b"\0" * (-len(header) % 32) + b"\x07" * data


ARCHITECTURE = pair(b"general.architecture", 8, text(b"llama"))


def inspect(content: bytes) -> gguf.GgufInfo:
    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(content)
        file.flush()
        return gguf.inspect(Path(file.name))


def test_the_built_in_model() -> None:
    info = gguf.inspect(built_in())
    assert info.architecture == "llama"
    assert info.context_tokens > 0
    assert "im_start" in info.chat_template
    assert info.tensors > 10
    assert not info.pooling


def test_values_of_every_kind_are_read_or_skipped() -> None:
    scalars = [pair(b"k%d" % kind, kind, struct.pack("<" + code, 1)) for kind, code in gguf._SCALARS.items()]
    numbers = struct.pack("<IQ", 4, 3) + struct.pack("<3I", 1, 2, 3)
    texts = struct.pack("<IQ", 8, 2) + text(b"a") + text(b"bc")
    nested = struct.pack("<IQ", 9, 1) + numbers
    arrays = [pair(b"a%d" % n, 9, value) for n, value in enumerate((numbers, texts, nested))]
    window = pair(b"llama.context_length", 4, struct.pack("<I", 512))
    pooling = pair(b"llama.pooling_type", 4, struct.pack("<I", 1))
    info = inspect(made(ARCHITECTURE, *scalars, *arrays, window, pooling))
    assert (info.architecture, info.context_tokens, info.pooling) == ("llama", 512, True)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (made(ARCHITECTURE, data=255), "1 bytes of weights are missing"),
        (made(ARCHITECTURE, offset=1 << 40), "weights are missing"),
        (made(ARCHITECTURE, elements=256, kind=12, data=143), "1 bytes of weights are missing of"),
        (made(pair(b"x", 77, b"")), "damaged"),
        (made(pair(b"general.alignment", 4, struct.pack("<I", 0)))[:40], "cut off"),
        (made(pair(b"general.alignment", 8, text(b"much"))), "alignment"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, words: str) -> None:
    with pytest.raises(BootError, match=words):
        inspect(content)


def test_a_window_that_is_no_number_is_unknown() -> None:
    assert inspect(made(ARCHITECTURE, pair(b"llama.context_length", 8, text(b"long")))).context_tokens == 0


def test_the_longest_token_is_known_where_no_byte_of_a_text_is_lost() -> None:
    tokens = pair(
        b"tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text(b"a") + text(b"abcd") + text(b"")
    )
    for kind, longest in ((b"gpt2", 4), (b"llama", 4), (b"bert", 0)):
        tokenizer = pair(b"tokenizer.ggml.model", 8, text(kind))
        assert inspect(made(ARCHITECTURE, tokenizer, tokens)).token_bytes == longest
    assert inspect(made(ARCHITECTURE, tokenizer)).token_bytes == 0


def test_a_big_file_is_known_by_size_header_and_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    small = inspect(made(ARCHITECTURE, data=4096)).digest
    monkeypatch.setattr(gguf, "FULL_HASH_BYTES", 1000)
    monkeypatch.setattr(gguf, "SAMPLE_BYTES", 16)
    whole = made(ARCHITECTURE, data=4096)
    digest = inspect(whole).digest
    assert digest != small
    assert inspect(whole).digest == digest
    end = bytearray(whole)
    end[-1] ^= 1
    assert inspect(bytes(end)).digest != digest
    assert inspect(whole + b"\0").digest != digest
    assert inspect(made(ARCHITECTURE, pair(b"k", 0, b"\1"), data=4096)).digest != digest


@settings(max_examples=200)
@given(st.data())
def test_damage_is_refused_or_harmless(data: st.DataObject) -> None:
    content = bytearray(made(ARCHITECTURE, pair(b"t", 9, struct.pack("<IQ", 8, 1) + text(b"abc"))))
    header = len(content) - 256
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, header - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(8, len(content)))
    with contextlib.suppress(BootError):  # and nothing else
        assert inspect(bytes(content[:cut])).tensors >= 1


@given(st.binary(max_size=400))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(BootError):
        inspect(b"GGUF\x03\0\0\0" + noise[:23])
