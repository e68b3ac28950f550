"""Every layout in and out, and what is said about files that are not what they should be."""

import json
import math
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import (
    MODULE,
    TRAJECTORY,
    assert_close,
    micro,
    micro_tokenizer,
    new_codec,
    pipeline,
    pool_weights,
    tensors,
    trajectory,
    write_folder,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from janusflow_core.autoencoder import Autoencoder, VAEConfig, vae_shapes
from janusflow_core.checkpoint import Checkpoint, load_model, open_checkpoint
from janusflow_core.config import JanusFlowConfig
from janusflow_core.convert import convert
from janusflow_core.layout import save_folder, save_single
from janusflow_core.pipeline import JanusFlowPipeline
from janusflow_core.weights import JSON_KEYS, is_finite, json_tensor, write_tensors

NORM = "language_model.model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "micro", micro())


@pytest.fixture
def single(folder: Path) -> Path:
    convert(folder, folder.with_name("micro.safetensors"))
    return folder.with_name("micro.safetensors")


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    """Change the tensors of a safetensors file in place, its metadata kept."""
    weights = load_file(path)
    change(weights)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(weights, path, metadata)
    return path


def rewrite_json(path: Path, **changed: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changed}), encoding="utf-8")


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    """Bit-equal weights, and the same everything else."""
    for key, weight in load_model(expected).state_dict().items():
        assert torch.equal(found.weights.read(key), weight), key
    assert found.config == expected.config and found.image == expected.image
    assert found.tokenizer.processor == expected.tokenizer.processor
    assert found.tokenizer.json == expected.tokenizer.json and found.tokenizer.special == expected.tokenizer.special
    ours, theirs = found.read_vae(), expected.read_vae()
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert ours.config == theirs.config and ours.weights.keys() == theirs.weights.keys()
        assert all(torch.equal(ours.weights[key], value) for key, value in theirs.weights.items())


# --- layouts ----------------------------------------------------------------------------------------------------


def test_recorded_model_draws_the_recorded_picture_from_disk(tmp_path: Path):
    folder = write_folder(tmp_path / "tiny", pipeline(), codec=True)
    pipe = JanusFlowPipeline.from_pretrained(folder, device="cpu", dtype=torch.float32)
    assert_close(trajectory(pipe, "n2_cfg2")[-1], tensors("t2i_n2_cfg2")["z"][-1], TRAJECTORY)
    assert_close(pipe.codec.decode(tensors("vae")["latent"]), new_codec().decode(tensors("vae")["latent"]), MODULE)


def test_folder_loads_what_was_saved(folder: Path):
    model = load_model(open_checkpoint(folder))
    assert not model.training and not any(weight.requires_grad for weight in model.parameters())
    for key, weight in micro().model.state_dict().items():
        assert torch.equal(model.state_dict()[key], weight), key


@pytest.mark.parametrize("codec", [False, True], ids=["without VAE", "with VAE"])
def test_folder_to_single_file_to_folder_is_bit_equal(tmp_path: Path, codec: bool):
    origin = open_checkpoint(write_folder(tmp_path / "micro", micro(), codec))
    single = convert(tmp_path / "micro", tmp_path / "one" / "file.safetensors")
    assert_same(single, origin)
    again = convert(tmp_path / "one" / "file.safetensors", tmp_path / "again")
    assert_same(again, origin)
    assert (origin.vae_weights is not None) == codec


def test_unused_attention_pool_is_dropped_by_name(folder: Path, single: Path):
    pool = set(pool_weights(micro().model.config))
    assert pool < set(load_file(folder / "model.safetensors"))
    assert not pool & set(load_file(single))


def test_conversion_can_change_the_precision(folder: Path, tmp_path: Path):
    convert(folder, tmp_path / "half.safetensors", dtype=torch.bfloat16)
    checkpoint = open_checkpoint(tmp_path / "half.safetensors")
    assert checkpoint.config.torch_dtype == "bfloat16"
    weights = load_model(checkpoint).state_dict()
    for key, weight in micro().model.state_dict().items():
        assert torch.equal(weights[key], weight.bfloat16()), key


def test_a_vae_can_be_put_in(folder: Path, tmp_path: Path):
    origin = open_checkpoint(write_folder(tmp_path / "whole", micro(), codec=True))
    assert_same(convert(folder, tmp_path / "with.safetensors", vae=origin.read_vae()), origin)


