"""The models that can be asked for: package folder -> tokenizer, chat template, end ids, limits."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from common.config import DeployConfig, ModelConfig
from common.detokenize import TokenTexts
from common.errors import EwError, PackageError, UsageError
from common.paths import home
from proxy.chat import ChatTemplate, load_chat_template, special_tokens

log = logging.getLogger("proxy.models")

UNLIMITED = 1 << 30


@dataclass(frozen=True)
class GenerationDefaults:
    """What the model's generation_config.json asks for; greedy where it says nothing."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None


class ServedModel:
    """One model id, its tokenizer and its limits. Sizes are in tokens."""

    def __init__(self, model_id: str, config: ModelConfig, package: Path) -> None:
        folder = package / "tokenizer"
        settings = _read_json(folder / "tokenizer_config.json")
        generation = _read_json(folder / "generation_config.json")
        self.model_id = model_id
        self.config = config
        self.package = package
        self.tokenizer = _load_tokenizer(folder / "tokenizer.json")
        self.template: ChatTemplate | None = load_chat_template(folder, settings)
        tokens = special_tokens(settings)
        self.bos_id = self._id(tokens.get("bos_token"))
        self.end_ids = _end_ids(generation, self._id(tokens.get("eos_token")))
        self.pad_id = self._id(tokens.get("pad_token"))
        self.defaults = _defaults(generation)
        self.context = min(_size(package, "max_position_embeddings"), config.kv_cache_tokens or UNLIMITED)
        # A model may have more tokens than its tokenizer names.
        vocabulary = _size(package, "vocab_size")
        self.vocab_size = self.tokenizer.get_vocab_size() if vocabulary == UNLIMITED else vocabulary

    @cached_property
    def texts(self) -> TokenTexts:
        return TokenTexts(self.tokenizer)

    @cached_property
    def special_texts(self) -> TokenTexts:
        """With special tokens shown, for models that mark tool calls with them."""
        return TokenTexts(self.tokenizer, skip_special_tokens=False)

    def encode_chat(self, messages: list[dict[str, Any]], **variables: Any) -> list[int]:
        """Ids of a conversation.

        The template writes BOS itself, so none is added.

        Raises:
            UsageError: there is no template, or it refuses the messages.
        """
        if self.template is None:
            raise UsageError(
                f"{self.model_id} has no chat template, so it takes a prompt, not messages.",
                hint="Send the text as prompt.",
                code="no_chat_template",
            )
        text = self.template.render(messages, **variables)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_raw(self, prompt: str) -> list[int]:
        """Ids of a text as the tokenizer makes them, with at most one BOS."""
        ids: list[int] = self.tokenizer.encode(prompt).ids
        if len(ids) > 1 and ids[0] == self.bos_id and ids[1] == self.bos_id:
            return ids[1:]
        return ids

    def encode_words(self, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Ids of each word, as it stands at the beginning and within a text (after a space)."""
        forms = (form for word in words for form in (word, f" {word}"))
        encoded = (tuple(self.tokenizer.encode(form, add_special_tokens=False).ids) for form in forms)
        return tuple(dict.fromkeys(ids for ids in encoded if ids))

    def output_limit(self, prompt_tokens: int, asked: int | None) -> int:
        """How many tokens may be generated after a prompt.

        Raises:
            UsageError: the prompt is empty or too long, or more was asked for than is allowed.
        """
        self._check_prompt(prompt_tokens)
        room = min(self.config.max_output_len, self.context - prompt_tokens)
        if asked is None:
            return room
        if asked > room:
            raise UsageError(
                f"maxTokens is {asked}, but {room} is the most after a prompt of {prompt_tokens} tokens.",
                why=f"{self.model_id} has max_output_len {self.config.max_output_len}"
                f" and a context of {self.context} tokens.",
                hint=f"Ask for at most {room} tokens.",
                code="max_tokens_too_large",
            )
        return asked

    def _check_prompt(self, prompt_tokens: int) -> None:
        longest = min(self.config.max_input_len, self.context - 1)
        if prompt_tokens == 0:
            raise UsageError("The prompt is empty.", hint="Send at least one character.", code="prompt_empty")
        if prompt_tokens > longest:
            raise UsageError(
                f"The prompt is {prompt_tokens} tokens long; {self.model_id} takes at most {longest}.",
                hint="Shorten the prompt, or raise max_input_len in deploy/config.json.",
                code="prompt_too_long",
            )

    def _id(self, token: str | None) -> int | None:
        found: int | None = self.tokenizer.token_to_id(token) if token is not None else None
        return found


class Registry:
    """All models of the configuration; one whose package is broken is known, with the reason."""

    def __init__(
        self, config: DeployConfig, wanted: tuple[str, ...] = (), known: Registry | None = None
    ) -> None:
        """Load the models of `config` that are `wanted`, or all; what `known` has alike is taken over."""
        self.config = config
        self.models: dict[str, ServedModel] = {}
        self.broken: dict[str, EwError] = {}
        for model_id, model in config.models.items():
            old = known.models.get(model_id) if known else None
            if old is not None and old.config == model:
                self.models[model_id] = old
            elif not wanted or model_id in wanted:
                self._add(model_id, model)

    def get(self, model_id: str) -> ServedModel:
        """The model of that id.

        Raises:
            UsageError: no such model (HTTP 404).
            PackageError: its package cannot be used.
        """
        model = self.models.get(model_id)
        if model is not None:
            return model
        if model_id in self.broken:
            raise self.broken[model_id]
        raise UnknownModel(model_id, tuple(self.models))

    def configs(self) -> dict[str, ModelConfig]:
        """The entries of the models that can be served."""
        return {model_id: model.config for model_id, model in self.models.items()}

    def _add(self, model_id: str, config: ModelConfig) -> None:
        try:
            self.models[model_id] = ServedModel(model_id, config, home().resolve(config.model_path))
        except EwError as error:
            log.error("model %s cannot be served: %s", model_id, error)
            self.broken[model_id] = error


class UnknownModel(UsageError):
    http_status = 404
    default_code = "model_not_found"

    def __init__(self, model_id: str, known: tuple[str, ...]) -> None:
        super().__init__(
            f"There is no model {model_id!r}.",
            hint=f"Use one of: {', '.join(known) or '(none is configured)'}.",
        )


def _load_tokenizer(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises Exception itself
        raise PackageError(
            f"{path} is not a tokenizer: {error}.", hint="Convert the model again with ./ew convert-trt."
        ) from None
    # Some tokenizer.json carry the training run's truncation and padding; neither may touch a prompt.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is not there."""
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PackageError(f"{path} is not readable JSON: {error}.") from None
    return document if isinstance(document, dict) else {}


def _end_ids(generation: dict[str, Any], eos_id: int | None) -> tuple[int, ...]:
    """All ids that end a generation: those of generation_config.json, and the tokenizer's own."""
    named = generation.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    unique = dict.fromkeys(token for token in (*ids, eos_id) if isinstance(token, int))
    return tuple(unique)


def _defaults(generation: dict[str, Any]) -> GenerationDefaults:
    penalty = generation.get("repetition_penalty")
    if not generation.get("do_sample"):
        return GenerationDefaults(repetition_penalty=penalty)
    return GenerationDefaults(
        temperature=float(generation.get("temperature", 1.0)),
        top_k=generation.get("top_k", 50),
        top_p=generation.get("top_p"),
        repetition_penalty=penalty,
    )


def _size(package: Path, name: str) -> int:
    """A size of the model; UNLIMITED where the package does not say."""
    for file in ("checkpoint/config.json", "engine/config.json"):
        config = _read_json(package / file)
        config = config.get("pretrained_config", config)
        if isinstance(config.get(name), int):
            return int(config[name])
    return UNLIMITED
