"""A local endpoint in the form of OpenAI's chat completions."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any


@contextmanager
def judging_server(reply: Callable[[str], Any], refuse: Callable[[Any], str] = lambda content: "") -> Iterator[Any]:
    """url; asked: the prompts, each answered with reply(prompt); keys: what stood in the headers. refuse: the reason why a
    request is refused, empty where it is not. A reply that is a dict is the whole answer."""
    state = SimpleNamespace(asked=[], keys=set(), url="")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = content["messages"][0]["content"]
            state.asked.append(prompt)
            state.keys.add(self.headers["Authorization"])
            reason = refuse(content)
            said = None if reason else reply(prompt)
            whole = said if isinstance(said, dict) else {"choices": [{"message": {"content": said}}]}
            answer = {"error": {"message": reason}} if reason else whole
            body = json.dumps(answer).encode()
            self.send_response(400 if reason else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/v1/chat/completions"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
