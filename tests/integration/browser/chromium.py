"""A real Chromium without a window, driven through its pipe: https://chromedevtools.github.io/devtools-protocol/."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

#: Seconds for one answer of the browser.
DEADLINE = 30

# Names that end in .test are this machine; everything else but localhost does not exist.
NAMES = "MAP *.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"

FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"),
    *("--no-first-run", "--no-default-browser-check", "--no-proxy-server", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-breakpad"),
    f"--host-resolver-rules={NAMES}",
]


class Chromium:
    """The browser; it ends when this end of the pipe is closed.

    Args:
        folder: for its profile and its output.
        flags: more of its flags.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        program = shutil.which("chromium")
        if program is None:
            pytest.skip("no chromium program: install Debian's chromium")
        self.log = folder / "chromium.log"
        self._pages: dict[str, Page] = {}
        self._replies: dict[int, dict[str, Any]] = {}
        self._last = 0
        self._unread = b""
        its_input, self._to = os.pipe()
        self._from, its_output = os.pipe()
        # The shell knows the numbers 3 and 4 only once they are free.
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (its_input, its_output)]
        command = [program, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, "about:blank"]
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", f'exec "$@" 3</dev/fd/{ends[0]} 4>/dev/fd/{ends[1]}', "sh", *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ.get("PATH", os.defpath), "HOME": str(folder), "LANG": "C.UTF-8"},
                pass_fds=ends,
                start_new_session=True,
            )
        for end in (its_input, its_output, *ends):
            os.close(end)

    def close(self) -> None:
        """End it and everything it started."""
        try:
            if self.process.poll() is None:
                self.send("Browser.close")
            self.process.wait(10)
        except (OSError, subprocess.TimeoutExpired):
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
            for end in (self._to, self._from):
                os.close(end)

    def new_page(self) -> Page:
        """A page of a browser that remembers nothing of the other pages."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session, context)
        return page

    def send(self, method: str, params: Mapping[str, Any] | None = None, session: str = "") -> int:
        """Send a command and return its number."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": params or {}}
        if session:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        return self._last

    def call(self, method: str, params: Mapping[str, Any] | None = None, session: str = "") -> dict[str, Any]:
        """Send a command and return what comes back."""
        number = self.send(method, params, session)
        end = time.monotonic() + DEADLINE
        while number not in self._replies:
            self._read(method, end)
        reply = self._replies.pop(number)
        # Not the parameters: they may have a password.
        assert "error" not in reply, f"{method}: {reply['error']}"
        result: dict[str, Any] = reply["result"]
        return result

    def _read(self, method: str, end: float) -> None:
        """Read what has come and deal with it."""
        ready, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
        data = os.read(self._from, 1 << 16) if ready else b""
        if not data:
            state = "has ended" if ready else f"did not answer within {DEADLINE} seconds"
            pytest.fail(f"chromium {state}, asked for {method}:\n{self.log.read_text(errors='replace')[-4000:]}")
        *messages, self._unread = (self._unread + data).split(b"\0")
        for each in messages:
            message = json.loads(each)
            if "id" in message:
                self._replies[message["id"]] = message
            elif message.get("sessionId") in self._pages:
                self._pages[message["sessionId"]].handle(message["method"], message["params"])


class Page:
    """One page, without what other pages have stored."""

    def __init__(self, browser: Chromium, session: str, context: str) -> None:
        self._browser = browser
        self._session = session
        self._context = context
        self.log = browser.log
        #: Scheme and realm of each login box that the browser opened.
        self.login_boxes: list[tuple[str, str]] = []
        #: Headers of each preflight that the browser sent.
        self.preflights: list[dict[str, str]] = []
        self._logins: list[tuple[str, str]] = []
        for domain in ("Page", "Network"):
            self._call(f"{domain}.enable")

    def close(self) -> None:
        """Close it and forget what it has stored."""
        self._browser.call("Target.disposeBrowserContext", {"browserContextId": self._context})

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, params, self._session)

    def handle(self, method: str, params: Mapping[str, Any]) -> None:
        """Note what happens, and answer what the browser asks its user."""
        if method == "Network.requestWillBeSentExtraInfo":
            headers = {name.lower(): value for name, value in params["headers"].items()}
            if "access-control-request-method" in headers:
                self.preflights.append(headers)
        elif method == "Fetch.requestPaused":
            self._browser.send("Fetch.continueRequest", {"requestId": params["requestId"]}, self._session)
        elif method == "Fetch.authRequired":
            challenge = params["authChallenge"]
            self.login_boxes.append((challenge["scheme"], challenge["realm"]))
            response = {"response": "CancelAuth"}
            if self._logins:
                user, password = self._logins.pop(0)
                response = {"response": "ProvideCredentials", "username": user, "password": password}
            answer = {"requestId": params["requestId"], "authChallengeResponse": response}
            self._browser.send("Fetch.continueWithAuth", answer, self._session)

    def allow_loopback(self, origin: str) -> None:
        """Say yes, as the user, to pages from there that ask servers of this machine."""
        permission = {"permission": {"name": "loopback-network"}, "setting": "granted", "origin": origin}
        self._browser.call("Browser.setPermission", {**permission, "browserContextId": self._context})

    def answer_login_boxes(self, *logins: tuple[str, str]) -> None:
        """Write these names and passwords into the browser's login boxes, and close all further ones."""
        self._logins = list(logins)
        self._call("Fetch.enable", handleAuthRequests=True)

    def go(self, url: str) -> None:
        """Open an address."""
        failed = self._call("Page.navigate", url=url).get("errorText")
        assert not failed, f"{url}: {failed}"
        self.wait_for(lambda: self.evaluate("document.readyState") == "complete")

    @property
    def status(self) -> int:
        """The status of the answer that is shown."""
        return int(self.evaluate("performance.getEntriesByType('navigation')[0].responseStatus"))

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, or what a promise brings."""
        done = self._call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]["exception"].get("description")
        return done["result"].get("value")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Poll until the condition holds."""
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, f"not in time; the page shows:\n{self.text('body')}"
            time.sleep(0.02)

    def text(self, selector: str) -> str:
        """What an element shows."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def texts(self, selector: str) -> list[str]:
        """What all such elements show."""
        found = self.evaluate(f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.innerText)")
        return [str(each) for each in found]

    def click(self, selector: str, text: str = "") -> None:
        """Click on the first such element, or the one that shows this text."""
        place = self.evaluate(
            f"""(() => {{
                const all = [...document.querySelectorAll({json.dumps(selector)})];
                const found = all.find((each) => !{json.dumps(text)} || each.innerText === {json.dumps(text)});
                found.scrollIntoView();
                const box = found.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", **event)

    def type(self, selector: str, text: str) -> None:
        """Write into an input field, in place of what is there."""
        self.click(selector)
        self.evaluate("document.activeElement.select()")
        self._call("Input.insertText", text=text)