def test_conversion_compares_the_vae_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_folder(tmp_path / "whole", micro(), codec=True)
    spoil = "janusflow_core.convert.save_single"

    def save_badly(path: Path, weights: Any, parts: Any, tokenizer_json: str, vae: Autoencoder) -> None:
        key = "decoder.conv_in.bias"
        wrong = Autoencoder(vae.config, {**vae.weights, key: vae.weights[key] + 1})
        save_single(path, weights, parts, tokenizer_json, wrong)

    monkeypatch.setattr(spoil, save_badly)
    with pytest.raises(RuntimeError, match="decoder.conv_in.bias was not written as it was read"):
        convert(tmp_path / "whole", tmp_path / "file.safetensors")


def test_a_vae_of_other_channels_is_refused(folder: Path, tmp_path: Path):
    other = VAEConfig(block_out_channels=(8,), norm_num_groups=8, latent_channels=16)
    weights = {key: torch.zeros(shape) for key, shape in vae_shapes(other)}
    with pytest.raises(ValueError, match="the VAE has 16 latent channels, the model 4: use an SDXL VAE"):
        convert(folder, tmp_path / "file.safetensors", vae=Autoencoder(other, weights))
    assert not (tmp_path / "file.safetensors").exists()
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps(other.to_json_dict()))
    save_file(weights, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match="the VAE has 16 latent channels, the model 4: use an SDXL VAE"):
        JanusFlowPipeline.from_pretrained(folder, vae=tmp_path / "vae", device="cpu")


def test_shards_load_as_one(folder: Path):
    weights = load_file(folder / "model.safetensors")
    names = {key: f"model-0000{1 + k % 3}-of-00003.safetensors" for k, key in enumerate(weights)}
    for name in set(names.values()):
        save_file({key: weights[key] for key in weights if names[key] == name}, folder / name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    found = load_model(open_checkpoint(folder)).state_dict()
    assert all(torch.equal(found[key], weight) for key, weight in micro().model.state_dict().items())
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="micro lacks model-00002-of-00003.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "save",
    [
        torch.save,
        lambda state, path: torch.save({"state_dict": state}, path),
        lambda state, path: torch.save(state, path, _use_new_zipfile_serialization=False),
    ],
    ids=["plain", "nested", "older than zip"],
)
def test_bin_loads(folder: Path, save: Callable):
    save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = load_model(open_checkpoint(folder)).state_dict()
    assert all(torch.equal(found[key], weight) for key, weight in micro().model.state_dict().items())


def test_json_among_the_tensors_is_read(single: Path):
    """As ComfyUI saves a checkpoint: it writes its own metadata."""
    with safe_open(single, "pt") as file:
        parts = {key: json_tensor(value) for key, value in file.metadata().items() if key in JSON_KEYS}
    save_file({**load_file(single), **parts}, single, {"prompt": "{}"})
    expected = open_checkpoint(write_folder(single.with_name("plain"), micro()))
    assert_same(open_checkpoint(single), expected)


def test_flow_half_opens_but_is_no_pipeline(single: Path):
    rewrite(
        single,
        lambda weights: [
            weights.pop(key)
            for key in list(weights)
            if key.startswith(
                ("beg_of_und", "vision_und", "language_model.lm_head", "language_model.model.embed", "tokenizer")
            )
        ],
    )
    checkpoint = open_checkpoint(single)
    assert checkpoint.has_flow and not checkpoint.has_text and checkpoint.tokenizer is None
    with pytest.raises(ValueError, match="micro holds half of a JanusFlow only"):
        JanusFlowPipeline.from_pretrained(single)
    with pytest.raises(ValueError, match="micro holds only the flow half"):
        convert(single, single.with_name("new"))


def test_loaded_weights_take_the_precision_asked_for(folder: Path):
    checkpoint = open_checkpoint(folder)
    for dtype in (torch.bfloat16, torch.float32, None):
        weights = load_model(checkpoint, dtype).state_dict().values()
        assert {weight.dtype for weight in weights} == {dtype or torch.float32}


# --- what is refused --------------------------------------------------------------------------------------------


def drop(key: str) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights.pop(key)


