"""HTTP server for a scikit-learn model, with the endpoints of OpenAI that vLLM also offers.

    python examples/model_server.py FILE PORT

`GET /v1/models` lists the model, and `POST /v1/completions` returns its prediction for each prompt
as text. FILE is a model that was saved with joblib and predicts from strings. The server accepts
connections only from this machine.
"""

from __future__ import annotations

import argparse
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def main() -> None:
    """Load the model, and serve it until the process is terminated."""
    import joblib

    parser = argparse.ArgumentParser(description="Serve a scikit-learn model.")
    parser.add_argument("file", help="the model, saved with joblib")
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    name, model = Path(arguments.file).stem, joblib.load(arguments.file)
    created = int(time.time())

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                described = {"id": name, "object": "model", "created": created, "owned_by": "me"}
                self.reply(200, {"object": "list", "data": [described]})
            else:
                self.refuse(404, f"unknown path: {self.path}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = json.loads(body)
            if self.path != "/v1/completions":
                self.refuse(404, f"unknown path: {self.path}")
            elif request["model"] != name:
                self.refuse(404, f"unknown model: {request['model']!r}; this server has {name!r}")
            else:
                prompts = request["prompt"]
                prompts = [prompts] if isinstance(prompts, str) else prompts
                choices = [
                    {"index": index, "text": f"{value:.6g}", "finish_reason": "stop"}
                    for index, value in enumerate(model.predict(prompts))
                ]
                completion = {"id": "completion", "object": "text_completion", "model": name}
                self.reply(200, {**completion, "created": int(time.time()), "choices": choices})

        def refuse(self, status: int, message: str) -> None:
            self.reply(status, {"error": {"message": message, "code": status}})

        def reply(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
