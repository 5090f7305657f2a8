"""The sources never run code that comes with data, and import by name in few places only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

import sdpo as package

SOURCES = Path(package.__file__).parent
FILES = sorted([*SOURCES.rglob("*.py"), *REPOSITORY.glob("tools/*.py"), *REPOSITORY.glob("examples/**/*.py")])
MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle", "code"}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint"}
# Dotted names whose last two parts are these.
ATTRIBUTES = {"os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.hub"}
ATTRIBUTES |= {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "pandas.read_pickle", "runpy.run_path"}
# The only places that import by name: what comes with the package, torchvision, and the user's own reward.
IMPORTERS = {
    "__init__.py",
    "backbones/load.py",
    "method/lazy_torch.py",
    "rewards/__init__.py",
    "system/dotted_path.py",
    "system/torchvision.py",
}


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
