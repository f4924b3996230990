"""What each token adds to a text, in the form in which OpenVINO GenAI reads a vocabulary for guided decoding.

The engine works on token ids; only its grammars need texts. It takes them from the constants of the
VocabDecoder node of a detokenizer beside the model, so that is what is written. Tokens without a text, such
as special ones, are never part of a guided answer.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import Node, opset15
from openvino import opset13 as ops
from openvino.utils.node_factory import NodeFactory
from tokenizers import Tokenizer

from common.detokenize import TokenTexts
from common.tensors import Array

DETOKENIZER_FILE = "openvino_detokenizer.xml"
TEXTLESS_FILE = "textless_tokens.json"


def token_bytes(tokenizer_file: Path, vocab_size: int) -> list[bytes] | None:
    """The UTF-8 bytes, whole characters or not, of each of `vocab_size` tokens.

    None where there is no such tokenizer, or where a token's text depends on its neighbours.
    """
    if not tokenizer_file.is_file():
        return None
    texts = TokenTexts(Tokenizer.from_file(str(tokenizer_file)))
    if not texts.joinable:
        return None
    found = (texts[token] for token in range(vocab_size))
    return [text.encode() if isinstance(text, str) else text for text in found]


def write_vocabulary(tokens: Sequence[bytes], folder: Path) -> None:
    """Put the vocabulary into `folder`, beside the model."""
    # The library that holds the node's code goes with the factory, so it must outlive the model.
    factory = NodeFactory()
    factory.add_extension(str(_extension()))
    _save_detokenizer(factory, tokens, folder / DETOKENIZER_FILE)
    textless = [token for token, text in enumerate(tokens) if not text]
    (folder / TEXTLESS_FILE).write_text(json.dumps(textless), encoding="ascii")


def textless_tokens(folder: Path) -> frozenset[int] | None:
    """The tokens without a text; None when `folder` holds no vocabulary."""
    path = folder / TEXTLESS_FILE
    return frozenset(json.loads(path.read_text(encoding="ascii"))) if path.is_file() else None


def _save_detokenizer(factory: NodeFactory, tokens: Sequence[bytes], path: Path) -> None:
    """Ids [batch, length], int64 -> the text of each id. The engine runs it once, when it starts."""
    ids = ops.parameter([-1, -1], np.int64)
    constants = [ops.constant(part).output(0) for part in _packed(tokens)]
    decoder: Node = factory.create("VocabDecoder", [ops.convert(ids, "i32").output(0), *constants])
    texts = opset15.string_tensor_pack(*(decoder.output(part) for part in (2, 3, 4)))
    model = ov.Model([ops.result(texts)], [ids], "vocabulary")
    ov.save_model(model, path, compress_to_fp16=False)


def _extension() -> Path:
    """The library with the node; importing its Python package would change openvino for all of us."""
    spec = importlib.util.find_spec("openvino_tokenizers")
    assert spec is not None and spec.origin is not None  # openvino-genai depends on it
    return Path(spec.origin).parent / "lib" / "libopenvino_tokenizers.so"


def _packed(tokens: Sequence[bytes]) -> tuple[Array, Array, Array]:
    """Where each text begins and ends, and all texts."""
    ends = np.cumsum([len(text) for text in tokens], dtype=np.int32)
    begins = np.concatenate([np.zeros(1, np.int32), ends[:-1]])
    return begins, ends, np.frombuffer(b"".join(tokens), dtype=np.uint8)
