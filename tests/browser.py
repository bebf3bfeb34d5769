"""A headless Chromium for tests, over its debugging pipe: open a page, run a script in it, read its console."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
WAIT = 60.0


class Browser:
    """One browser with one page. Its profile is new, and goes with it."""

    def __init__(self, arguments: Sequence[str] = ()) -> None:
        assert CHROMIUM is not None
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        command = [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
            "--disable-background-networking", "--disable-component-update",
            "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "--window-size=1200,1600", *arguments,
        ]  # fmt: skip
        shell = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", *command]
        self._process = subprocess.Popen(
            shell, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._number, self._left, self._session = 0, b"", ""
        self.console: list[str] = []
        self.asked: list[str] = []
        self._fakes: list[tuple[str, str, Callable[[str], Any]]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        self._process.kill()
        self._process.wait(WAIT)
        os.close(self._in)
        self._profile.cleanup()

    def open(self, url: str) -> None:
        """Go there, and return when the page has loaded."""
        self._call("Page.navigate", url=url)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        done = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def until(self, script: str, seconds: float = WAIT) -> Any:
        """The expression's value as soon as it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
        raise AssertionError(f"never true in the page: {script}; console: {self.console}")

    def click(self, selector: str) -> None:
        """Click the first element that fits, as soon as there is one."""
        self.until(f"document.querySelector({json.dumps(selector)}) !== null")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def choose(self, selector: str, *paths: str) -> None:
        """Put files into an input, as a person does."""
        self.until(f"document.querySelector({json.dumps(selector)}) !== null")
        root = self._call("DOM.getDocument")["root"]["nodeId"]
        node = self._call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self._call("DOM.setFileInputFiles", nodeId=node, files=list(paths))

    def type(self, selector: str, text: str) -> None:
        """Write into an input, and leave it."""
        self.until(f"document.querySelector({json.dumps(selector)}) !== null")
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self._call("Input.insertText", text=text)
        self.run("document.activeElement.blur()")

    def press(self, key: str, modifiers: int = 0) -> None:
        """A key, down and up: ``Tab``, ``Enter``, ``ArrowRight``; modifiers as the protocol counts them, 8 is Shift."""
        code = {"Tab": 9, "Enter": 13, " ": 32, "ArrowLeft": 37, "ArrowRight": 39}[key]
        text = {"Enter": "\r", " ": " "}.get(key, "")
        for kind in ("keyDown", "keyUp"):
            self._call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                modifiers=modifiers, **({"text": text} if text and kind == "keyDown" else {}),
            )  # fmt: skip

    def look(self, width: int, height: int, *, dark: bool = False) -> None:
        """The window's size in pixels, a narrow one is a phone's, and the colours that the system is said to have."""
        phone = width < 600
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )  # fmt: skip
        wish = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[wish])

    def fake(self, method: str, path: str, answer: Callable[[str], Any]) -> None:
        """Answer calls whose address has ``path`` in it: with JSON or, a str, HTML; None lets one through."""
        self._fakes.append((method, path, answer))
        self._call("Fetch.enable", patterns=[{"urlPattern": f"*{path}*"} for _, path, _ in self._fakes])

    def picture(self) -> bytes:
        """What is seen, as a WebP."""
        return base64.b64decode(self._call("Page.captureScreenshot", format="webp", quality=82)["data"])

    def _paused(self, event: dict[str, Any]) -> None:
        request = event["request"]
        for method, path, answer in self._fakes:
            if request["method"] == method and path in request["url"]:
                found = answer(request["url"])
                if found is None:
                    break
                text = found if isinstance(found, str) else json.dumps(found)
                body = base64.b64encode(text.encode()).decode()
                kind = "text/html" if isinstance(found, str) else "application/json"
                headers = [{"name": "Content-Type", "value": kind}]
                self._say(
                    "Fetch.fulfillRequest", requestId=event["requestId"], responseCode=202 if method == "POST" else 200,
                    responseHeaders=headers, body=body,
                )  # fmt: skip
                return
        self._say("Fetch.continueRequest", requestId=event["requestId"])

    def _say(self, method: str, **parameters: Any) -> int:
        self._number += 1
        asked: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            asked["sessionId"] = self._session
        os.write(self._out, json.dumps(asked).encode() + b"\0")
        return self._number

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = self._say(method, **parameters)
        end = time.monotonic() + WAIT
        while True:
            message = self._next(end)
            if message.get("id") == number:
                assert "error" not in message, message
                return message["result"]  # type: ignore[no-any-return]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "Network.requestWillBeSent":
            self.asked.append(message["params"]["request"]["url"])
        elif message.get("method") == "Fetch.requestPaused":
            self._paused(message["params"])
        elif message.get("method") == "Log.entryAdded":
            self.console.append(message["params"]["entry"]["text"])
        elif message.get("method") == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(a.get("value", a)) for a in message["params"]["args"]))
        elif message.get("method") == "Runtime.exceptionThrown":
            self.console.append(str(message["params"]["exceptionDetails"]))

    def _next(self, end: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._in], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser did not answer"
            chunk = os.read(self._in, 2**20)
            assert chunk, "the browser ended"
            self._left += chunk
        line, _, self._left = self._left.partition(b"\0")
        return json.loads(line)  # type: ignore[no-any-return]
