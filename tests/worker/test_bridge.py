"""The `tensorrt_llm` tensors in a real tritonserver, with the real engine behind them."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc

from tests.worker.byte_tokenizer import END_ID, byte_tokenizer
from tests.worker.triton import Refused, Triton, tokens_of, wait_until

pytestmark = pytest.mark.e2e
PROMPT = [9, 33, 57, 200, 17]
VARIED = {"repetition_penalty": 1.8}
LONG = 8000


def ids_of(answer: dict[str, Any]) -> list[int]:
    return tokens_of([answer])


def test_streamed_and_whole_answers_are_the_same(triton: Triton) -> None:
    whole = triton.generate("tiny", request_output_len=40, **VARIED)
    events = triton.stream("tiny", request_output_len=40, **VARIED)
    assert len(ids_of(whole)) == whole["sequence_length"] == 40
    assert tokens_of(events) == ids_of(whole)
    assert len(events) > 1
    assert sum(event["sequence_length"] for event in events) == 40


def test_twenty_streams_at_once_equal_their_answers_alone(triton: Triton) -> None:
    prompts = [[3 + number, 50, 2 + number * 7] for number in range(20)]
    alone = [ids_of(triton.generate("tiny", input_ids=prompt, request_output_len=30)) for prompt in prompts]
    answers: dict[int, list[int]] = {}

    def stream(number: int) -> None:
        events = triton.stream("tiny", input_ids=prompts[number], request_output_len=30)
        answers[number] = tokens_of(events)

    threads = [threading.Thread(target=stream, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[number] for number in range(20)] == alone


def test_the_prompt_is_part_of_a_whole_answer_unless_excluded(triton: Triton) -> None:
    counts = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    without = triton.generate("tiny", **counts)
    assert (without["num_input_tokens"], without["num_output_tokens"]) == (5, 8)
    answer = triton.generate("tiny", exclude_input_in_output=False, **counts)
    assert ids_of(answer) == PROMPT + ids_of(without)
    assert (answer["num_output_tokens"], answer["sequence_length"]) == (13, 13)
    assert tokens_of(triton.stream("tiny", exclude_input_in_output=False)) == ids_of(without)


def test_input_lengths_cuts_the_prompt(triton: Triton) -> None:
    padded = triton.generate("tiny", input_ids=[*PROMPT, 0, 0], input_lengths=len(PROMPT))
    assert ids_of(padded) == ids_of(triton.generate("tiny"))


def test_end_id_stop_words_and_bad_words(triton: Triton) -> None:
    plain = ids_of(triton.generate("tiny", **VARIED))
    assert tokens_of(triton.stream("tiny", end_id=plain[4], **VARIED)) == plain[: plain.index(plain[4])]
    assert ids_of(triton.generate("tiny", end_id=-1, **VARIED)) == plain
    stop_words = [plain[2], plain[3], 250, 2, 3, -1]
    assert ids_of(triton.generate("tiny", stop_words_list=stop_words, **VARIED)) == plain[:4]
    bad_words = [plain[0], plain[3], 1, 2]
    answer = ids_of(triton.generate("tiny", bad_words_list=bad_words, **VARIED))
    assert not {plain[0], plain[3]} & set(answer)


def test_an_answer_that_ends_at_once_is_empty(triton: Triton) -> None:
    first = ids_of(triton.generate("tiny"))[0]
    answer = triton.generate("tiny", end_id=first)
    assert (answer["output_ids"], answer["sequence_length"]) == ([], 0)
    assert tokens_of(triton.stream("tiny", end_id=first)) == []


def test_log_probs_timings_and_seeds(triton: Triton) -> None:
    answer = triton.generate("tiny", return_log_probs=True, return_perf_metrics=True)
    assert len(answer["output_log_probs"]) == 8
    assert answer["cum_log_probs"] == pytest.approx(sum(answer["output_log_probs"]), abs=1e-3)
    moments = ("arrival", "first_scheduled", "first_token", "last_token")
    times = [answer[f"{moment}_time_ns"] for moment in moments]
    assert times == sorted(times)
    assert times[0] > 0
    sampled = {"runtime_top_p": 1.0, "temperature": 1.5, "seed": 11}
    assert ids_of(triton.generate("tiny", **sampled)) == ids_of(triton.generate("tiny", **sampled))


def test_several_sequences_come_with_their_index(triton: Triton) -> None:
    events = triton.stream(
        "tiny", streaming=False, num_return_sequences=3, runtime_top_p=1.0, temperature=2.0, seed=5
    )
    by_index = {event["sequence_index"]: ids_of(event) for event in events}
    assert sorted(by_index) == [0, 1, 2]
    assert len({tuple(ids) for ids in by_index.values()}) == 3
    single = triton.generate("tiny", runtime_top_p=1.0, temperature=2.0, seed=5)
    assert by_index[0] == ids_of(single)


def test_a_batch_is_served_row_by_row(triton: Triton) -> None:
    rows = {0: [9, 33, 57], 1: [5, 6, 7]}
    expected = {row: ids_of(triton.generate("tiny", input_ids=ids)) for row, ids in rows.items()}
    responses = infer(
        triton,
        input_ids=np.array(list(rows.values()), dtype=np.int32),
        input_lengths=np.array([[3], [3]], dtype=np.int32),
        request_output_len=np.array([[8], [8]], dtype=np.int32),
    )
    answers = {
        int(response.as_numpy("batch_index").item()): response.as_numpy("output_ids").ravel().tolist()
        for response in responses
    }
    assert answers == expected
    assert all(response.as_numpy("output_ids").shape == (1, 1, 8) for response in responses)


def infer(triton: Triton, **tensors: Any) -> list[Any]:
    """All responses to one gRPC stream request."""
    results: list[Any] = []
    ended = threading.Event()

    def receive(result: Any, error: Any) -> None:
        results.append(error or result)
        if error or is_final(result):
            ended.set()

    with grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}") as client:
        client.start_stream(receive)
        client.async_stream_infer("tiny", grpc_inputs(tensors), enable_empty_final_response=True)
        assert ended.wait(30)
        client.stop_stream()
    return results


def is_final(result: Any) -> bool:
    return bool(result.get_response().parameters["triton_final_response"].bool_param)


def grpc_inputs(tensors: dict[str, Any]) -> list[Any]:
    kinds = {np.dtype(np.int32): "INT32", np.dtype(bool): "BOOL"}
    inputs = []
    for name, values in tensors.items():
        tensor = grpc.InferInput(name, list(values.shape), kinds[values.dtype])
        tensor.set_data_from_numpy(values)
        inputs.append(tensor)
    return inputs


def test_the_last_response_carries_the_final_flag(triton: Triton) -> None:
    responses = infer(
        triton,
        input_ids=np.array([PROMPT], dtype=np.int32),
        input_lengths=np.array([[5]], dtype=np.int32),
        request_output_len=np.array([[8]], dtype=np.int32),
        streaming=np.array([[True]]),
    )
    finals = [is_final(response) for response in responses]
    assert finals == [False] * (len(responses) - 1) + [True]
    assert responses[-1].as_numpy("output_ids").size > 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"input_ids": []}, "input_ids is missing or empty"),
        ({"input_ids": [-1]}, "input_ids holds -1"),
        ({"input_ids": [288]}, "0 to 287"),
        ({"input_lengths": 9}, "input_lengths is 9"),
        ({"request_output_len": 0}, "request_output_len is 0"),
        ({"request_output_len": 100000}, "max_output_len"),
        ({"input_ids": [5] * 200, "request_output_len": 8100}, "8300 tokens"),
        ({"runtime_top_p": 1.5}, "runtime_top_p"),
        ({"temperature": -1.0}, "temperature"),
        ({"presence_penalty": 9.0}, "presence_penalty"),
        ({"stop_words_list": [5, 6, 3, -1]}, "stop_words_list has a word end of 3"),
        ({"stop_words_list": [5000, 1]}, "stop_words_list holds 5000"),
        ({"num_return_sequences": 1000}, "num_return_sequences is 1000"),
        ({"stop": True}, "request id"),
        ({"beam_width": 4}, "beam_width is 4"),
        ({"lora_task_id": 1}, "lora_task_id"),
        ({"embedding_bias": [0.5]}, "embedding_bias"),
        ({"embedding_bias": [0.0] * 288 + [-100.0]}, "embedding_bias holds 288"),
        ({"guided_decoding_guide_type": "json"}, "needs end_id"),
        ({"guided_decoding_guide_type": "xml", "end_id": 2}, "allowed are json, json_schema, regex"),
        ({"guided_decoding_guide": "{}"}, "guided_decoding_guide_type"),
        ({"guided_decoding_guide_type": "regex", "guided_decoding_guide": "((", "end_id": 2}, "parenthesis"),
        ({"return_generation_logits": True}, "return_generation_logits"),
        ({"bad_words_list": [5, 6, 2, -1], "presence_penalty": 1.0}, "presence_penalty"),
    ],
)
def test_bad_input_is_refused_by_name(triton: Triton, body: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        triton.generate("tiny", **body)
    assert refused.value.status in (400, 501)  # what Triton makes of "unsupported" depends on its version


def test_bad_requests_do_not_disturb_a_running_one(triton: Triton) -> None:
    stream = triton.open_stream("tiny", request_output_len=600)
    for body in ({"input_ids": [-1]}, {"beam_width": 3}, {"request_output_len": -5}):
        with pytest.raises(Refused):
            triton.generate("tiny", **body)
    assert len(tokens_of(list(stream.events()))) == 600
    stream.close()


def test_guides_and_biases_reach_the_engine(triton: Triton) -> None:
    regex = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "[0-9]{3}é", "end_id": END_ID}
    events = triton.stream("tiny", request_output_len=20, **regex)
    assert re.fullmatch("[0-9]{3}é", byte_tokenizer().decode(tokens_of(events)))
    bias = [0.0] * 288
    bias[40] = 100.0
    answer = triton.generate("tiny", request_output_len=4, embedding_bias=bias)
    assert answer["output_ids"] == [40] * 4


def wait_idle(triton: Triton) -> float:
    return wait_until(lambda: triton.active("tiny") == 0, 5.0)


def test_stop_ends_every_request_with_the_id_and_no_other(triton: Triton) -> None:
    streams = [
        triton.open_stream("tiny", id=name, request_output_len=LONG) for name in ("twin", "twin", "other")
    ]
    firsts = [next(stream.events()) for stream in streams]
    assert all("output_ids" in event for event in firsts)
    triton.generate("tiny", id="twin", stop=True)
    for stream in streams[:2]:
        assert len(tokens_of(list(stream.events()))) < LONG
    wait_until(lambda: triton.active("tiny") == 1, 5.0)
    triton.generate("tiny", id="other", stop=True)
    triton.generate("tiny", id="nobody", stop=True)
    wait_idle(triton)
    for stream in streams:
        stream.close()


def test_a_leaving_http_client_stops_the_engine(triton: Triton) -> None:
    stream = triton.open_stream("tiny", request_output_len=LONG)
    next(stream.events())
    wait_until(lambda: triton.active("tiny") == 1, 2.0)
    stream.close()
    assert wait_idle(triton) < 2.0


def test_a_cancelled_grpc_request_stops_the_engine_without_streaming(triton: Triton) -> None:
    """Not streamed: no response is ever written, so only Triton's cancellation can tell."""
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc_port}")
    client.start_stream(lambda result, error: None)
    tensors = {
        "input_ids": np.array([PROMPT], dtype=np.int32),
        "input_lengths": np.array([[5]], dtype=np.int32),
        "request_output_len": np.array([[LONG]], dtype=np.int32),
    }
    client.async_stream_infer("tiny", grpc_inputs(tensors))
    wait_until(lambda: triton.active("tiny") == 1, 5.0)
    client.stop_stream(cancel_requests=True)
    assert wait_idle(triton) < 2.0
    client.close()


