"""The pack as a user has it: a copy in custom_nodes, nothing but ComfyUI's own requirements, and no network."""

import json
import os
import subprocess
import sys

import graphs
import pytest
from conftest import CHECKOUT
from graphs import GOLDEN_FILE, GOLDEN_FOLDER, TINY, Graph, golden, parts, relative, tiny

from janusflow_core.host.find import find_comfyui
from janusflow_core.host.server import Server
from janusflow_core.layout import save_folder, save_single

# ComfyUI itself needs transformers for its tokenizers, but none of its models.
BLOCKED = (
    "diffusers", "accelerate", "peft", "timm", "attrdict", "comfy_cli", "tyro", "websocket", "hypothesis", "pytest",
    "transformers.modeling_utils", "transformers.models.llama", "transformers.models.siglip",
    "transformers.models.janus", "transformers.models.auto.modeling_auto", "transformers.generation.utils",
)  # fmt: skip
LOCAL = ("127.0.0.1", "localhost", "::1", "0.0.0.0")

# Runs in the server before anything else: what is blocked is not to be found, who speaks to the world is written down.
SITECUSTOMIZE = """
import sys

class Hiding:
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name in {blocked!r} or name.startswith(tuple(each + "." for each in {blocked!r})):
            return None
        return self.finder.find_spec(name, path, target)

def watch(event, args):
    address = args[0] if event == "socket.getaddrinfo" else args[1][0] if event == "socket.connect" else None
    if isinstance(address, str) and address not in {local!r}:
        with open({log!r}, "a") as log:
            log.write(address + "\\n")

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
sys.addaudithook(watch)
"""


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A models folder outside ComfyUI, and the extra_model_paths.yaml that names it."""
    folder = tmp_path_factory.mktemp("outside")
    save_folder(folder / "janus" / "far-folder", **parts(golden.micro()))
    save_single(folder / "janus" / "far.safetensors", **parts(golden.micro()))
    save_single(folder / "unets" / "far_unet.safetensors", **parts(golden.micro()))
    config = folder / "extra_model_paths.yaml"
    config.write_text(
        json.dumps({"elsewhere": {"base_path": str(folder), "janusflow": "janus", "diffusion_models": "unets"}})
    )  # JSON is YAML
    return config


@pytest.fixture(scope="module")
def addresses(tmp_path_factory):
    """Where the isolated server writes down whom it called, beside its sitecustomize.py."""
    log = tmp_path_factory.mktemp("site") / "addresses"
    log.touch()
    (log.parent / "sitecustomize.py").write_text(SITECUSTOMIZE.format(blocked=BLOCKED, local=LOCAL, log=str(log)))
    return log


@pytest.fixture(scope="module")
def environment(addresses):
    """The server's environment: a proxy that refuses everything, and nothing that tells libraries to stay offline."""
    proxies = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    return {
        **proxies,
        "PYTHONPATH": str(addresses.parent),
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def isolated(environment, outside):
    """A server with a copy of the pack and none of the libraries that only the command line and the tests need."""
    server = Server(
        find_comfyui(),
        pack=CHECKOUT,
        pack_name="ComfyUI-JanusFlow",
        link=False,
        env=environment,
        extra_args=["--extra-model-paths-config", str(outside)],
    )
    with server:
        graphs.stock(server.base / "models")
        yield server


def python(environment, code):
    """What a Python in the server's environment prints."""
    command, env = [sys.executable, "-c", code], {**os.environ, **environment}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_walls_hold(environment, addresses):
    """Without this the tests below would pass in any environment."""
    code = """
import importlib, socket
for name in {names!r}:
    try:
        importlib.import_module(name)
        print(name)
    except ModuleNotFoundError:
        pass
try:
    socket.create_connection(("192.0.2.1", 80), timeout=0.1)
except OSError:
    pass
"""
    assert python(environment, code.format(names=(*BLOCKED, "transformers", "torch"))) == ["transformers", "torch"]
    assert set(addresses.read_text().split()) == {"192.0.2.1"}
    addresses.write_text("")


def test_the_copy_is_loaded_without_a_complaint(isolated):
    copied = isolated.base / "custom_nodes" / "ComfyUI-JanusFlow"
    assert copied.is_dir() and not copied.is_symlink() and not (copied / "tests").exists()
    log = isolated.log()
    assert "ComfyUI-JanusFlow" in log and "IMPORT FAILED" not in log
    complaints = [
        line
        for line in log.splitlines()
        if "anus" in line
        and any(word in line for word in ("Error", "ERROR", "WARNING", "Warning", "Traceback", "Cannot import", "Skip"))
    ]
    assert not complaints


def test_words_become_a_picture_and_words_again(isolated):
    graph = Graph()
    loaded = graph.load(TINY, vae="from checkpoint")
    sampled = graph.flow(loaded, graph.encode(loaded))
    image = graph.add("VAEDecode", samples=sampled, vae=loaded[2])
    described = graph.describe(loaded[1], image)
    native = graph.generate_text(loaded[1], "Describe the image.", image=image)
    graph.add("SaveImage", images=image, filename_prefix="isolated")
    texts = graph.texts(isolated, described, native)
    assert texts[0] == texts[1] and len(texts[0]) == 1
    picture = graphs.read_picture(isolated.base / "output" / "isolated_00001_.png")
    expected = tiny().generate(graphs.PROMPT, steps=4, guidance=2.0, seed=7, output="pixels", solver="euler")[0]
    assert (picture - expected).abs().max() <= 1.01 / 255


def test_models_elsewhere_are_listed_and_loaded(isolated):
    inputs = isolated.object_info("JanusFlowLoader")["JanusFlowLoader"]["input"]["required"]
    options = inputs["checkpoint"][1]["options"]
    names = ["far-folder", "far.safetensors", "far_unet.safetensors", GOLDEN_FOLDER, GOLDEN_FILE, TINY]
    assert set(names) <= set(options) and len(options) == len(set(options))
    graph = Graph()
    loaded = [graph.load(name) for name in names[:3]]
    expected = golden.micro().generate(graphs.PROMPT, steps=4, seed=7, guidance=2.0, output="latent")
    for found in graph.latents(isolated, *(graph.flow(one, graph.encode(one)) for one in loaded)):
        assert relative(found, expected) <= 1e-4


def test_nobody_was_called(isolated, addresses):
    for name in (TINY, GOLDEN_FOLDER):
        graph = Graph()
        loaded = graph.load(name)
        image = graph.add("EmptyImage", width=32, height=32, batch_size=1, color=0)
        graph.show(graph.describe(loaded[1], image, tokens=2))
        graph.latents(isolated, graph.flow(loaded, graph.encode(loaded), seed=31, width=32, height=32))
    assert addresses.read_text() == ""
