# mypy: allow-untyped-decorators
"""Prompts, which are sent to a server with OpenAI's endpoints."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from radical.asyncflow import InferenceBackend, LocalExecutionBackend, WorkflowEngine
from tests._support.scripted import within

pytestmark = pytest.mark.asyncio


class Server(ThreadingHTTPServer):
    """Server that answers a prompt with its length, and notes the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, Any]] = []
        self.most = 0
        self.active = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.reply(200, {"data": [{"id": "tiny"}]})

    def do_POST(self) -> None:
        server = self.server
        with server.lock:
            server.active += 1
            server.most = max(server.most, server.active)
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append((self.path, content))
        if content["model"] != "tiny":
            self.reply(404, {"error": f"no model {content['model']}"})
        elif self.path == "/v1/chat/completions":
            text = "|".join(each["content"] for each in content["messages"])
            self.reply(200, {"choices": [{"message": {"content": text}}]})
        else:
            texts = [str(len(each)) for each in content["prompt"]]
            choices = [{"index": number, "text": text} for number, text in enumerate(texts)]
            self.reply(200, {"choices": choices[::-1]})
        with server.lock:
            server.active -= 1

    def reply(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_prompts_are_sent_in_batches(server: Server) -> None:
    ai = InferenceBackend(server.url, batch=4, limit=2, name="ai")
    async with WorkflowEngine.create([await LocalExecutionBackend(), ai]) as flow:

        @flow.function_task
        async def clean(text: str) -> str:
            return text.strip()

        @flow.prompt_task(backend="ai")
        async def ask(text: str, end: str = "") -> str:
            return f"Q: {text}{end}"

        @flow.prompt_task
        def shout(text: str) -> str:
            return text.upper()

        answers = [ask("x" * number, end="?") for number in range(10)]
        assert await within(asyncio.gather(*answers)) == [str(number + 4) for number in range(10)]
        sizes = [len(content["prompt"]) for _, content in server.requests]
        assert (sum(sizes), max(sizes)) == (10, 4)
        assert len(sizes) <= 5
        assert server.most <= 2
        assert await within(ask(clean("  ab  "))) == "5"
        assert await within(shout("abc")) == "3"
        assert server.requests[-1][1] == {"model": "tiny", "prompt": ["ABC"]}


async def test_settings_of_a_prompt_are_sent(server: Server) -> None:
    ai = InferenceBackend(server.url, "tiny", chat=True)
    async with WorkflowEngine.create([ai]) as flow:

        @flow.prompt_task
        async def ask(text: str, task_description: Any = {"temperature": 0.5}) -> str:  # noqa: B006
            return text

        more = {"system_prompt": "be brief", "max_tokens": 9}
        assert await within(ask("why", task_description=more)) == "be brief|why"
        ((path, content),) = server.requests
        assert path == "/v1/chat/completions"
        assert (content["temperature"], content["max_tokens"]) == (0.5, 9)


async def test_errors_of_the_server_fail_the_prompts(server: Server) -> None:
    ai = InferenceBackend(server.url, "huge")
    closed = InferenceBackend("http://127.0.0.1:9/v1", name="closed")
    async with WorkflowEngine.create([ai, closed]) as flow:

        @flow.prompt_task
        async def ask() -> str:
            return "hello"

        with pytest.raises(RuntimeError, match=r"404 Not Found.*no model huge"):
            await within(ask())
        with pytest.raises(ConnectionError, match="cannot be reached"):
            await within(ask.options(backend="closed")())


async def test_a_prompt_must_not_be_empty(server: Server) -> None:
    async with WorkflowEngine.create([InferenceBackend(server.url)]) as flow:
        for wrong in (None, "", 3):
            with pytest.raises(ValueError, match="must return a non-empty string prompt"):
                await within(flow.prompt_task(lambda wrong=wrong: wrong)())
    assert not server.requests


async def test_a_worker_value_answers_prompts() -> None:
    async with WorkflowEngine.create() as flow:

        @flow.worker_value
        def model() -> Any:
            return str.upper

        @flow.prompt_task(model=model(), limit="model:1")
        async def ask(text: str) -> str:
            return f"q {text}"

        assert await within(ask("a")) == "Q A"


async def test_other_backends_refuse_prompts() -> None:
    async with WorkflowEngine.create(await LocalExecutionBackend()) as flow:
        with pytest.raises(NotImplementedError, match=r"LocalExecutionBackend.*InferenceBackend"):
            await within(flow.prompt_task(lambda: "a")())
    async with WorkflowEngine.create(dry_run=True) as flow:
        assert await within(flow.prompt_task(lambda: "a")()) == "Dummy Prompt Output"


async def test_answers_are_reused(server: Server, tmp_path: Any) -> None:
    for _ in range(2):
        ai = InferenceBackend(server.url)
        journal = tmp_path / "run.sqlite"
        async with WorkflowEngine.create([ai], journal=journal, resume=True) as flow:
            assert await within(flow.prompt_task(lambda: "hello")()) == "5"
    assert len(server.requests) == 1


async def test_wrong_settings_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match="OPENAI_BASE_URL"):
        InferenceBackend()
    with pytest.raises(ValueError, match="batch must be positive, got 0"):
        InferenceBackend("http://localhost/v1", batch=0)
    async with WorkflowEngine.create([InferenceBackend("file:///etc/hosts")]) as flow:
        with pytest.raises(ValueError, match="http:// or https://"):
            await within(flow.prompt_task(lambda: "a")())
