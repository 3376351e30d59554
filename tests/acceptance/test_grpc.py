"""A gRPC server and a real client of it, both grpcio from PyPI, through the preview."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.acceptance.live_service import LiveService

pytestmark = [pytest.mark.root, pytest.mark.slow]

GRPCIO = "grpcio==1.76.0"
SERVER = """\
import os
from concurrent.futures import ThreadPoolExecutor
import grpc

def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()

def refuse(request, context):
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not this")

server = grpc.server(ThreadPoolExecutor(4))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("Echo", {
    "Say": grpc.unary_unary_rpc_method_handler(lambda request, context: request.upper()),
    "Count": grpc.unary_stream_rpc_method_handler(count),
    "Refuse": grpc.unary_unary_rpc_method_handler(refuse),
})])
server.add_insecure_port(f"0.0.0.0:{os.environ['PORT']}")
server.start()
server.wait_for_termination()
"""
CLIENT = """\
import sys
import grpc

target, host, token = sys.argv[1:]
metadata = [("x-service-token", token)]
with grpc.insecure_channel(target, [("grpc.default_authority", host)]) as channel:
    print(channel.unary_unary("/Echo/Say")(b"hello", metadata=metadata, timeout=20).decode())
    print(len(list(channel.unary_stream("/Echo/Count")(b"1000", metadata=metadata, timeout=20))))
    for method, with_token in (("Refuse", True), ("Say", False)):
        try:
            channel.unary_unary(f"/Echo/{method}")(b"x", metadata=metadata if with_token else [], timeout=20)
        except grpc.RpcError as error:
            print(error.code().name, error.details())
"""


def test_grpc_client_calls_a_grpc_app(service: LiveService, tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    subprocess.run((sys.executable, "-m", "venv", venv), check=True)
    subprocess.run((venv / "bin/pip", "install", "-q", GRPCIO), check=True)
    files = {"main.py": SERVER, "requirements.txt": f"{GRPCIO}\n"}
    fields = {"protocol": "h2c", "require_qa": True, "visibility": "private"}
    with service.deployed("rpc", files, "python3 main.py", **fields) as data:
        host = data["preview_url"].split("/")[2]
        call = (venv / "bin/python", "-c", CLIENT, f"127.0.0.1:{service.preview_port}", host, data["service_token"])
        said = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    assert said[:3] == ["HELLO", "1000", "INVALID_ARGUMENT not this"]
    assert said[3].startswith("UNAUTHENTICATED")
