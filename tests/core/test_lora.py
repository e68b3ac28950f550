"""LoRA files: the same change by PEFT, by ComfyUI's names and by hand, and what is refused."""

import json
import shutil

import golden
import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from janusflow_core.adapters import Adapter
from janusflow_core.checkpoint import open_checkpoint
from janusflow_core.lora import LoraStack, base_hash, read_lora, save_lora, save_peft
from janusflow_core.model import Prefix

KINDS = {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}
# Linear and convolution, of both halves and of the head.
LAYERS = ["q_proj", "down_proj", "vision_gen_enc_model.in_conv", "vision_gen_dec_aligner", "unpatch_conv", "lm_head"]
UP_PROJ = "language_model.model.layers.0.mlp.up_proj"


@torch.no_grad()
def outputs(model):
    """A velocity, and logits of a conversation with a picture."""
    generator = torch.Generator().manual_seed(3)
    prefix = Prefix.join([torch.randn(5, model.config.language.hidden_size, generator=generator)], [5])
    z, size = torch.randn(1, 4, 4, 4, generator=generator), model.config.vision.image_size
    seen = model.embed_features(model.image_features(torch.randn(1, 3, size, size, generator=generator)))
    positions = torch.arange(seen.shape[1])[None]
    mask = torch.ones(1, 1, seen.shape[1], seen.shape[1], dtype=torch.bool).tril()
    hidden = model.language_model.model(seen, positions, mask, None)
    return model.velocity(z, torch.tensor([0.4]), prefix), model.logits(hidden)


def assert_same(model, expected, tolerance=1e-5):
    for found, other in zip(outputs(model), expected, strict=True):
        golden.assert_close(found, other, tolerance)


def micro():
    return golden.micro_pipeline().model


def weights(model):
    return dict(model.named_parameters())


def by_peft(folder, **options):
    """PEFT's own model with a random adapter of chosen layers, which it has also written to `folder`."""
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=LAYERS, **options)
    torch.manual_seed(0)
    model = peft.get_peft_model(micro(), config)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.2)
        elif "magnitude" in name:
            weight.data.mul_(1.0 + 0.3 * torch.rand_like(weight))
    model.save_pretrained(str(folder))
    return model.base_model.model


def stacked(*loras):
    """A plain model with LoRAs of these paths and strengths upon it."""
    model = micro()
    stack = LoraStack(model)
    for path, strength in loras:
        stack.add(path, strength)
    return model


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    """A LoRA of a single layer."""
    path = tmp_path_factory.mktemp("lora") / "one.safetensors"
    torch.manual_seed(0)
    shape = weights(golden.micro().model)[f"{UP_PROJ}.weight"].shape
    save_lora(path, {f"{UP_PROJ}.weight": Adapter(torch.randn(2, shape[1]), torch.randn(shape[0], 2), 0.5)}, {})
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_peft_folder_a_comfyui_file_and_peft_itself_are_the_same_model(kind, tmp_path):
    theirs, plain = outputs(by_peft(tmp_path / "peft", **KINDS[kind])), outputs(micro())
    assert all(golden.relative(a, b) > 0.01 for a, b in zip(theirs, plain, strict=True))
    assert_same(stacked((tmp_path / "peft", 1.0)), theirs)
    changes = read_lora(tmp_path / "peft", weights(micro()))
    save_lora(tmp_path / "comfy.safetensors", changes, {"rank": "4"})
    assert_same(stacked((tmp_path / "comfy.safetensors", 1.0)), theirs)
    again = read_lora(tmp_path / "comfy.safetensors", weights(micro()))
    save_peft(tmp_path / "again", again, weights(micro()))
    assert_same(peft.PeftModel.from_pretrained(micro(), str(tmp_path / "again")).base_model.model, theirs)


