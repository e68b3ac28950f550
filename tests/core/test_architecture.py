"""The house: which file may import which, read from the sources, of every folder below janusflow_core."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = ROOT / "janusflow_core"
# The inference library lies flat; a wing is a folder of what merely drives it. From the top down: an import goes to
# a lower floor, or stays on its own without a cycle.
WINGS = {"bench", "bulk", "cli", "evaluation", "host", "train", "world"}
FLOORS = [
    {"cli"},
    {"bench", "evaluation", "host", "world"},
    {"bulk", "convert", "pipeline", "train"},
    {"understanding"},
    {"checkpoint", "lora"},
    {
        "adapters",
        "autoencoder",
        "canvas",
        "chat",
        "choices",
        "decoding",
        "layout",
        "recall",
        "schemas",
        "spelling",
        "vae",
        "weights",
    },
    {"model"},
    {"llama", "uvit", "vit"},
    {
        "attention",
        "captions",
        "config",
        "device",
        "drawing",
        "graphs",
        "guidance",
        "image",
        "operations",
        "partial",
        "png",
        "quantized",
        "sampling",
        "scoring",
        "seeds",
        "sheet",
        "tokenizer",
        "values",
        "wildcards",
    },
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
LONGEST_CHAIN, LONGEST_FILE = 10, 330
# What ComfyUI itself installs, so that the pack brings nothing new into it.
COMFYUI_BRINGS = {"PIL", "numpy", "pydantic", "safetensors", "tokenizers", "torch", "tqdm"}
OPTIONAL = ["accelerate", "comfy_cli", "diffusers", "llguidance", "peft", "pyarrow", "transformers"]
OPTIONAL += ["matplotlib", "lmms_eval", "torch_fidelity", "tyro", "websocket"]
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


def modules(root: Path) -> dict[str, Path]:
    """Dotted name below `root` -> file, of every source there; a folder's name is that of its __init__.py."""
    found = {path.relative_to(root).with_suffix(""): path for path in sorted(root.rglob("*.py"))}
    return {".".join(name.parent.parts if name.name == "__init__" else name.parts): found[name] for name in found}


