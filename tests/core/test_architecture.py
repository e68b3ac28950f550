"""The house: which file may import which, read from the sources."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "janusflow_core"
# From the top down; an import goes to a lower layer, or within its own without a cycle.
LAYERS = [
    ("cli",),
    ("bulk", "demo", "doctor", "evaluation", "server", "tiny", "training"),
    ("pipeline",),
    ("checkpoint", "data", "lora"),
    ("decoding", "losses", "sampling", "vae", "weights"),
    ("model",),
    ("llama", "uvit", "vit"),
    ("attention", "comfyui", "config", "image", "png", "shapes", "tokenizer"),
]
LAYER = {name: index for index, names in enumerate(LAYERS) for name in names}
MODULES = sorted(path.stem for path in CORE.glob("*.py") if path.stem != "__init__")
# What ComfyUI itself installs, so that the pack brings nothing new into it.
COMFYUI_BRINGS = {"PIL", "numpy", "pydantic", "safetensors", "tokenizers", "torch", "tqdm"}
OPTIONAL = ["accelerate", "diffusers", "peft", "transformers", "tyro"]
COMFYUI_MODULES = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "execution",
    "folder_paths",
    "latent_preview",
    "nodes",
    "server",
}


@cache
def imports(path: Path) -> tuple[frozenset[str], frozenset[str]]:
    """Modules of its own package and top-level names of others that a file imports anywhere, for types too."""
    own, others = set(), set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 or path.parent != CORE, f"{path.name} imports from outside its package"
            own |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return frozenset(own - {"__version__"}), frozenset(others - set(sys.stdlib_module_names))


def of(module: str) -> tuple[frozenset[str], frozenset[str]]:
    return imports(CORE / f"{module}.py")


def test_every_module_has_a_layer():
    assert set(MODULES) <= LAYER.keys()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str):
    upward = {name for name in of(module)[0] if LAYER[name] < LAYER[module]}
    assert not upward, f"{module} imports {upward} from above"


def test_imports_have_no_cycle():
    assert set(TopologicalSorter({module: of(module)[0] for module in MODULES}).static_order()) >= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_core_knows_no_comfyui_and_itself_by_relative_imports_only(module: str):
    assert not of(module)[1] & (COMFYUI_MODULES | {"janusflow_core"})


@pytest.mark.parametrize("module", ["sampling", "losses", "comfyui"])
def test_pure_modules_import_nothing_of_ours(module: str):
    assert not of(module)[0]


@pytest.mark.parametrize("module", [m for m in MODULES if LAYER.get(m, 0) >= LAYER["pipeline"]])
def test_inference_needs_nothing_that_comfyui_lacks(module: str):
    optional = {"comfyui": {"comfy_cli"}, "lora": {"peft"}, "vae": {"diffusers"}}
    assert of(module)[1] <= COMFYUI_BRINGS | optional.get(module, set())


@pytest.mark.parametrize("library", OPTIONAL)
def test_an_optional_library_is_imported_by_two_files_at_most(library: str):
    users = {module for module in MODULES if library in of(module)[1]}
    assert len(users) <= 2, users
    if library == "transformers":
        assert not users
    if library == "diffusers":
        assert users <= {"vae", "tiny"}


def test_nodes_reach_comfyui_through_compat_alone():
    for path in (ROOT / "nodes").glob("*.py"):
        if path.stem != "compat":
            assert not imports(path)[1] & COMFYUI_MODULES, path.name


def test_importing_the_pipeline_loads_no_optional_library():
    code = f"import sys, janusflow_core.pipeline; print(sorted(set(sys.modules) & set({OPTIONAL!r})))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
