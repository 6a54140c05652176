#!/usr/bin/env python
"""Serve a Python reward function over HTTP, by the contract of docs/rewards.md.

python scripts/reward_server.py data/arithmetic/reward.py:right --port 8000
"""

import argparse
import json
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from rlhf_ppo.config import FunctionSource
from rlhf_ppo.data.prompts import Prompt
from rlhf_ppo.errors import UserError
from rlhf_ppo.rewards.function import RewardFunction
from rlhf_ppo.rewards.judgement import Missing
from rlhf_ppo.script import run_script


def answer(function: RewardFunction, question: dict[str, Any]) -> dict[str, Any]:
    """Scores, null where one is missing, and the reasons for that."""
    columns = question["columns"]
    prompts = [
        Prompt(row, f"prompt {row}", text, {name: values[row] for name, values in columns.items()})
        for row, text in enumerate(question["prompts"])
    ]
    scores = function.score(prompts, question["responses"])
    missing = [score.reason if isinstance(score, Missing) else None for score in scores]
    return {"scores": [None if isinstance(s, Missing) else s for s in scores], "reasons": missing}


def main(arguments: Sequence[str]) -> None:
    """Parse, then serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("function", help="folder/file.py:function or module:function")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0: for other machines too")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    words = parser.parse_args(arguments)
    function = RewardFunction(FunctionSource(kind="function", path=words.function), "function")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                status, said = 200, answer(function, json.loads(body))
            except (UserError, ValueError, KeyError, IndexError, TypeError) as error:
                status, said = 400, {"error": f"{type(error).__name__}: {error}"}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(said).encode())

    server = ThreadingHTTPServer((words.host, words.port), Handler)
    print(f"serving {words.function} on http://{words.host}:{server.server_port}/", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    run_script(main)