@cache
def imports(root: Path, module: str) -> tuple[frozenset[str], frozenset[str]]:
    """Modules below `root` and top-level names of others that a module imports anywhere, for types too."""
    files, own, others = modules(root), set(), set()
    folder = files[module].relative_to(root).parent.parts
    for node in ast.walk(ast.parse(files[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            depth = len(folder) - node.level + 1
            assert depth >= 0 or root != CORE, f"{module} imports from outside its package"
            if depth >= 0:
                base = ".".join((*folder[:depth], *((node.module or "").split(".") if node.module else ())))
                names = {".".join(filter(None, (base, alias.name))) for alias in node.names}
                own |= {name if name in files else base for name in names}
        elif isinstance(node, ast.ImportFrom):
            others.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            others |= {alias.name.split(".")[0] for alias in node.names}
    return frozenset(own - {module}), frozenset(others - set(sys.stdlib_module_names))


MODULES = {name: path for name, path in modules(CORE).items() if not name.endswith("__main__")}
INFERENCE = [module for module in MODULES if module.split(".")[0] not in WINGS]


def own(module: str) -> frozenset[str]:
    # The package itself is its version and a name that is looked up late: everybody may know it.
    return imports(CORE, module)[0] - {""}


def foreign(module: str) -> frozenset[str]:
    return imports(CORE, module)[1]


def room(module: str) -> str:
    return module.split(".")[0]


def rooms_known_to(wing: str) -> set[str]:
    return {room(name) for module in MODULES if room(module) == wing for name in own(module)} - {wing}


def test_every_module_has_a_floor():
    assert {room(module) for module in MODULES if module} <= FLOOR.keys()
    assert {path.name for path in CORE.iterdir() if path.is_dir() and [*path.glob("*.py")]} <= WINGS


@pytest.mark.parametrize("module", [module for module in MODULES if module])
def test_imports_point_down(module: str):
    upward = {name for name in own(module) if FLOOR[room(name)] < FLOOR[room(module)]}
    assert not upward, f"{module} imports {upward} from above"


def test_imports_have_no_cycle():
    assert set(TopologicalSorter({module: own(module) for module in MODULES}).static_order()) >= set(MODULES)


def test_no_chain_of_imports_is_long():
    @cache
    def chain(module: str) -> list[str]:
        return [module, *max((chain(name) for name in own(module)), key=len, default=[])]

    longest = max((chain(module) for module in MODULES), key=len)
    assert len(longest) - 1 <= LONGEST_CHAIN, " -> ".join(longest)


def test_no_file_is_long():
    lines = {module: len(path.read_text("utf-8").splitlines()) for module, path in MODULES.items()}
    lines |= {name: len(path.read_text("utf-8").splitlines()) for name, path in modules(ROOT / "nodes").items()}
    assert {name: count for name, count in lines.items() if count > LONGEST_FILE} == {}


def test_inference_knows_no_wing():
    for module in INFERENCE:
        assert not {room(name) for name in own(module)} & WINGS, module


def test_wings_keep_to_themselves():
    assert not rooms_known_to("train") & {"world", "host", "cli"}
    assert not rooms_known_to("host") & {"world", "train", "cli"}
    assert not rooms_known_to("world") & {"host", "cli"}


@pytest.mark.parametrize("module", MODULES)
def test_core_knows_no_comfyui_and_itself_by_relative_imports_only(module: str):
    assert not foreign(module) & (COMFYUI_MODULES | {"janusflow_core"})


@pytest.mark.parametrize("module", ["adapters", "attention", "sampling", "seeds", "train.losses", "host.find"])
def test_pure_modules_import_nothing_of_ours(module: str):
    assert own(module) <= {"seeds"}


@pytest.mark.parametrize("module", INFERENCE)
def test_inference_needs_nothing_that_comfyui_lacks(module: str):
    optional = {"vae": {"diffusers"}, "schemas": {"llguidance"}}
    assert foreign(module) <= COMFYUI_BRINGS | optional.get(module, set())


@pytest.mark.parametrize("library", OPTIONAL)
def test_an_optional_library_is_imported_by_two_files_at_most(library: str):
    users = {module for module in MODULES if library in foreign(module)}
    assert len(users) <= 2 or library == "tyro", users
    if library == "transformers":  # to compare with, and to score with, never to run
        assert users <= {"bench.peers", "evaluation.clip"}
    if library == "diffusers":
        assert users <= {"vae", "world.codec"}
    if library == "tyro":  # the commands say with it how their fields are read
        assert {room(user) for user in users} <= {"cli"}


def test_the_host_knows_node_ids_in_one_place():
    known = [
        (module, text.value)
        for module in MODULES
        if room(module) == "host"
        for text in ast.walk(ast.parse(MODULES[module].read_text("utf-8")))
        if isinstance(text, ast.Constant) and isinstance(text.value, str) and text.value.startswith("JanusFlow")
        if text.value.isidentifier()
    ]
    assert known and len({module for module, _ in known}) == 1 and len(set(known)) == len(known), known


def test_nodes_reach_comfyui_through_compat_alone():
    nodes = ROOT / "nodes"
    users = {module for module in modules(nodes) if imports(nodes, module)[1] & COMFYUI_MODULES}
    assert users == {"native.compat"}


def test_a_node_knows_no_other_node():
    nodes = ROOT / "nodes"
    for module in modules(nodes):
        known = {name.split(".")[0] for name in imports(nodes, module)[0]} - {""}
        assert known <= {"native"} or not module, f"{module} imports {known}"


def test_importing_the_pipeline_loads_no_optional_library():
    code = f"import sys, janusflow_core.pipeline; print(sorted(set(sys.modules) & set({OPTIONAL!r})))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