def test_a_queued_request_is_stopped_before_its_first_token(triton: Triton, package: Path) -> None:
    triton.add_model("narrow", package, options={"max_batch_size": 1}, max_queue_size=1)
    triton.load("narrow")
    running = triton.open_stream("narrow", id="running", request_output_len=LONG)
    next(running.events())
    ended: list[list[dict[str, Any]]] = []
    queued = threading.Thread(target=lambda: ended.append(triton.stream("narrow", id="queued")))
    queued.start()
    wait_until(lambda: triton.active("narrow") == 2, 5.0)
    assert triton.metric("nv_trt_llm_request_metrics", "narrow", "waiting") == 1
    with pytest.raises(Refused, match="queue is full: 2 requests"):
        triton.generate("narrow")
    triton.generate("narrow", id="queued", stop=True)
    queued.join(5)
    assert [tokens_of(events) for events in ended] == [[]]
    wait_until(lambda: triton.active("narrow") == 1, 5.0)
    running.close()
    wait_until(lambda: triton.active("narrow") == 0, 5.0)
    triton.unload("narrow")


def test_metrics_say_what_the_engine_does(triton: Triton) -> None:
    before = triton.metric("ew_generated_tokens", "tiny")
    triton.generate("tiny", request_output_len=100)
    wait_until(lambda: triton.metric("ew_generated_tokens", "tiny") == before + 100, 5.0)
    assert triton.metric("nv_trt_llm_request_metrics", "tiny", "max") == 16
    kv = {kind: triton.metric("nv_trt_llm_kv_cache_block_metrics", "tiny", kind) for kind in ("max", "free")}
    assert kv == {"max": 256, "free": 256}


