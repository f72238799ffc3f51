"""A model on the hub, with the card of its run: a server on this machine speaks the hub's protocol and keeps what it gets."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

import gpt2
import model_explorer
from common.repository import REPOSITORY
from tests.train.little_run import save_run

TOKEN = "hf_token"


class FakeHub(BaseHTTPRequestHandler):
    """Repositories in memory: {"somebody/letters": {path: bytes}}. Large files come by LFS, as on the hub."""

    repositories: dict[str, dict[str, bytes]]
    uploads: dict[str, bytes]
    private: dict[str, bool]

    def do_HEAD(self):
        repository, _, path = self.path.strip("/").partition("/resolve/main/")
        if not path or path in self.repositories.get(repository, {}):
            self.answer({}, headers={"ETag": '"1"', "X-Repo-Commit": "0" * 40})
        else:
            self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})

    def do_PUT(self):
        self.uploads[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_POST(self):
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            asked = json.loads(self.body())
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            existed = name in self.repositories
            self.repositories.setdefault(name, {})
            self.private.setdefault(name, asked.get("private") or asked.get("visibility") == "private")
            self.answer({"url": f"{self.endpoint}/{name}", "name": name}, 409 if existed else 200)
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(self.body())["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
            self.answer(
                {"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]}
            )
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(self.body())["objects"]
            for one in objects:
                one["actions"] = {"upload": {"href": f"{self.endpoint}/lfs/{one['oid']}"}}
            self.answer({"transfer": "basic", "objects": objects})
        else:
            self.commit()

    def commit(self):
        repository = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
        for line in self.body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.repositories[repository][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.repositories[repository][value["path"]] = self.uploads[value["oid"]]
        oid = "1" * 40
        self.answer(
            {"commitUrl": f"{self.endpoint}/{repository}/commit/{oid}", "commitOid": oid, "success": True}
        )

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def answer(self, content: dict, status: int = 200, headers: dict[str, str] | None = None):
        text = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The hub that this process talks to."""
    kept = type("Hub", (FakeHub,), {"repositories": {}, "uploads": {}, "private": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kept)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HF_HUB_DISABLE_XET", True
    )  # the newer protocol for large files, which needs a store
    yield kept
    server.shutdown()


@pytest.fixture
def lm(tmp_path):
    """The model of a saved run, which has a loss of 1.25 and half of the answers right."""
    numbers = {"val_loss": 1.25, "acc[blimp]": 0.5, "steps": 4, "stopped": "finished"}
    folder = save_run(tmp_path, **numbers)
    return model_explorer.get_model_by_timestamp(folder.name, str(tmp_path)).lm


def test_a_pushed_model_is_loaded_by_transformers_with_equal_logits(hub, lm, tmp_path):
    assert lm.push_to_hub("somebody/letters", out=str(tmp_path)).endswith("/somebody/letters")
    files = hub.repositories["somebody/letters"]
    assert hub.private["somebody/letters"] is True
    for path, content in files.items():
        (tmp_path / "copy").mkdir(exist_ok=True)
        (tmp_path / "copy" / path).write_bytes(content)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "copy")
    ids = [tokenizer.bos_token_id, *tokenizer("abc")["input_ids"]]
    assert ids == lm.tokenizer("abc")
    torch.testing.assert_close(theirs(torch.tensor([ids])).logits, lm(ids), rtol=0, atol=1e-5)
    assert files["README.md"].decode() == model_explorer.model_card(lm, str(tmp_path))


def test_the_python_of_the_docs_pushes_a_model(hub, lm, tmp_path, monkeypatch):
    monkeypatch.setenv("WHATIF_OUT", str(tmp_path))
    text = (REPOSITORY / "docs" / "pretrained.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(# after `hf auth login`.*?)```", text, re.DOTALL)
    exec(compile(block, "pretrained.md", "exec"), {})  # noqa: S102 -- it is what users are told to run
    assert f"# {lm.name}\n" in hub.repositories["me/my-model"]["README.md"].decode()


def test_a_card_on_the_hub_stays(hub, lm):
    hub.repositories["somebody/letters"] = {"README.md": b"mine", "config.json": b"old"}
    lm.push_to_hub("somebody/letters", private=False)
    files = hub.repositories["somebody/letters"]
    assert files["README.md"] == b"mine"
    assert json.loads(files["config.json"])["vocab_size"] == lm.n_tokens


def test_a_hub_that_refuses_is_one_sentence(hub, lm, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "another")
    with pytest.raises(
        ValueError, match=r"^cannot push to 'somebody/letters': .*401.*`hf auth login` logs in$"
    ) as error:
        lm.push_to_hub("somebody/letters")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"cannot push to 'a/b/c': .*Repo id"):
        lm.push_to_hub("a/b/c")


def test_offline_a_push_is_refused(lm, monkeypatch):
    monkeypatch.setattr(gpt2, "hub_answers", lambda: False)
    with pytest.raises(ValueError, match=r"^cannot push to 'a/b': the hub at .* cannot be reached"):
        gpt2.push_to_hub(lm, "a/b")
