"""Prompts for language models: a backend that sends them to a server."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from rhapsody import TaskDescription
from rhapsody.backends import Capabilities, CompletedExecutable, ManagedBackend

PARAMETERS = frozenset(
    ("max_tokens", "model", "stop", "system_prompt", "temperature", "top_k", "top_p")
)
"""Settings of a prompt, which `task_description` contains."""


class InferenceBackend(ManagedBackend):
    """Backend that sends prompts to a server with OpenAI's endpoints, such as vLLM.

    The server receives prompts that are ready together, and have the same settings, in one request
    to `/completions`. With `chat=True`, it receives each prompt in a separate request to
    `/chat/completions`.

    Args:
        url: The server's base URL, such as `"http://localhost:8000/v1"`. Default: the environment
            variable `OPENAI_BASE_URL`.
        model: The model's name. Default: the first one that the server lists.
        batch: Maximum number of prompts in a request.
        limit: Maximum number of requests at once.
        timeout: Number of seconds to wait for the answer to a request.
        chat: True to use `/chat/completions`.
        name: The backend's name, as in `flow.prompt_task(backend="inference")`.

    Raises:
        ValueError: No URL is given, or a number is not positive.
    """

    name = "inference"
    capabilities: Capabilities = Capabilities(
        functions=False,
        sync_functions=False,
        executables=True,
        reports_running=True,
        task_settings=PARAMETERS,
    )

    def __init__(
        self,
        url: str | None = None,
        model: str | None = None,
        *,
        batch: int = 16,
        limit: int = 4,
        timeout: float = 600.0,
        chat: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(name=name)
        url = url or os.environ.get("OPENAI_BASE_URL")
        if not url:
            raise ValueError(
                "url must be the URL of a server, such as 'http://localhost:8000/v1'; set it here "
                "or in the environment variable OPENAI_BASE_URL"
            )
        for word, number in (("batch", batch), ("limit", limit), ("timeout", timeout)):
            if not number > 0:
                raise ValueError(f"{word} must be positive, got {number!r}")
        self.url: str = url.rstrip("/")
        self._model = model
        self._batch = 1 if chat else batch
        self._limit = asyncio.Semaphore(limit)
        self._timeout = timeout
        self._chat = chat
        self._waiting: dict[str, list[tuple[str, asyncio.Future[str]]]] = {}
        self._requests: set[asyncio.Task[None]] = set()

    async def run_task(self, task: TaskDescription) -> CompletedExecutable:
        """Wait for the answer to a prompt."""
        settings = json.dumps(task["task_backend_specific_kwargs"], sort_keys=True)
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        if not self._waiting:  # the tasks of a submission start in one iteration of the loop
            asyncio.get_running_loop().call_soon(self._send)
        self._waiting.setdefault(settings, []).append((str(task["executable"]), answer))
        return CompletedExecutable(0, await answer, "")

    async def stop(self) -> None:
        """Drop the requests that have not been answered."""
        for request in self._requests:
            request.cancel()
        if self._requests:
            await asyncio.wait(self._requests)

    def _send(self) -> None:
        """Send the waiting prompts."""
        waiting, self._waiting = self._waiting, {}
        for settings, prompts in waiting.items():
            for start in range(0, len(prompts), self._batch):
                part = prompts[start : start + self._batch]
                request = asyncio.create_task(self._answer(json.loads(settings), part))
                self._requests.add(request)
                request.add_done_callback(self._requests.discard)

    async def _answer(
        self, settings: dict[str, Any], prompts: list[tuple[str, asyncio.Future[str]]]
    ) -> None:
        """Send a request, and set its answers, or its error, on the futures of the prompts."""
        try:
            async with self._limit:
                texts = [prompt for prompt, _ in prompts]
                answers = await asyncio.to_thread(self._ask, settings, texts)
        except BaseException as error:  # the error of each of the tasks
            for _, future in prompts:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(prompts, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    def _ask(self, settings: dict[str, Any], prompts: list[str]) -> list[str]:
        """Send a request, and return the answers. Called on a thread."""
        if "model" not in settings:
            if self._model is None:
                self._model = self._call("/models")["data"][0]["id"]
            settings["model"] = self._model
        system = settings.pop("system_prompt", None)
        if self._chat:
            roles = [("system", system)] if system else []
            roles.append(("user", prompts[0]))
            messages = [{"role": role, "content": text} for role, text in roles]
            reply = self._call("/chat/completions", {**settings, "messages": messages})
            return [reply["choices"][0]["message"]["content"]]
        if system:
            prompts = [f"{system}\n\n{prompt}" for prompt in prompts]
        reply = self._call("/completions", {**settings, "prompt": prompts})
        choices = sorted(reply["choices"], key=lambda choice: choice.get("index", 0))
        if len(choices) != len(prompts):
            raise RuntimeError(
                f"{self.url} returned {len(choices)} answers to {len(prompts)} prompts; use batch=1"
            )
        return [choice["text"] for choice in choices]

    def _call(self, path: str, content: Mapping[str, Any] | None = None) -> Any:
        """Send a request to an endpoint, and return its answer.

        Args:
            path: The path of the endpoint.
            content: The content of a POST request; `None` for a GET request.

        Returns:
            The answer.

        Raises:
            ValueError: The URL is not one of HTTP.
            ConnectionError: The server cannot be reached.
            RuntimeError: The server refuses the request.
        """
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, body, headers)  # noqa: S310 - see below
        if request.type not in ("http", "https"):
            raise ValueError(f"url must start with http:// or https://, got {self.url!r}")
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as reply:  # noqa: S310
                return json.load(reply)
        except urllib.error.HTTPError as error:
            text = error.read(2000).decode(errors="replace")
            raise RuntimeError(f"{self.url}{path}: {error.code} {error.reason}: {text}") from None
        except urllib.error.URLError as error:
            raise ConnectionError(f"{self.url} cannot be reached: {error.reason}") from error


def answer(prompt: str, model: Any) -> str:
    """Return the answer of a model in this process, for `prompt_task(model=...)`."""
    return str(model(prompt))