def test_a_model_that_is_not_decoupled_answers_once(triton: Triton, package: Path) -> None:
    triton.add_model("whole", package, decoupled=False)
    triton.load("whole")
    assert ids_of(triton.generate("whole")) == ids_of(triton.generate("tiny"))
    with pytest.raises(Refused, match="decoupled"):
        triton.generate("whole", streaming=True)
    with pytest.raises(Refused, match="decoupled"):
        triton.generate("whole", num_return_sequences=2)
    triton.unload("whole")


def test_the_same_bridge_serves_as_a_python_model(triton: Triton, package: Path) -> None:
    version = triton.add_model("python", package, backend="python")
    for source in (triton.backends / "tensorrtllm").glob("*.py"):
        (version / source.name).write_bytes(source.read_bytes())
    triton.load("python")
    assert tokens_of(triton.stream("python")) == ids_of(triton.generate("tiny"))
    triton.unload("python")


def test_unloading_ends_the_worker(triton: Triton, package: Path) -> None:
    triton.add_model("brief", package)
    triton.load("brief")
    [worker] = triton.workers("brief")
    triton.unload("brief")
    wait_until(lambda: not worker.is_running() or worker.status() == "zombie", 10.0)
    started = time.monotonic()
    triton.load("brief")
    assert time.monotonic() - started < 30
    triton.unload("brief")
