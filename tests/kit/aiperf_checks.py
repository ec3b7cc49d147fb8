"""What forge's endpoint for AIPerf does, check by check. Each runs in the tests' own Python over a stand-in for AIPerf, and in
AIPerf's environment over AIPerf itself, where there is no pytest: ``python aiperf_checks.py``.
"""

# pyright: basic

import importlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LONG = 60.0


@contextmanager
def told(**environ: str) -> Iterator[None]:
    """The plugin's settings for a while."""
    kept = dict(os.environ)
    os.environ.update(environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(kept)


def made(plugin: Any, **extra: object) -> Any:
    """The endpoint, with ``extra`` of the command line."""
    one = plugin.TritonGenerateEndpoint.__new__(plugin.TritonGenerateEndpoint)
    one.model_endpoint = SimpleNamespace(endpoint=SimpleNamespace(extra=extra or None))
    return one


def models() -> Any:
    """AIPerf's, or what stands in for them."""
    return importlib.import_module("aiperf.common.models")


def response(text: object) -> Any:
    return models().TextResponse(perf_ns=1, text=text if isinstance(text, str) else json.dumps(text))


def turn(*texts: str, max_tokens: int | None = None, extra_body: object = None) -> Any:
    return SimpleNamespace(texts=[SimpleNamespace(contents=texts)], max_tokens=max_tokens, extra_body=extra_body)


def a_request_is_its_turn_and_what_it_states_beside(plugin: Any) -> None:
    one = made(plugin, stream=True, seed=1)
    asked = SimpleNamespace(turns=[turn("one ", "two", max_tokens=7, extra_body={"seed": 2, "top_k": 3})])
    assert one.format_payload(asked) == {"text_input": "one two", "max_tokens": 7, "stream": True, "seed": 2, "top_k": 3}
    assert made(plugin).format_payload(SimpleNamespace(turns=[turn("one")])) == {"text_input": "one"}


def a_request_has_one_turn(plugin: Any) -> None:
    for turns in ([], [turn("one"), turn("two")]):
        refused = ""
        try:
            made(plugin).format_payload(SimpleNamespace(turns=turns))
        except ValueError as error:
            refused = str(error)
        assert "one turn" in refused


def the_special_tokens_of_a_prompt_are_counted_beside_its_text(plugin: Any) -> None:
    for environ, special in (({}, 0), ({plugin.SPECIAL: "2"}, 2)):
        with told(**environ):
            found = made(plugin).extract_payload_inputs({"text_input": "one two", "seed": 3})
        assert (found.texts, found.pretokenised_token_count) == (["one two"], special)
    assert made(plugin).extract_payload_inputs({}).texts == [""]


def what_says_nothing_is_passed_over(plugin: Any) -> None:
    beside = {"text_output": "zzz", "num_output_tokens": 1, "sequence_index": 1}
    for said in ("no JSON", "[1]", {}, {"text_output": ""}, {"text_output": [], "num_output_tokens": [0]}, beside):
        assert made(plugin).parse_response(response(said)) is None, said
    assert made(plugin).parse_response(response({**beside, "sequence_index": [[1]]})) is None


def outputs_of_several_elements_are_their_first(plugin: Any) -> None:
    said = {"text_output": ["a", "b"], "num_output_tokens": [[2], [9]], "num_input_tokens": [5], "sequence_index": [0]}
    found = made(plugin).parse_response(response(said))
    assert (found.perf_ns, found.data.text) == (1, "a")
    assert (found.usage["completion_tokens"], found.usage["prompt_tokens"]) == (2, 5)


def tokens_without_a_text_count_and_a_text_without_them_is_a_text(plugin: Any) -> None:
    found = made(plugin).parse_response(response({"text_output": "", "num_output_tokens": 1}))
    assert (found.data.text, found.usage["completion_tokens"]) == ("", 1)
    found = made(plugin).parse_response(response({"text_output": "a"}))
    assert (found.data.text, found.usage) == ("a", None)


def what_is_new_in_each_response_is_heard_once(plugin: Any) -> None:
    said = (
        {"text_output": "a", "num_output_tokens": 1},
        {"text_output": "ab", "num_output_tokens": 2},
        {"text_output": "zzz", "num_output_tokens": 1, "sequence_index": 1},
        {"text_output": ""},
    )
    for repeated, wanted in (("", [("a", 1), ("ab", 3)]), ("text", [("a", 1), ("b", 3)]), ("all", [("a", 1), ("b", 2)])):
        record = models().RequestRecord(responses=[response(each) for each in said])
        with told(**{plugin.REPEATED: repeated}):
            first = made(plugin).extract_response_data(record)
            again = made(plugin).extract_response_data(record)
        assert again is first
        assert [(each.data.text, each.usage["completion_tokens"]) for each in first] == wanted, repeated


def warm(name: str = "warm-0") -> Any:
    return SimpleNamespace(request_info=SimpleNamespace(conversation_id=name))


def passed(plugin: Any, record: Any) -> threading.Thread:
    thread = threading.Thread(target=plugin._pass, args=(record,), daemon=True)
    thread.start()
    return thread


def the_last_of_the_warm_up_is_held_until_forge_looks(plugin: Any) -> None:
    with tempfile.TemporaryDirectory() as gate, told(**{plugin.GATE: gate, plugin.WARM: "2"}):
        plugin._PATIENCE = LONG
        plugin._pass(warm("warm-0"))
        assert os.listdir(gate) == ["warm-0"], "the first goes on, and leaves its name"
        last = passed(plugin, warm("warm-1"))
        last.join(0.1)
        assert last.is_alive()
        plugin._pass(warm("warm-1"))  # another process hears the same: nobody waits twice
        (Path(gate) / "open").touch()
        last.join(LONG)
        assert not last.is_alive()


def a_forge_that_never_looks_holds_nothing_for_ever(plugin: Any) -> None:
    with tempfile.TemporaryDirectory() as gate, told(**{plugin.GATE: gate, plugin.WARM: "1"}):
        plugin._PATIENCE = 0.05
        began = time.monotonic()
        plugin._pass(warm())
        assert time.monotonic() - began >= 0.05


def what_is_no_warm_up_is_never_held(plugin: Any) -> None:
    with tempfile.TemporaryDirectory() as gate, told(**{plugin.GATE: gate, plugin.WARM: "1"}):
        plugin._pass(warm("ask-0"))
        plugin._pass(SimpleNamespace(request_info=None))
        assert os.listdir(gate) == []
        os.environ[plugin.GATE] = ""
        plugin._pass(warm())
        assert os.listdir(gate) == []


CHECKS: tuple[Callable[[Any], None], ...] = (
    a_request_is_its_turn_and_what_it_states_beside,
    a_request_has_one_turn,
    the_special_tokens_of_a_prompt_are_counted_beside_its_text,
    what_says_nothing_is_passed_over,
    outputs_of_several_elements_are_their_first,
    tokens_without_a_text_count_and_a_text_without_them_is_a_text,
    what_is_new_in_each_response_is_heard_once,
    the_last_of_the_warm_up_is_held_until_forge_looks,
    a_forge_that_never_looks_holds_nothing_for_ever,
    what_is_no_warm_up_is_never_held,
)


if __name__ == "__main__":
    for check in CHECKS:
        check(importlib.import_module("forge_aiperf.endpoint"))
    print(json.dumps([check.__name__ for check in CHECKS]))