def put(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights.update({key: value})


def poison(value: float) -> Callable[[dict[str, Tensor]], Any]:
    return lambda weights: weights[NORM].__setitem__(5, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put(NORM, torch.ones(33)), ["model.safetensors", NORM, "[33]", "expected [32]"]),
        (drop(NORM), ["micro", NORM, "missing", "expected shape [32]"]),
        (put("unet.weight", torch.ones(3)), ["model.safetensors", "unet.weight", "not part of JanusFlow"]),
        (poison(float("nan")), ["model.safetensors", NORM, "NaN"]),
        (poison(float("inf")), ["model.safetensors", NORM, "infinite"]),
        (put(NORM, torch.ones(32, dtype=torch.int8)), ["model.safetensors", NORM, "int8", "expected floating point"]),
        (put(NORM, torch.ones(32, dtype=torch.bool)), ["model.safetensors", NORM, "bool", "expected floating point"]),
        (put(NORM, torch.ones(32, dtype=torch.complex64)), ["model.safetensors", NORM, "complex64", "floating point"]),
    ],
    ids=["wrong shape", "missing key", "extra key", "NaN", "infinity", "int8", "bool", "complex"],
)
def test_wrong_weights_are_named_in_one_sentence(folder: Path, change: Callable, words: list[str]):
    rewrite(folder / "model.safetensors", change)
    for attempt in (lambda: load_model(open_checkpoint(folder)), lambda: convert(folder, folder.with_name("new"))):
        with pytest.raises(ValueError) as error:
            attempt()
        assert all(word in str(error.value) for word in words), error.value
        assert "\n" not in str(error.value)
    assert not folder.with_name("new").exists()


@pytest.mark.parametrize("kept", [0, 4, 1000, 0.5, 0.999], ids=str)
def test_a_file_cut_short_is_named(folder: Path, kept: float):
    file = folder / "model.safetensors"
    size = int(kept if kept > 1 else kept * file.stat().st_size)
    os.truncate(file, size)
    with pytest.raises(ValueError, match=rf"model.safetensors is not a whole safetensors file \({size:,} bytes.*again"):
        load_model(open_checkpoint(folder))


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    "save",
    [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, protocol=2))],
    ids=["zip", "plain pickle"],
)
def test_a_pickle_that_runs_code_is_refused(folder: Path, tmp_path: Path, save: Callable):
    (folder / "model.safetensors").unlink()
    save({NORM: Bomb(tmp_path / "it ran")}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"\Apytorch_model.bin cannot be read safely.*: convert it to .safetensors"):
        open_checkpoint(folder)
    assert not (tmp_path / "it ran").exists()


def test_a_bin_cut_short_is_named(folder: Path):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    os.truncate(folder / "pytorch_model.bin", 20_000)
    with pytest.raises(ValueError, match="pytorch_model.bin cannot be read safely, because it is cut short"):
        open_checkpoint(folder)


def test_a_bin_without_tensors_is_refused(folder: Path):
    (folder / "model.safetensors").unlink()
    torch.save({"epoch": 3}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin holds no dictionary of names"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("config.json", "micro has no config.json"),
        ("tokenizer.json", "micro has no tokenizer.json"),
        ("model.safetensors", "micro holds no weights: expected model.safetensors"),
    ],
)
def test_a_missing_file_is_named(folder: Path, name: str, words: str):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=words):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "changed", "words"),
    [
        ("processor_config", {"num_image_tokens": 576}, ["576 image tokens", "gives 4"]),
        ("preprocessor_config", {"image_size": 64}, ["64 pixels", "config.json 32"]),
        ("config", {"language_config": {}}, ["micro/config.json", "hidden_size"]),
    ],
)
def test_parts_that_do_not_fit_together_are_named(folder: Path, name: str, changed: dict, words: list[str]):
    rewrite_json(folder / f"{name}.json", **changed)
    with pytest.raises(ValueError) as error:
        open_checkpoint(folder)
    assert all(word in str(error.value) for word in ["micro", *words]), error.value


SECTIONS = {
    "language": lambda data: data["language_config"],
    "vision": lambda data: data["vision_und_enc_config"]["params"],
    "encoder": lambda data: data["vision_gen_enc_config"]["params"],
    "decoder": lambda data: data["vision_gen_dec_config"]["params"],
}


@pytest.mark.parametrize(
    ("section", "changed", "words"),
    [
        ("language", {"num_hidden_layers": 10**6}, "num_hidden_layers 1000000"),
        ("vision", {"layers": 10**6}, "layers 1000000"),
        ("encoder", {"layers_in_middle": 10**6}, "encoder_layers 1000000"),
        ("decoder", {"layers_in_middle": 10**6}, "decoder_layers 1000000"),
        ("language", {"hidden_size": 2**60}, "hidden_size 1152921504606846976"),
        ("language", {"intermediate_size": 2**60}, "intermediate_size 1152921504606846976"),
        ("language", {"vocab_size": 2**60}, "vocab_size 1152921504606846976"),
        ("vision", {"width": 2**60}, "width 1152921504606846976"),
        ("vision", {"mlp_ratio": 1e300}, r"mlp_ratio 1e\+300"),
        ("vision", {"patch_size": 1, "image_size": 2**30}, "image_size 1073741824"),
    ],
)
def test_a_model_larger_than_its_file_is_refused_unbuilt(folder: Path, section: str, changed: dict, words: str):
    data = json.loads((folder / "config.json").read_text("utf-8"))
    SECTIONS[section](data).update(changed)
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    rewrite_json(folder / "processor_config.json", num_image_tokens=JanusFlowConfig.from_dict(data).vision.grid ** 2)
    rewrite_json(folder / "preprocessor_config.json", image_size=JanusFlowConfig.from_dict(data).vision.image_size)
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=rf"micro: its config.json says .*{words}, which is more than its weights can be: use the"
    ):
        load_model(open_checkpoint(folder))
    assert time.monotonic() - began < 5  # building a million layers takes minutes and all memory


