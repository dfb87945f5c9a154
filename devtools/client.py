"""Talk to a running ComfyUI: queue a prompt and follow it. Needs aiohttp, which ComfyUI itself brings."""

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

# Even a proxy named for all hosts must not stand between us and the loopback.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
Progress = Callable[[str, float | None, float | None], None]


class HostError(RuntimeError):
    """The host refused or failed a prompt, or is gone."""


class PromptError(HostError):
    """The host found errors before running anything. `node_errors` is what it said, by node id."""

    def __init__(self, message: str, node_errors: dict):
        super().__init__(message)
        self.node_errors = node_errors


class ExecutionError(HostError):
    """A node failed. `details` is the host's message: node_id, exception_type, exception_message, traceback."""

    def __init__(self, message: str, details: dict):
        super().__init__(message)
        self.details = details


class Interrupted(HostError):
    """The prompt was interrupted."""


@dataclass
class Result:
    """A finished prompt: `outputs` is the UI output by node id, `executed` and `cached` are node ids."""

    prompt_id: str
    outputs: dict
    executed: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)


class Client:
    """One client of the host at `url`. Its methods block; only queue() opens a websocket, while it runs."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.id = uuid.uuid4().hex

    def object_info(self) -> dict:
        """Every node the host knows, by its type."""
        return self._request("/object_info")

    def history(self, prompt_id: str) -> dict:
        """The host's record of one prompt; empty when it has none."""
        return self._request(f"/history/{prompt_id}").get(prompt_id, {})

    def interrupt(self) -> None:
        """Stop the prompt that is running. May be called from a progress callback or another thread."""
        self._request("/interrupt", {})

    def fetch(self, reference: dict) -> bytes:
        """The content of a file the host reported: {"filename", "subfolder", "type"}."""
        query = urllib.parse.urlencode({key: reference.get(key, "") for key in ("filename", "subfolder", "type")})
        return self._read(urllib.request.Request(f"{self.url}/view?{query}"))

    def queue(
        self,
        prompt: dict,
        on_progress: Progress | None = None,
        workflow: dict | None = None,
        timeout: float | None = None,
    ) -> Result:
        """Run `prompt` (the API's form) to its end.

        `on_progress` gets (node's title, step, steps); both are None when a node begins. `workflow` is what the
        host puts into the files it saves. Raises PromptError, ExecutionError, Interrupted, or HostError when the
        host is gone or `timeout` seconds have passed; the prompt is interrupted when anything else is raised."""
        try:
            return asyncio.run(self._queue(prompt, on_progress or (lambda *_: None), workflow, timeout))
        except asyncio.TimeoutError:
            self._give_up()
            raise HostError(f"The prompt did not finish within {timeout} s.") from None
        except aiohttp.ClientError as error:
            raise HostError(f"The connection to the host at {self.url} failed: {error}") from error
        except HostError:
            raise
        except BaseException:
            self._give_up()
            raise

    def _give_up(self) -> None:
        try:
            self._request("/queue", {"clear": True})
            self.interrupt()
        except HostError:
            pass

    async def _queue(self, prompt, on_progress, workflow, timeout) -> Result:
        async with aiohttp.ClientSession() as session:
            address = f"{self.url}/ws?clientId={self.id}"
            # No limit on a message's size: previews and error reports can be large.
            async with session.ws_connect(address, max_msg_size=0) as socket:
                prompt_id = self._submit(prompt, workflow)
                return await asyncio.wait_for(self._follow(socket, prompt, prompt_id, on_progress), timeout)

    def _submit(self, prompt: dict, workflow: dict | None) -> str:
        body = {"prompt": prompt, "client_id": self.id}
        if workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": workflow}}
        request = urllib.request.Request(
            self.url + "/prompt", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            answer = json.loads(self._read(request))
        except HostError as error:
            cause = error.__cause__
            if not isinstance(cause, urllib.error.HTTPError) or cause.code != 400:
                raise
            refusal = json.loads(cause.read())
            raise PromptError(_refusal(prompt, refusal), refusal.get("node_errors") or {}) from None
        if answer.get("node_errors"):
            # Some outputs are sound and would run, but a graph with errors is not what was asked for.
            self._request("/queue", {"delete": [answer["prompt_id"]]})
            self._request("/interrupt", {"prompt_id": answer["prompt_id"]})
            raise PromptError(_refusal(prompt, answer), answer["node_errors"])
        return answer["prompt_id"]

    async def _follow(self, socket, prompt: dict, prompt_id: str, on_progress: Progress) -> Result:
        result = Result(prompt_id, {})
        failure: HostError | None = None
        async for message in socket:
            if message.type != aiohttp.WSMsgType.TEXT:
                continue
            event = json.loads(message.data)
            kind, data = event.get("type"), event.get("data") or {}
            if data.get("prompt_id") not in (None, prompt_id):
                continue
            if kind == "executing" and data.get("prompt_id") == prompt_id:
                node = data.get("node")
                if node is None:
                    if failure:
                        raise failure
                    result.outputs = self.history(prompt_id).get("outputs", {})
                    return result
                result.executed.append(node)
                on_progress(_title(prompt, data.get("display_node") or node), None, None)
            elif kind == "progress":
                on_progress(_title(prompt, data.get("node")), data["value"], data["max"])
            elif kind == "execution_cached":
                result.cached += data.get("nodes", [])
            elif kind == "execution_error":
                failure = ExecutionError(
                    f"{_title(prompt, data.get('node_id'))}: {data.get('exception_message', '').strip()}", data
                )
            elif kind == "execution_interrupted":
                failure = Interrupted(f"Interrupted at {_title(prompt, data.get('node_id'))}.")
        raise failure or HostError(f"The host at {self.url} closed the connection before the prompt was finished.")

    def _request(self, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        content = self._read(urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"}))
        return json.loads(content) if content else None

    def _read(self, request: urllib.request.Request) -> bytes:
        try:
            with _OPENER.open(request, timeout=60) as answer:
                return answer.read()
        except OSError as error:
            raise HostError(f"{request.full_url}: {error}") from error


def _title(prompt: dict, node_id) -> str:
    """A node's title, also for the nodes a node expands into ("7.0.2" comes from node 7)."""
    node_id = str(node_id)
    node = prompt.get(node_id) or prompt.get(node_id.split(".")[0].split(":")[0])
    if node is None:
        return f"node {node_id}"
    return node.get("_meta", {}).get("title") or node["class_type"]


def _refusal(prompt: dict, refusal: dict) -> str:
    lines = []
    for node_id, entry in (refusal.get("node_errors") or {}).items():
        for error in entry.get("errors", []):
            text = ": ".join(filter(None, [error.get("message"), error.get("details")]))
            lines.append(f"{_title(prompt, node_id)} (node {node_id}): {text}")
    if not lines:
        error = refusal.get("error") or {}
        if isinstance(error, str):
            return error
        lines.append(": ".join(filter(None, [error.get("message"), error.get("details")])) or str(refusal))
    return "\n".join(lines)
