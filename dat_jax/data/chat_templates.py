"""Chat templates rendered with limits on time, memory and size, in a process beside this one: see `template_process`."""

import atexit
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from dat_jax.data.template_process import SECONDS

PROGRAM = pathlib.Path(__file__).with_name("template_process.py")


class _Process:
    """The process, started when the first template is rendered; a fork of this one starts its own."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._owner = 0

    def ask(self, line: str) -> dict[str, str]:
        """Returns the answer to a line; what ended the process, where a template did."""
        with self._lock:
            for _ in range(2):  # one that was ended from outside while it waited is started anew
                process = self._started()
                try:
                    print(line, file=process.stdin, flush=True)
                    found = process.stdout.readline() if process.stdout else ""
                except BrokenPipeError:
                    found = ""
                if found:
                    return json.loads(found)
                self._running = None
                if (status := process.wait()) == -signal.SIGPROF:
                    return {"what": "limit", "error": f"it takes more than {self._seconds:g} seconds"}
            return {"what": "limit", "error": f"the process that renders it ends with status {status}"}

    def _started(self) -> subprocess.Popen[str]:
        if self._running is None or self._owner != os.getpid():
            # -P: the folder of that file is no place to import from. A session of its own: Ctrl-C is this process's to answer.
            self._running = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(self._seconds)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL, text=True, encoding="utf-8", start_new_session=True,
            )  # fmt: skip
            self._owner = os.getpid()
            atexit.register(self._close, self._running)
        return self._running

    def _close(self, process: subprocess.Popen[str]) -> None:
        if self._owner == os.getpid():
            process.communicate()


_PROCESS = _Process()


def render(tokenizer: Any, messages: Sequence[dict[str, str]], generation_prompt: bool) -> str:
    """Returns a conversation as the tokenizer's chat template writes it: what `apply_chat_template` gives, within limits.

    Raises ValueError naming the tokenizer where the template refuses the conversation, has a fault, or reaches a limit.
    """
    template, name = tokenizer.get_chat_template(), tokenizer.name_or_path
    if not messages:
        raise ValueError(f"the chat template of {name!r} was given no message; allowed: one or more")
    variables = {**tokenizer.special_tokens_map, "messages": list(messages), "add_generation_prompt": generation_prompt}
    found = _PROCESS.ask(json.dumps({"template": template, "variables": variables | {"tools": None, "documents": None}}, default=str))
    if "text" in found:
        return found["text"]
    reason = " ".join(found["error"].split())[:300]
    if found["what"] == "limit":
        raise ValueError(f"the chat template of {name!r} is not rendered: {reason}; allowed: a template that ends soon")
    roles = ", ".join(message["role"] for message in messages)
    raise ValueError(f"the chat template of {name!r} refuses a conversation with roles {roles}: {reason}")