def test_a_foreign_tokenizer_is_named(folder: Path):
    language = json.loads((folder / "config.json").read_text())["language_config"]
    rewrite_json(folder / "config.json", language_config={**language, "vocab_size": 900})
    with pytest.raises(
        ValueError, match=f"micro: the tokenizer.s ids go up to {micro_tokenizer().vocab_size - 1}.*only to 899"
    ):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("config.json", '{"language_config": ', "micro/config.json is not valid JSON"),
        ("config.json", "[1, 2]", "micro/config.json holds a list, expected an object"),
        ("preprocessor_config.json", "null", "micro/preprocessor_config.json holds null, expected an object"),
        ("vae/config.json", '{"act_fn": "si', "micro/vae/config.json is not valid JSON"),
        ("model.safetensors.index.json", '{"weight_map": {"a', "micro/model.safetensors.index.json is not valid JSON"),
        ("model.safetensors.index.json", "{}", "micro/model.safetensors.index.json is no index of weights"),
    ],
)
def test_broken_json_is_named(folder: Path, name: str, text: str, words: str):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        open_checkpoint(folder)


def test_broken_json_in_a_single_file_is_named(single: Path):
    save_file(load_file(single), single, {"config": '{"language_config": '})
    with pytest.raises(ValueError, match="micro.safetensors: config in its metadata is not valid JSON"):
        open_checkpoint(single)


@pytest.mark.parametrize("value", [torch.full((9,), 255, dtype=torch.uint8), torch.ones(9, dtype=torch.bfloat16)])
@pytest.mark.parametrize("key", ["tokenizer_json", "processor_config"])
def test_a_text_that_is_none_is_named(single: Path, key: str, value: Tensor):
    weights = load_file(single)
    with safe_open(single, "pt") as file:
        metadata = {name: text for name, text in file.metadata().items() if name != key}
    save_file({**weights, key: value}, single, metadata)
    with pytest.raises(ValueError, match=f"micro.safetensors: {key} is no text: make the file anew"):
        open_checkpoint(single)


FAULTS: dict[str, Callable[[Path], Any]] = {
    "no config": lambda folder: (folder / "config.json").unlink(),
    "no tokenizer": lambda folder: (folder / "tokenizer.json").unlink(),
    "broken JSON": lambda folder: (folder / "processor_config.json").write_text("{"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "nothing": lambda folder: None,
}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are Unicode")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_folder_whose_name_is_no_unicode_is_named_in_escapes(folder: Path, fault: str):
    """Such names come out of old archives; as they are, they end a server's logging and with it its worker."""
    strange = folder.rename(folder.with_name(os.fsdecode(b"caf\xe9")))
    FAULTS[fault](strange)
    with pytest.raises((ValueError, FileNotFoundError), match=r"caf\\udce9") as error:
        open_checkpoint(strange)
    str(error.value).encode()  # raises for half a surrogate pair


def test_a_shard_whose_name_is_no_unicode_is_named_in_escapes(folder: Path):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "\\ud800.safetensors"}}')
    with pytest.raises(FileNotFoundError, match=r"micro lacks \\ud800.safetensors, which model") as error:
        open_checkpoint(folder)
    str(error.value).encode()


def test_any_other_safetensors_file_is_no_janusflow(tmp_path: Path):
    save_file({"unet.weight": torch.ones(3)}, tmp_path / "sd.safetensors")
    with pytest.raises(ValueError, match="sd.safetensors is not a JanusFlow checkpoint.*config.*janusflow convert"):
        open_checkpoint(tmp_path / "sd.safetensors")


def test_a_single_file_without_tokenizer_is_named(single: Path):
    rewrite(single, drop("tokenizer_json"))
    with pytest.raises(ValueError, match="micro.safetensors holds no tokenizer: it lacks the tensor tokenizer_json"):
        open_checkpoint(single)


