"""Checkpoints that are broken, absurd or made to break us: one sentence each, in little time and memory."""

import json
import math
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from golden import micro, write_folder
from hardness import assert_sentence, bounded
from safetensors.torch import load_file, save_file
from torch import Tensor

from janusflow_core.checkpoint import load_model, open_checkpoint

Attack = Callable[[Path], None]  # what is done to a good folder
NORM, WEIGHTS, INDEX = "language_model.model.norm.weight", "model.safetensors", "model.safetensors.index.json"
LANGUAGE, VISION, ENCODER = "language_config", "vision_und_enc_config", "vision_gen_enc_config"
DEEP = '{"a":' * 50_000 + "1" + "}" * 50_000
HALF = "\ud800"  # of a surrogate pair: JSON may escape it, UTF-8 cannot hold it


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("good") / "micro", micro())


def values(name: str, **changed: Any) -> Attack:
    """Other values in a JSON file."""

    def attack(folder: Path) -> None:
        path = folder / name
        before = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**before, **changed}), encoding="utf-8")

    return attack


def config(section: str, **changed: Any) -> Attack:
    """Other values in a part of config.json."""

    def attack(folder: Path) -> None:
        whole = json.loads((folder / "config.json").read_text("utf-8"))
        part = whole[section].get("params", whole[section])
        part.update(changed)
        (folder / "config.json").write_text(json.dumps(whole), encoding="utf-8")

    return attack


def content(name: str, data: bytes) -> Attack:
    """Other bytes."""
    return lambda folder: (folder / name).write_bytes(data) and None


def header(text: str | dict, data: bytes = b"", length: int | None = None) -> Attack:
    """A safetensors file of this header, which says that it is so long."""
    written = (text if isinstance(text, str) else json.dumps(text)).encode()
    return content(WEIGHTS, struct.pack("<Q", len(written) if length is None else length) + written + data)


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def weights(**changed: Tensor) -> Attack:
    """Other tensors."""
    return lambda folder: save_file({**load_file(folder / WEIGHTS), **changed}, folder / WEIGHTS)


