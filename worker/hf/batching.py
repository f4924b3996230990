"""transformers' continuous batching, one batch a call, in the caller's thread.

Its own manager runs batches in a thread of its own, and one wrong value ends that thread with all requests;
it also samples with one set of parameters for all. So the manager is used to size and build the batch
processor, which is then driven from here, with our choice of tokens in the place of its logits processors.
That place and the processor are not public: see SUPPORTED.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching.requests import RequestStatus

from common.errors import EngineError
from worker.hf.engine import Computed
from worker.hf.penalties import PenaltyTable
from worker.hf.rules import TokenRules
from worker.hf.sampling import choose

SUPPORTED = ">=5.17,<5.24"
NO_END = -1


class TokenChoice:
    """Stands where transformers has its logits processors: scores in, and out scores whose largest is chosen.

    It chooses itself where a request asks for more than the likeliest token, and marks the token it chose.
    """

    tensors_required = 0
    do_processing = True

    def __init__(self) -> None:
        self.rules: dict[str, TokenRules] = {}
        self.log_probs: dict[str, float] = {}
        self._batch: list[tuple[int, str, TokenRules]] = []
        self._penalties: PenaltyTable | None = None
        self._found: Tensor | None = None

    @property
    def idle(self) -> bool:
        """Whether every request of the batch takes the likeliest token."""
        return not self._batch

    def check_kwargs(self, kwargs: dict[str, Any]) -> None:
        """Requests carry no parameters of their own through transformers."""

    def fill_defaults(self, storage: Tensor) -> None:
        """There are no arguments to fill in."""

    def prepare_tensor_args(self, requests_in_batch: Sequence[Any], arg_storage: Tensor) -> Tensor:
        """Note whose tokens the next scores are for; transformers calls this before each batch."""
        names = [request.state.request_id for request in requests_in_batch if request.has_new_token]
        rows = [(row, name, self.rules.get(name)) for row, name in enumerate(names)]
        self._batch = [(row, name, rules) for row, name, rules in rows if rules and not rules.plain]
        return arg_storage

    def __call__(self, input_ids: Tensor, scores: Tensor, arguments: Tensor) -> Tensor:
        if self.idle:
            return scores
        if self._penalties is None:
            self._penalties = PenaltyTable(scores.shape[-1], scores.device)
        rows = torch.tensor([row for row, _, _ in self._batch], device=scores.device)
        chosen = choose(scores[rows], [rules for _, _, rules in self._batch], self._penalties)
        self._found = chosen.log_probs
        marked = scores.clone()
        marked[rows] = -torch.inf
        marked[rows, chosen.tokens] = torch.inf
        return marked

    def take_log_probs(self) -> dict[str, float]:
        """Those of the last batch, by request."""
        found, self._found = self._found, None
        if found is None:
            return {}
        return dict(zip((name for _, name, _ in self._batch), found.tolist(), strict=True))

    def forget(self, name: str) -> None:
        rules = self.rules.pop(name, None)
        if rules is not None and self._penalties is not None:
            self._penalties.drop(rules)


class Batches:
    """A model and its requests. See worker.hf.engine.Engine."""

    def __init__(self, model: Any, config: ContinuousBatchingConfig) -> None:
        self._model = model
        self._choice = TokenChoice()
        # Nothing of the checkpoint's generation_config.json: requests say what they want.
        plain = GenerationConfig(do_sample=False, eos_token_id=NO_END, max_new_tokens=1)
        self._manager = model.init_continuous_batching(
            generation_config=plain, continuous_batching_config=config
        )
        self._manager.logit_processor = self._choice
        self._processor = self._manager._create_batch_processor()
        self._manager.batch_processor = self._processor
        _replay_plain_batches_only(self._processor.model_runner, self._choice)
        self._processor.warmup(model)
        self._cancelled = False

    @property
    def kv_cache_tokens(self) -> int:
        return int(self._processor.cache.num_blocks) * self.page_tokens

    @property
    def page_tokens(self) -> int:
        config = self._manager.continuous_batching_config
        return int(getattr(config, PAGE_SIZE))

    @property
    def cancelling(self) -> bool:
        return self._cancelled

    def add(
        self, name: str, prompt: Sequence[int], max_tokens: int, end_id: int | None, rules: TokenRules
    ) -> None:
        self._choice.rules[name] = rules
        end = NO_END if end_id is None else end_id
        self._manager.add_request(list(prompt), request_id=name, max_new_tokens=max_tokens, eos_token_id=end)

    def cancel(self, name: str) -> None:
        self._choice.forget(name)
        self._manager.cancel_request(name)
        self._cancelled = True

    def step(self) -> list[Computed]:
        self._cancelled = False
        if not self._processor.prepare_next_batch():
            return []
        self._processor._generation_step(self._model)
        batch = list(self._processor.inputs_and_outputs.requests_in_batch)
        self._processor.update_batch()
        self._refuse_failures()
        log_probs = self._choice.take_log_probs()
        return [self._computed(request, log_probs) for request in batch]

    def restart(self, error: Exception) -> None:
        for name in list(self._choice.rules):
            self._choice.forget(name)
        self._processor.fail_all_requests(error)
        self._processor.reset()
        self._outputs()

    def kv_used_fraction(self) -> float:
        page = self.page_tokens
        running = self._processor.scheduler.active_requests.values()
        pages = sum(-(-int(state.current_len()) // page) for state in running)
        return min(pages * page / self.kv_cache_tokens, 1.0)

    def _computed(self, request: Any, log_probs: dict[str, float]) -> Computed:
        name = request.state.request_id
        if not request.has_new_token:
            return Computed(name)
        token = int(request.state.generated_tokens[-1])
        ended = request.state.status == RequestStatus.FINISHED
        if ended:
            self._choice.forget(name)
        elif name in self._choice.rules:
            self._choice.rules[name].append(token)
        return Computed(name, token, log_probs.get(name), ended)

    def _refuse_failures(self) -> None:
        """transformers puts what it refuses beside what has ended."""
        failed = [output for output in self._outputs() if output.error]
        if failed:
            raise EngineError(
                "transformers refused a request.", why=str(failed[0].error), code="engine_failed"
            )

    def _outputs(self) -> list[Any]:
        waiting = self._manager.output_router.output_queue
        return [waiting.get_nowait() for _ in range(waiting.qsize())]


# The name changed in 5.18; what it means did not.
PAGE_SIZE = "page_size" if hasattr(ContinuousBatchingConfig, "page_size") else "block_size"


def _replay_plain_batches_only(runner: Any, choice: TokenChoice) -> None:
    """A CUDA graph replays the pass and the choice of the likeliest; other batches are computed without."""
    original: Callable[..., tuple[Any, bool]] = runner._get_forward_fn

    def choose_forward(*arguments: Any, **named: Any) -> tuple[Any, bool]:
        forward, with_graph = original(*arguments, **named)
        return forward, with_graph and choice.idle

    runner._get_forward_fn = choose_forward