def test_what_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="nothing-here is neither a folder, nor a file, nor one of the bundled"):
        open_checkpoint("nothing-here")
    with pytest.raises(FileNotFoundError, match=rf"\A{tmp_path}/nothing is neither a folder"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ValueError, match="notes.txt is no weight file: expected .safetensors"):
        open_checkpoint(tmp_path / "notes.txt")


def test_a_hubs_name_says_how_to_get_it():
    with pytest.raises(FileNotFoundError, match="hf download someone/Flow.2 --local-dir Flow.2"):
        open_checkpoint("someone/Flow.2")
    for name in ("deepseek-ai/JanusFlow-1.3B", "models/JanusFlow-1.3B", "JanusFlow-1.3B"):
        with pytest.raises(FileNotFoundError, match="`janusflow download` gets JanusFlow-1.3B"):
            open_checkpoint(name)


def test_loading_and_converting_tell_how_far_they_are(folder: Path, tmp_path: Path):
    told: list[tuple[int, int]] = []

    def cancel(done: int, total: int) -> None:
        told.append((done, total))
        if done == total - 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        load_model(open_checkpoint(folder), on_progress=cancel)
    count = len(micro().model.state_dict())
    assert told == [(done, count) for done in range(1, count)]
    told.clear()
    convert(folder, tmp_path / "single.safetensors", on_progress=lambda *at: told.append(at))
    assert told == [(done, 2 * count) for done in range(1, 2 * count + 1)]


# --- nothing half-written ---------------------------------------------------------------------------------------


def test_nothing_is_overwritten(folder: Path, single: Path):
    with pytest.raises(FileExistsError, match="micro exists already"):
        convert(single, folder)


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    (tmp_path / "kept.safetensors").write_bytes(b"before")
    unsaveable = {"a": torch.ones(2), "b": object()}
    for save in (
        lambda: write_tensors(tmp_path / "kept.safetensors", unsaveable),
        lambda: save_folder(tmp_path / "folder", unsaveable, {}, "{}"),
    ):
        with pytest.raises(AttributeError):
            save()
    assert [path.name for path in tmp_path.iterdir()] == ["kept.safetensors"]
    assert (tmp_path / "kept.safetensors").read_bytes() == b"before"


def test_files_of_the_users_are_never_taken_for_our_own(folder: Path, tmp_path: Path):
    """A conversion once wrote to TARGET.partial, and deleted what was called so."""
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "diary.txt").write_text("mine")
    (tmp_path / "file.safetensors.partial").write_text("mine too")
    convert(folder, tmp_path / "new")
    convert(folder, tmp_path / "file.safetensors")
    assert (tmp_path / "new.partial" / "diary.txt").read_text() == "mine"
    assert (tmp_path / "file.safetensors.partial").read_text() == "mine too"
    assert len(list(tmp_path.iterdir())) == 5  # these two, the two new ones and the folder they came from


@pytest.mark.skipif(os.name == "nt", reason="Windows sets no limits to files")
@pytest.mark.parametrize("target", ["folder", "file.safetensors"])
def test_a_full_disk_ends_in_one_line_and_leaves_nothing(folder: Path, tmp_path: Path, target: str):
    """A limit on the size of files stands for the full disk: writing fails in the same way."""
    pytest.importorskip("tyro", reason="the command line needs tyro")
    command = [sys.executable, "-m", "janusflow_core.cli", "convert", str(folder), str(tmp_path / target)]
    limited = ["sh", "-c", 'ulimit -f 100; exec "$0" "$@"', *command]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "", done
    sentence = (
        rf"janusflow: nothing can be written to {tmp_path} \(.*too large.*\): free disk space or choose another.*\n"
    )
    assert re.fullmatch(sentence, done.stderr, re.IGNORECASE), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["micro"]


@pytest.mark.skipif(os.name == "nt", reason="modes are POSIX's")
def test_written_files_are_as_open_as_the_umask_allows(tmp_path: Path):
    (tmp_path / "plain").touch()
    write_tensors(tmp_path / "new.safetensors", {"a": torch.ones(2)})
    assert (tmp_path / "new.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_one_bad_value_anywhere_is_seen(dtype: torch.dtype):
    good = torch.linspace(-2, 2, 1000).to(dtype)
    assert is_finite(good) and is_finite(torch.empty(0, dtype=dtype))
    bad = [math.nan] if dtype == torch.float8_e4m3fn else [math.nan, math.inf, -math.inf]  # this float8 has no infinity
    for value in bad:
        spoilt = good.float()
        spoilt[777] = value
        assert not is_finite(spoilt.to(dtype))
