"""Prompts and words to token ids, with the tokenizer folder of a Hugging Face checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.errors import UsageError
from proxy.chat import ChatTemplate, load_chat_template, special_tokens

TRUE = ("true", "1", "t", "y", "yes")
CHAT_PARAMETER = "apply_chat_template"
WORD_START = "\N{LOWER ONE EIGHTH BLOCK}"


def model_parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The parameters of config.pbtxt, out of the arguments of a model's `initialize`."""
    parameters = json.loads(args["model_config"])["parameters"]
    return {key: value["string_value"] for key, value in parameters.items()}


def is_true(text: str) -> bool:
    return text.lower() in TRUE


class Prompts:
    """One tokenizer and what its model does with prompts.

    Args:
        folder: tokenizer.json, and what there is of tokenizer_config.json, generation_config.json and
            chat_template.jinja.
        add_special_tokens: let the tokenizer add BOS to raw prompts.
        truncation: error, left (keep the end) or right (keep the start).
        max_input_len: longest prompt, in tokens.
        chat_by_default: make prompts user's turns where a request does not say.
    """

    def __init__(
        self,
        folder: Path,
        *,
        add_special_tokens: bool,
        truncation: str,
        max_input_len: int,
        chat_by_default: bool = False,
    ) -> None:
        settings = _read_json(folder / "tokenizer_config.json")
        tokens = special_tokens(settings)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.template: ChatTemplate | None = load_chat_template(folder, settings)
        self.bos_id = self._id(tokens.get("bos_token"))
        self.end_ids = self._end_ids(_read_json(folder / "generation_config.json"), tokens)
        pad_id = self._id(tokens.get("pad_token"))
        self.pad_id = pad_id if pad_id is not None else (self.end_ids[:1] or [0])[0]
        self._add_special_tokens = add_special_tokens
        self._truncation = truncation
        self._max_input_len = max_input_len
        self._chat_by_default = chat_by_default

    @classmethod
    def of_model(cls, args: Mapping[str, str], parameters: Mapping[str, str]) -> Prompts:
        """Those of a rendered model, by the arguments of its `initialize` and `model_parameters`."""
        return cls(
            Path(args["model_repository"]) / args["model_version"] / parameters["tokenizer_dir"],
            add_special_tokens=is_true(parameters["add_special_tokens"]),
            truncation=parameters["truncation"],
            max_input_len=int(parameters["max_input_len"]),
            chat_by_default=is_true(parameters[CHAT_PARAMETER]),
        )

    @property
    def vocabulary_size(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def is_chat(self, request: Any) -> bool:
        """Whether the chat template applies: as the request's parameters say, else by the model's own."""
        asked = json.loads(request.parameters() or "{}").get(CHAT_PARAMETER)
        return self._chat_by_default if asked is None else is_true(str(asked))

    def encode(self, text: str, *, as_chat: bool) -> list[int]:
        """Ids of a prompt, with at most one BOS; `as_chat` makes it a user's turn.

        Raises:
            UsageError: empty, too long, or no chat template.
        """
        if as_chat:
            ids: list[int] = self.tokenizer.encode(self._chat(text), add_special_tokens=False).ids
        else:
            ids = self.tokenizer.encode(text, add_special_tokens=self._add_special_tokens).ids
        if len(ids) > 1 and ids[0] == ids[1] == self.bos_id:
            ids = ids[1:]
        if not text or not ids:
            raise UsageError("The prompt is empty.", hint="Send at least one character.")
        return self._cut(ids)

    def encode_words(self, words: Iterable[str]) -> list[list[int]]:
        """All ways in which these words may appear as tokens: at a line's start and after a space."""
        found: dict[tuple[int, ...], None] = {}
        for word in filter(None, words):
            for spelled in (word, f" {word}"):
                ids = self.tokenizer.encode(spelled, add_special_tokens=False).ids
                found[tuple(ids)] = None
                if len(ids) > 1 and self.tokenizer.id_to_token(ids[0]) == WORD_START:
                    found[tuple(ids[1:])] = None
        return [list(ids) for ids in found if ids]

    def bias(self, words: Sequence[str], weights: Sequence[float]) -> dict[int, float]:
        """Token id -> bias, the sum where words share tokens."""
        if len(words) != len(weights):
            raise UsageError(f"There are {len(words)} embedding bias words and {len(weights)} weights.")
        biases: dict[int, float] = {}
        for word, weight in zip(words, weights, strict=True):
            for token_id in self.tokenizer.encode(word, add_special_tokens=False).ids:
                biases[token_id] = biases.get(token_id, 0.0) + float(weight)
        return biases

    def _chat(self, text: str) -> str:
        if self.template is None:
            raise UsageError("This model has no chat template.", hint="Send the prompt as it is.")
        return self.template.render([{"role": "user", "content": text}])

    def _cut(self, ids: list[int]) -> list[int]:
        limit = self._max_input_len
        if len(ids) <= limit:
            return ids
        if self._truncation == "error":
            raise UsageError(
                f"The prompt is {len(ids)} tokens long, at most {limit} are allowed.",
                hint="Shorten it, or set max_input_len or triton.truncation in deploy/config.json.",
            )
        return ids[:limit] if self._truncation == "right" else self._keep_end(ids, limit)

    def _keep_end(self, ids: list[int], limit: int) -> list[int]:
        """The last ids; a BOS in front stays."""
        if limit > 1 and ids[0] == self.bos_id:
            return [ids[0], *ids[len(ids) - limit + 1 :]]
        return ids[len(ids) - limit :]

    def _end_ids(self, generation: dict[str, Any], tokens: dict[str, str]) -> list[int]:
        """Every id that ends an answer, generation_config.json's first."""
        named = generation.get("eos_token_id")
        ids = [*(named if isinstance(named, list) else [named]), self._id(tokens.get("eos_token"))]
        return list(dict.fromkeys(token for token in ids if isinstance(token, int)))

    def _id(self, token: str | None) -> int | None:
        found: int | None = self.tokenizer.token_to_id(token) if token is not None else None
        return found


def word_list(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Token lists in TensorRT-LLM's [2, n] form: the ids one after another, and where each list ends.

    The second row is filled up with -1; no lists give [[], []].
    """
    flat = [token for row in rows for token in row]
    ends, total = [], 0
    for row in rows:
        total += len(row)
        ends.append(total)
    return [flat, ends + [-1] * (len(flat) - len(ends))]


def _read_json(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return document if isinstance(document, dict) else {}
