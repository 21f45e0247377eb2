"""A headless Chromium for tests, driven through its own protocol (https://chromedevtools.github.io/devtools-protocol/) over two pipes."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find():
    """The browser's path, CHROMIUM or one of the usual names; None where there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One tab. `said`: errors and warnings of its console, and what its security policy refused."""

    def __init__(self, write, read):
        self._write, self._read, self._buffer, self._number, self._session = write, read, b"", 0, None
        self.said, self.events = [], []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        """Calls a method of the protocol and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next(60.0)
            if found.get("id") == self._number:
                if "error" in found:
                    raise RuntimeError(f"{method}: {found['error']}")
                return found["result"]

    def _next(self, seconds):
        end = time.monotonic() + seconds
        while b"\0" not in self._buffer:
            if not select.select([self._read], [], [], max(end - time.monotonic(), 0))[0]:
                raise TimeoutError("the browser does not answer")
            chunk = os.read(self._read, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser has ended")
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        found = json.loads(text)
        if "method" in found:
            self._note(found["method"], found["params"])
        return found

    def _note(self, method, event):
        self.events.append(method)
        if method == "Log.entryAdded" and event["entry"]["level"] in ("error", "warning"):
            self.said.append(event["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and event["type"] in ("error", "warning", "assert"):
            self.said.append(str(event["args"]))
        elif method == "Runtime.exceptionThrown":
            self.said.append(str(event["exceptionDetails"]))
        elif method == "Network.requestWillBeSent" and not event["request"]["url"].startswith(("file:", "data:", "about:")):
            self.said.append(f"asked for {event['request']['url']}")

    def open(self, path):
        """Loads a file and waits until it is there."""
        self.events.clear()
        self.send("Page.navigate", url=f"file://{path}")
        while "Page.loadEventFired" not in self.events:
            self._next(60.0)

    def size(self, width, height=900, phone=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def scheme(self, name, media="screen"):
        self.send("Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": name}])

    def run(self, script):
        """The value of an expression of JavaScript."""
        found = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, key, code, text=""):
        """Presses and releases a key."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def picture(self, path, whole=True):
        """A screenshot as PNG."""
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]))


@contextlib.contextmanager
def tab(browser):
    """Starts a browser with a profile of its own and yields a tab."""
    (their_read, write), (read, their_write) = os.pipe(), os.pipe()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [browser, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run", "--disable-gpu"]
        command += ["--no-sandbox", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking"]
        # The protocol is spoken on the descriptors 3 and 4.
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{their_read} 4>&{their_write}', *command]
        process = subprocess.Popen(
            shell, pass_fds=(their_read, their_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for end in (their_read, their_write):
            os.close(end)
        try:
            yield Tab(write, read)
        finally:
            process.kill()
            process.wait()
            for end in (write, read):
                os.close(end)