def test_ranks_and_alphas_of_their_own_are_read(tmp_path):
    patterns = {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"q_proj": 3, "mlp.down_proj": 1}}
    theirs = outputs(by_peft(tmp_path / "peft", **patterns))
    changes = read_lora(tmp_path / "peft", weights(micro()))
    assert {change.rank for change in changes.values()} == {2, 4}
    assert_same(stacked((tmp_path / "peft", 1.0)), theirs)
    save_peft(tmp_path / "again", changes, weights(micro()))
    assert_same(stacked((tmp_path / "again", 1.0)), theirs)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_mixes_the_plain_and_the_changed_weights(kind, tmp_path):
    by_peft(tmp_path / "peft", **KINDS[kind])
    plain, whole, half, none, against = (
        weights(model)
        for model in (micro(), *(stacked((tmp_path / "peft", strength)) for strength in (1.0, 0.5, 0.0, -1.0)))
    )
    for name, weight in plain.items():
        assert torch.equal(none[name], weight)
        assert torch.allclose(half[name], (weight + whole[name]) / 2, atol=1e-6), name
        assert torch.allclose(against[name], 2 * weight - whole[name], atol=1e-6), name


@given(strengths=st.lists(st.floats(-2, 2), min_size=1, max_size=4))
def test_loras_add_up_and_come_off_without_a_trace(one_layer, strengths):
    model, plain = golden.micro().model, weights(golden.micro().model)
    before = {name: weight.clone() for name, weight in plain.items()}
    stack = LoraStack(model)
    for strength in strengths:
        stack.add(one_layer, strength)
    changes = read_lora(one_layer, before)
    for name, change in changes.items():
        expected = before[name] + sum(strengths) * change.delta(before[name])
        assert torch.allclose(plain[name], expected, atol=1e-5), name
    stack.clear()
    assert all(torch.equal(weight, before[name]) for name, weight in plain.items())


def test_two_in_half_precision_are_rounded_once(tmp_path):
    by_peft(tmp_path / "peft")
    model = micro().to(torch.bfloat16)
    plain = weights(micro().to(torch.bfloat16))
    stack = LoraStack(model)
    stack.add(tmp_path / "peft", 0.3)
    stack.add(tmp_path / "peft", -0.3)
    assert all(torch.equal(weight, plain[name]) for name, weight in weights(model).items())


@pytest.mark.parametrize("prefix", ["diffusion_model.", "", "lora_unet_", "base_model.model."])
def test_files_of_other_trainers_are_read(prefix, tmp_path):
    """Kohya's underscores, no alpha, flat convolutions, and the differences of norms and biases."""
    model, conv = micro(), "vision_gen_enc_model.in_conv"
    plain = weights(model)
    linear, kernel = plain[f"{UP_PROJ}.weight"], plain[f"{conv}.weight"]
    down, up = torch.randn(3, linear.shape[1]), torch.randn(linear.shape[0], 3)
    flat, wide = torch.randn(2, kernel[0].numel()), torch.randn(len(kernel), 2)
    norm, bias = torch.randn_like(plain["language_model.model.norm.weight"]), torch.randn(len(kernel))

    def key(layer):
        return prefix + (layer.replace(".", "_") if prefix == "lora_unet_" else layer)

    tensors = {
        f"{key(UP_PROJ)}.lora_down.weight": down,
        f"{key(UP_PROJ)}.lora_up.weight": up,
        f"{key(conv)}.lora_down.weight": flat,
        f"{key(conv)}.lora_up.weight": wide,
        f"{key(conv)}.alpha": torch.tensor(1.0),
        f"{key(conv)}.diff_b": bias,
        f"{key('language_model.model.norm')}.diff": norm,
    }
    save_file(tensors, tmp_path / "other.safetensors")
    expected = {
        f"{UP_PROJ}.weight": linear + up @ down,
        f"{conv}.weight": kernel + 0.5 * (wide @ flat).view_as(kernel),
        f"{conv}.bias": plain[f"{conv}.bias"] + bias,
        "language_model.model.norm.weight": plain["language_model.model.norm.weight"] + norm,
    }
    changed = weights(stacked((tmp_path / "other.safetensors", 1.0)))
    for name, weight in plain.items():
        assert torch.allclose(changed[name], expected.get(name, weight), atol=1e-5), name
    with pytest.raises(ValueError, match="no form for that"):
        save_peft(tmp_path / "peft", read_lora(tmp_path / "other.safetensors", plain), plain)
    assert not (tmp_path / "peft").exists()


def test_pictures_and_words_change_and_come_back(tmp_path):
    pipe = golden.micro_pipeline()
    by_peft(tmp_path / "peft")
    draw = {"steps": 2, "output": "latent"}
    plain = pipe.generate("a heart", **draw)
    pipe.load_lora(tmp_path / "peft", 0.7)
    changed = pipe.generate("a heart", **draw)
    assert golden.relative(changed, plain) > 1e-3
    pipe.unload_loras()
    assert torch.equal(pipe.generate("a heart", **draw), plain)