def pickled(change: Callable[[dict[str, Tensor]], Any]) -> Attack:
    """Something else in a pytorch_model.bin instead of the weights."""

    def attack(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        torch.save(change(tensors), folder / "pytorch_model.bin")

    return attack


CONFIG: dict[str, tuple[str, dict[str, Any], str]] = {
    "channels are no list": (ENCODER, {"block_out_channels": 8}, "found 8 and [8]"),
    "channels of channels": (ENCODER, {"block_out_channels": [[8]]}, "block_out_channels"),
    "a list as a name": (VISION, {"model_name": []}, "model_name [] is unknown"),
    "an object as a name": (VISION, {"model_name": {}, "width": None}, "model_name {} is unknown"),
    "wide as a galaxy": (LANGUAGE, {"hidden_size": 10**19}, "hidden_size 10000000000000000000"),
    "heads as many": (LANGUAGE, {"num_attention_heads": 10**19}, "multiple of 10000000000000000000 heads"),
    "infinite": (VISION, {"mlp_ratio": math.inf}, "mlp_ratio"),
    "no number": (VISION, {"mlp_ratio": math.nan}, "mlp_ratio"),
    "beyond any memory": (VISION, {"mlp_ratio": 1e308}, "mlp_ratio 1e+308"),
    "nothing in between": (VISION, {"mlp_ratio": 1e-9}, "expected [0, 16]"),
    "a picture of a parsec": (VISION, {"image_size": 16 * 10**18}, "the vision encoder gives 1000"),
    "one patch of it": (VISION, {"image_size": 10**19, "patch_size": 10**19}, "the vision encoder gives 1"),
    "no layer is left": (VISION, {"select_layer": -(10**9)}, "leaves none"),
    "no heads": (LANGUAGE, {"num_attention_heads": 0}, "num_attention_heads"),
    "a text as a number": (LANGUAGE, {"num_attention_heads": "4"}, "valid integer"),
    "a truth as a number": (LANGUAGE, {"num_hidden_layers": True}, "valid integer"),
    "no angle": (LANGUAGE, {"rope_theta": math.nan}, "rope_theta"),
    "an endless wave": (LANGUAGE, {"rope_theta": math.inf}, "rope_theta"),
    "a wave too short": (LANGUAGE, {"rope_theta": 1e-320}, "rope_theta"),
    "a norm of nothing": (ENCODER, {"norm_eps": math.inf}, "norm_eps"),
    "less than no layer": (ENCODER, {"layers_in_middle": -1}, "encoder_layers"),
    "layers are a list": (ENCODER, {"layers_in_middle": [2, 2]}, "encoder_layers"),
    "latents without end": (ENCODER, {"input_channels": 10**19}, "latent_channels 10000000000000000000"),
}
TOKENS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a number of tokens": ("special_tokens_map.json", {"additional_special_tokens": 5}, "is 5, expected a list"),
    "a text of tokens": ("special_tokens_map.json", {"additional_special_tokens": "abc"}, "is 'abc', expected a list"),
    "tokens by name": ("special_tokens_map.json", {"additional_special_tokens": {"a": 1}}, "expected a list"),
    "half a token": ("special_tokens_map.json", {"additional_special_tokens": [HALF]}, "expected a token's text"),
    "no beginning": ("special_tokens_map.json", {"bos_token": 5}, "bos_token"),
    "no end": ("special_tokens_map.json", {"eos_token": {"content": 3}}, "eos_token"),
    "no tag": ("processor_config.json", {"image_tag": ""}, "expected at least 1 character"),
    "half a tag": ("processor_config.json", {"image_tag": HALF}, "image_tag"),
    "one tag for all": ("processor_config.json", {"image_tag": "x", "image_end_tag": "x"}, "four different tags"),
    "a picture of all tokens": ("processor_config.json", {"num_image_tokens": 10**12}, "1000000000000 image"),
    "a square for giants": ("preprocessor_config.json", {"image_size": 10**12}, "1000000000000 pixels"),
    "two colors": ("preprocessor_config.json", {"image_mean": [1, 2]}, "image_mean"),
    "no spread": ("preprocessor_config.json", {"image_std": [0, 0, 0]}, "image_std"),
    "next to no spread": ("preprocessor_config.json", {"image_std": [1e-320] * 3}, "image_std"),
    "blinding": ("preprocessor_config.json", {"rescale_factor": 1e300}, "rescale_factor"),
    "steps that are none": ("drawing_config.json", {"steps": math.nan}, "steps"),
    "a guide without limit": ("drawing_config.json", {"guidance": math.inf}, "guidance"),
    "no preview": ("drawing_config.json", {"preview": {}}, "lacks preview.hidden"),
    "no index": (INDEX, {"a": 5}, "expected a weight_map"),
    "an index of one": (INDEX, {"weight_map": 5}, "expected a weight_map"),
    "a number as a file": (INDEX, {"weight_map": {"a": 5}}, "expected a weight_map"),
    "a file without a name": (INDEX, {"weight_map": {"a": ""}}, "expected a weight_map"),
    "a name without end": (INDEX, {"weight_map": {"a": "x" * 5000}}, "expected a weight_map"),
    "files elsewhere": (INDEX, {"weight_map": {"a": "../../../../etc/passwd"}}, "lacks passwd"),
    "files at the root": (INDEX, {"weight_map": {"a": "/etc/passwd"}}, "lacks passwd"),
    "the folder above": (INDEX, {"weight_map": {"a": ".."}}, "lacks .."),
    "a name with a zero": (INDEX, {"weight_map": {"a": "a\0b"}}, "lacks a\\x00b"),
    "an index of itself": (INDEX, {"weight_map": {"a": INDEX}}, "is no weight file"),
}
JSON_FILES = ("config.json", "tokenizer.json", "processor_config.json", "special_tokens_map.json", INDEX)
BYTES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", ""),
    "null": (b"null", ""),
    "deeper than any stack": (DEEP.encode(), ""),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8"),
    "Latin-1": (b'{"a": "\xe9"}', "is not UTF-8"),
    "zeros": (bytes(100), ""),
    "a number of 5000 digits": (b'{"image_size": ' + b"9" * 5000 + b"}", ""),
}
HEADERS: dict[str, Attack] = {
    "nothing": content(WEIGHTS, b""),
    "seven bytes": content(WEIGHTS, b"1234567"),
    "2**63 bytes of header": header({}, length=2**63),
    "2**64 - 1 bytes of header": header({}, length=2**64 - 1),
    "more header than file": header({}, length=10**8),
    "garbage": header("garbage!"),
    "deeper than any stack": header(DEEP),
    "tensors upon each other": header({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(8)),
    "beyond the end": header({"a": entry([4], 0, 16)}, bytes(8)),
    "before the beginning": header({"a": entry([1], -4, 0)}, bytes(8)),
    "2**80 numbers": header({"a": entry([2**40, 2**40], 0, 4)}, bytes(4)),
    "numbers of no kind": header({"a": entry([1], 0, 4, "F33")}, bytes(4)),
    "a hole": header({"a": entry([1], 4, 8)}, bytes(8)),
    "numbers among the texts": header({"__metadata__": {"a": 5}}),
}
OTHERS: dict[str, tuple[Attack, str]] = {
    "no tensor at all": (header({}), "more than its weights can be"),
    "200,000 of them": (header({f"k{i}": entry([0], 0, 0) for i in range(200_000)}), ""),
    "a name of a million letters": (weights(**{"k" * 10**6: torch.zeros(0)}), "kkk is not part of JanusFlow"),
    "a name that moves the cursor": (weights(**{"a\n\x1b[2Jb": torch.zeros(0)}), "a\\n\\x1b[2Jb is not part"),
    "NaN": (weights(**{NORM: torch.full((32,), math.nan)}), "NaN or infinite"),
    "infinity": (weights(**{NORM: torch.full((32,), -math.inf)}), "NaN or infinite"),
    "truths": (weights(**{NORM: torch.ones(32, dtype=torch.bool)}), "holds bool"),
    "no number in a norm": (weights(**{NORM: torch.ones(0)}), "has shape [0]"),
    "one number": (weights(**{NORM: torch.ones(())}), "has shape []"),
    "names that are numbers": (pickled(lambda found: dict(enumerate(found.values()))), "no dictionary of names"),
    "sparse": (pickled(lambda found: {**found, NORM: torch.ones(32).to_sparse()}), "plain tensors"),
    "without numbers": (pickled(lambda found: {**found, NORM: torch.ones(32, device="meta")}), "plain tensors"),
    "one number 10**10 times": (pickled(lambda found: {**found, NORM: torch.ones(1).expand(10**10)}), "[10000000000]"),
    "a list": (pickled(lambda found: [*found.values()]), "no dictionary of names"),
    "nothing pickled": (pickled(lambda found: None), "no dictionary of names"),
}  # fmt: skip
CASES: dict[str, tuple[Attack, tuple[str, ...]]] = {
    **{name: (config(section, **changed), (words,)) for name, (section, changed, words) in CONFIG.items()},
    **{name: (values(file, **changed), (words,)) for name, (file, changed, words) in TOKENS.items()},
    **{
        f"{name} in {file}": (content(file, data), (file, words))
        for file in JSON_FILES
        for name, (data, words) in BYTES.items()
        if (file, name) not in {("processor_config.json", "a number of 5000 digits")}
    },
    **{f"header: {name}": (attack, (WEIGHTS, "not a whole safetensors file")) for name, attack in HEADERS.items()},
    **{f"weights: {name}": (attack, (words,)) for name, (attack, words) in OTHERS.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_checkpoint_is_refused_in_one_sentence(good: Path, tmp_path: Path, record_property: Callable, name: str):
    attack, words = CASES[name]
    folder = Path(shutil.copytree(good, tmp_path / "bad"))
    attack(folder)
    with bounded(), pytest.raises((ValueError, FileNotFoundError)) as refused:
        load_model(open_checkpoint(folder))
    record_property("message", str(refused.value))
    assert_sentence(str(refused.value), *words)


def test_a_mark_at_the_beginning_of_a_file_is_no_mistake(good: Path, tmp_path: Path):
    """Notepad writes one."""
    folder = Path(shutil.copytree(good, tmp_path / "marked"))
    for path in folder.glob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert open_checkpoint(folder).config == open_checkpoint(good).config
