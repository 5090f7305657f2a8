"""What the sources never do, what configurations never hold, and what never leaves a run's directory."""

from __future__ import annotations

import ast
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Run
from hypothesis import given, settings
from hypothesis import strategies as st

import sdpo as package
from sdpo import Config
from sdpo.config.secrets import find_secrets, redact
from sdpo.errors import RewardError, UserError
from sdpo.rewards.remote.http import HttpReward

SOURCES = Path(package.__file__).parent
REPOSITORY = SOURCES.parents[1]
FILES = sorted([*SOURCES.rglob("*.py"), *REPOSITORY.glob("tools/*.py"), *REPOSITORY.glob("examples/**/*.py")])

MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
# Dotted names whose last two parts are these.
ATTRIBUTES = {"os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.hub"}
ATTRIBUTES |= {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "pandas.read_pickle", "runpy.run_path"}
# The only places that import by name: what comes with the package, torchvision, and the user's own reward.
IMPORTERS = {"__init__.py", "environment.py", "backbones/load.py", "rewards/base.py"}


def dotted(node: ast.expr) -> str:
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def offences(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            yield str(node.module)
        elif isinstance(node, ast.Attribute) and ".".join(dotted(node).split(".")[-2:]) in ATTRIBUTES:
            yield dotted(node)
        elif isinstance(node, ast.Call):
            yield from calls(node)


def calls(node: ast.Call) -> Iterator[str]:
    name = dotted(node.func)
    given = {k.arg: k.value.value if isinstance(k.value, ast.Constant) else ... for k in node.keywords}
    if isinstance(node.func, ast.Name) and name in CALLS:
        yield name
    if name == "torch.load" and given.get("weights_only") is not True:
        yield "torch.load without weights_only=True"
    if name.endswith(("Pipeline.from_pretrained", ".load_lora_weights")) and given.get("use_safetensors") is not True:
        yield f"{name} without use_safetensors=True"
    for flag in ("trust_remote_code", "allow_pickle", "shell", "custom_pipeline"):
        if flag in given and given[flag] is not False:
            yield f"{flag} in {name}"


def test_sources_run_nothing_that_data_brings() -> None:
    assert len(FILES) > 70
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        assert not list(offences(tree)), file
        called = {dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        if SOURCES in file.parents and "importlib.import_module" in called:
            assert str(file.relative_to(SOURCES)) in IMPORTERS


@pytest.mark.parametrize(
    "line",
    [
        "import pickle", "from joblib import load", "eval(x)", "yaml.load(x)", "torch.load(x)", "os.system(x)",
        "torch.load(x, weights_only=False)", "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)", "np.load(x, allow_pickle=True)", "DiffusionPipeline.from_pretrained(x)",
        "torch.hub.load(x)", "pipe.load_lora_weights(x)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(line: str) -> None:
    assert list(offences(ast.parse(line)))


SECRET = "hf_" + "abcDEF123" * 4
HTTP = {"rewards": {"http": 1.0}}


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Basic dXNlcjpwYXNz"}},
        {"headers": {"X-Api-Key": "0123456789"}},
        {"headers": {"X-Team": f"Bearer {SECRET}"}},
        {"headers": {SECRET: "x"}},
        {"url": "https://user:hunter22@example.org/"},
        {"url": "https://example.org/score?api_key=0123456789"},
        {"token_env": SECRET},
        {"token_env": "sk-not-a-name"},
        {"headers_env": {"X-Api-Key": "not a name"}},
        {"options": {"deep": [{"password": "hunter22"}]}},
        {"model": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3"},
        {"key": "-----BEGIN OPENSSH PRIVATE KEY-----"},
    ],
)
def test_secrets_in_a_configuration_are_refused_and_not_repeated(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="environment variable") as refused:
        Config.load("emoji", **HTTP, reward_options={"http": options})
    message = redact(str(refused.value))
    assert "reward_options.http." in message
    for secret in (SECRET, "hunter22", "0123456789", "dXNlcjpwYXNz", "eyJhbGci", "not-a-name", "PRIVATE KEY"):
        assert secret not in message


def test_secrets_anywhere_else_are_refused_too() -> None:
    with pytest.raises(UserError, match="model.path"):
        Config.load("emoji", model={"path": f"https://user:{SECRET}@example.org/model"})


def test_what_a_reward_needs_is_no_secret() -> None:
    options = {
        "url": "https://example.org:8000/score?model=a", "headers": {"X-Team": "vision", "Accept": "*/*"},
        "token_env": "MY_TOKEN", "headers_env": {"X-Api-Key": "OTHER"}, "max_tokens": 256, "tokenizer": "bert",
        "template": "Judge by basic principles: {prompt}", "revision": "5736be03b2652728fb87788c9797b0570450ab72",
        "path": "/models/sk-something-very-long",
    }  # fmt: skip
    assert not list(find_secrets({"reward_options": {"http": options}}))
    Config.load("emoji", **HTTP, reward_options={"http": options})
    Config.load("emoji", prompts={"train": ["password: hunter22", "a sk-1234567890abcdef1234 fox"]})  # prompts are text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text(string.ascii_letters + string.digits, min_size=20, max_size=60), st.sampled_from(["hf_", "sk-", "ghp_"]))
def test_tokens_are_found_wherever_they_stand(body: str, prefix: str) -> None:
    token = f"{prefix}{body}1"
    assert list(find_secrets({"a": [{"b": token}]})) == ["a.0.b"]
    assert token not in redact(f"the server at http://x/ said: '{token}', and so on")


def test_messages_on_the_terminal_hide_what_was_typed(sdpo: Run) -> None:
    for override in (
        f"reward_options.http.headers={{Authorization: Bearer {SECRET}",  # no YAML
        f"reward_options.http.headers={{Authorization: Bearer {SECRET}}}",
        f"epochs={SECRET}",
    ):
        result = sdpo("train", "emoji", override, "--dry-run")
        assert result.returncode == 2 and SECRET not in result.stdout + result.stderr


def test_a_server_that_repeats_its_headers_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "correct-horse-battery")
    monkeypatch.setenv("OTHER", "staple-staple")
    reward = HttpReward("http://127.0.0.1:9/", token_env="MY_TOKEN", headers_env={"X-Api-Key": "OTHER"}, retries=0)
    sent = reward._client._session.headers
    assert sent["Authorization"] == "Bearer correct-horse-battery" and sent["X-Api-Key"] == "staple-staple"
    with pytest.raises(RewardError) as refused:
        reward._scores({"echo": dict(sent)}, 1)
    assert "correct-horse" not in str(refused.value) and "staple" not in str(refused.value)
    with pytest.raises(UserError, match="MISSING is not set"):
        HttpReward("http://x/", headers_env={"X-Api-Key": "MISSING"})


HOSTILE = [
    "<script>alert('p')</script>",
    "</style><img src=x onerror=alert(1)>",
    "../../../escape",
    "[/red] ${body} {x}",
]


def test_a_real_run_with_hostile_prompts_and_a_token(
    sdpo: Run, tmp_path: Path, tiny_overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "correct-horse-battery")
    (tmp_path / "mine.py").write_text(
        "import os\nclass Judge:\n    def __init__(self, key_env): self.key = os.environ[key_env]\n"
        "    def __call__(self, images, prompts, metadata): return images.mean((1, 2, 3))\n"
    )
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in HOSTILE))
    overrides = [*tiny_overrides, "epochs=1", "prompts={train: prompts.jsonl, unseen: prompts.jsonl}", "lora={rank: 1}"]
    overrides += ["rewards={mine:Judge: 1.0}", "reward_options={mine:Judge: {key_env: JUDGE_KEY}}"]
    before = {*tmp_path.iterdir(), tmp_path / "run", tmp_path / "__pycache__"}
    result = sdpo("train", "emoji", *overrides, "--output-dir", "run")
    assert result.returncode == 0, result.stderr
    assert set(tmp_path.iterdir()) <= before and not (tmp_path.parent / "escape").exists()

    page = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;script&gt;alert(&#x27;p&#x27;)&lt;/script&gt;" in page and "&lt;img src=x onerror" in page
    assert "<script" not in page and "<img src=x" not in page and page.count("</style>") == 1
    for path in (tmp_path / "run").rglob("*"):
        assert not path.is_file() or b"correct-horse" not in path.read_bytes(), path
    assert "correct-horse" not in result.stdout + result.stderr


def test_a_dotted_path_imports_the_users_module_and_no_other(sdpo: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("open('imported', 'w').close()\ndef reward(*a): ...\n")
    (tmp_path / "other.py").write_text("open('other-imported', 'w').close()\n")
    assert sdpo("train", "emoji", "--dry-run").returncode == 0
    assert not (tmp_path / "imported").exists()
    assert sdpo("train", "emoji", "rewards={mine:reward: 1.0}", "--dry-run").returncode == 0
    assert (tmp_path / "imported").exists() and not (tmp_path / "other-imported").exists()