def test_the_hash_is_of_names_shapes_and_values(tmp_path):
    pipe = golden.micro_pipeline()
    first, again = (golden.write_folder(tmp_path / name, pipe) for name in ("one", "two"))
    pipe.model.get_parameter("language_model.model.norm.weight")[0] += 1e-3
    other = golden.write_folder(tmp_path / "three", pipe)
    names = weights(pipe.model)
    one, two, three = (base_hash(open_checkpoint(folder).weights, names) for folder in (first, again, other))
    assert one == two != three and len(one) == 64


# --- what is refused --------------------------------------------------------------------------------------------


def drop_half(tensors):
    del tensors[next(key for key in tensors if key.endswith("lora_down.weight"))]


def add_foreign(tensors):
    tensors["model.diffusion_model.input_blocks.0.weight"] = torch.zeros(1)


def rename(tensors):
    for key in [key for key in tensors if ".layers.0." in key]:
        tensors[key.replace(".layers.0.", ".layers.99.")] = tensors.pop(key)


def widen(tensors):
    tensors[next(key for key in tensors if key.endswith("lora_down.weight"))] = torch.zeros(4, 7)


def flatten(tensors):
    tensors[next(key for key in tensors if key.endswith("lora_up.weight"))] = torch.zeros(7)


def spoil(tensors):
    tensors[next(key for key in tensors if key.endswith("lora_up.weight"))][0, 0] = torch.nan


def empty(tensors):
    tensors.clear()


def no_rank(tensors):
    for end in ("lora_up.weight", "lora_down.weight"):
        key = next(key for key in sorted(tensors) if key.endswith(end))
        tensors[key] = tensors[key][:0]


def two_alphas(tensors):
    tensors[next(key for key in tensors if key.endswith("alpha"))] = torch.ones(2)


def whole_numbers(tensors):
    tensors[next(key for key in tensors if key.endswith("lora_up.weight"))] = torch.ones(3, 4, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop_half, "half"),
        (add_foreign, "no LoRA has"),
        (rename, "another model"),
        (widen, "another size"),
        (flatten, "another size"),
        (spoil, "no finite numbers"),
        (empty, "is empty"),
        (no_rank, "empty LoRA"),
        (two_alphas, "2 values for the alpha"),
        (whole_numbers, "no finite numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_changed(change, words, tmp_path):
    by_peft(tmp_path / "peft")
    file = tmp_path / "bad.safetensors"
    save_lora(file, read_lora(tmp_path / "peft", weights(micro())), {})
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    model = micro()
    before = {name: weight.clone() for name, weight in weights(model).items()}
    with pytest.raises(ValueError, match=words) as error:
        LoraStack(model).add(file)
    assert "bad.safetensors" in str(error.value) and str(tmp_path) not in str(error.value)
    assert all(torch.equal(weight, before[name]) for name, weight in weights(model).items())


def test_a_folder_without_its_parts_is_refused(tmp_path):
    by_peft(tmp_path / "peft", use_dora=True)
    with pytest.raises(FileNotFoundError, match="check the path"):
        read_lora(tmp_path / "nowhere", {})
    for missing in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copytree(tmp_path / "peft", tmp_path / missing / "peft")
        (tmp_path / missing / "peft" / missing).unlink()
        with pytest.raises(FileNotFoundError, match=missing):
            read_lora(tmp_path / missing / "peft", weights(micro()))
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text("utf-8"))
    wrong = [({"r": 0}, "greater than 0"), ({"peft_type": "LOHA"}, "LORA"), ({"lora_alpha": "x"}, "number")]
    for values, words in wrong:
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config | values), "utf-8")
        with pytest.raises(ValueError, match=words):
            read_lora(tmp_path / "peft", weights(micro()))


def test_a_lora_is_written_whole_or_not_at_all(tmp_path):
    by_peft(tmp_path / "peft")
    changes = read_lora(tmp_path / "peft", weights(micro()))
    with pytest.raises(FileExistsError, match="exists already"):
        save_peft(tmp_path / "peft", changes, weights(micro()))
    (tmp_path / "taken").touch()
    with pytest.raises(OSError):
        save_lora(tmp_path / "taken" / "lora.safetensors", changes, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["peft", "taken"]
