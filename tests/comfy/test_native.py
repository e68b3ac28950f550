"""MODEL, CLIP and VAE as ComfyUI's own machinery treats them: LoRA, hooks, partial loading, saving, cancelling."""

import copy
import math

import pytest
import torch
from graphs import PROMPT, assert_sentence, relative, scene, tiny
from inprocess import NODES, comfyui_version, draw, since
from safetensors.torch import load_file, save_file
from torch._subclasses.fake_tensor import FakeTensorMode

from janusflow_core.adapters import Adapter, row_norms
from janusflow_core.image import pixels
from janusflow_core.lora import LoraStack, save_lora
from janusflow_core.model import JanusFlow

Q_PROJ = "language_model.model.layers.0.self_attn.q_proj"
V_PROJ = "language_model.model.layers.5.self_attn.v_proj"
HEAD = "language_model.lm_head"


@pytest.fixture(autouse=True)
def as_nodes_run():
    with torch.inference_mode():
        yield


@pytest.fixture
def model(pack):
    return pack.tiny[0]


@pytest.fixture
def clip(pack):
    return pack.tiny[1]


def write(clip, text="Describe the image.", tokens=10):
    """The ids of a greedy answer about a picture."""
    image = pixels(scene(("red", "circle", 30, 40))).movedim(0, -1)[None]
    return clip.generate(clip.tokenize(text, image=image), do_sample=False, max_length=tokens)


def first_word(clip):
    """The logits (1, V) of the first token that `write` chooses: they move where a confident answer does not."""
    head, seen = clip.cond_stage_model.language_model.lm_head, []
    hook = head.register_forward_hook(lambda *call: seen.append(call[-1].clone()))
    try:
        write(clip, tokens=1)
    finally:
        hook.remove()
    return seen[0]


def state(patcher):
    return {key: value.clone() for key, value in patcher.model.state_dict().items()}


# --- owners -----------------------------------------------------------------------------------------------------


def test_every_weight_has_one_owner(model, clip):
    flow, text = model.model.diffusion_model, clip.cond_stage_model
    assert {id(part) for part in flow.modules()}.isdisjoint(id(part) for part in text.modules())
    storages = [{value.untyped_storage().data_ptr() for value in half.state_dict().values()} for half in (flow, text)]
    assert storages[0].isdisjoint(storages[1])
    names = [*flow.state_dict(), *(name for name in text.state_dict())]
    assert sorted(names) == sorted(JanusFlow(tiny().model.config, device="meta").state_dict())
    assert clip.flow_patcher.model is model.model and clip.get_models() == [clip.flow_patcher]


def test_every_weight_is_the_checkpoint_s(pack, model, clip):
    pack.module("nodes.native.compat").model_management.unload_all_models()  # a LoRA may lie on them
    loaded = {**model.model.diffusion_model.state_dict(), **clip.cond_stage_model.state_dict()}
    for key, value in tiny().model.state_dict().items():
        assert torch.equal(loaded[key].float(), value), key


def test_a_checkpoint_is_opened_once(pack, monkeypatch):
    reader, opened = pack.module("janusflow_core.checkpoint"), []
    whole = reader._open_single
    monkeypatch.setattr(reader, "_open_single", lambda path: opened.append(path) or whole(path))
    pack.node("load")("janusflow-tiny")
    assert [path.stem for path in opened] == ["janusflow-tiny"]


def test_pictures_of_a_batch_enter_the_vision_encoder_together(pack, clip):
    pictures = torch.stack([pixels(scene((name, "circle", 30, 40))) for name in ("red", "blue", "green")])
    encoder, batches = clip.cond_stage_model.vision_und_enc_model, []
    hook = encoder.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    try:
        pack.node("describe")(clip, pictures.movedim(1, -1), "What color is the circle?", 4, {"mode": "greedy"})
    finally:
        hook.remove()
    assert batches == [3]


@pytest.mark.parametrize("half", ["model", "clip"])
def test_a_fresh_copy_is_loaded_when_comfyui_asks_for_one(pack, model, clip, half):
    since("0.27.0", "ModelPatcher.clone(force_deepcopy=True)")
    pictured, written = draw(pack, model, clip), write(clip)
    patcher = model if half == "model" else clip.patcher
    assert patcher.cached_patcher_init is not None
    fresh = patcher.clone(force_deepcopy=True)
    assert fresh.model is not patcher.model
    load, arguments = patcher.cached_patcher_init
    assert not load(*arguments, disable_dynamic=True).is_dynamic()
    for key, value in state(patcher).items():
        assert torch.equal(fresh.model.state_dict()[key], value), key
    if half == "model":
        assert torch.equal(draw(pack, fresh, clip), pictured)
    else:
        other = type(clip)(fresh.model, fresh, clip.flow_patcher)
        assert torch.equal(draw(pack, model, other), pictured) and write(other) == written


def test_clones_without_dynamic_memory_work(pack, model, clip):
    copies = model.clone(disable_dynamic=True), clip.clone(disable_dynamic=True)
    assert torch.equal(draw(pack, *copies), draw(pack, model, clip)) and write(copies[1]) == write(clip)


def test_a_dynamic_server_gets_the_same_weights(pack, model, clip, monkeypatch):
    """Dynamic VRAM builds layers without weights and takes the file's own tensors; its patcher itself needs a GPU."""
    if comfyui_version().startswith("0.24."):
        pytest.skip(f"ComfyUI {comfyui_version()} pins memory of every dynamic model at each load: that needs a GPU")
    import comfy.memory_management
    import comfy.model_patcher

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.force_cast_weights = True

        def is_dynamic(self):
            return True

    pictured, written = draw(pack, model, clip), write(clip)
    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)
    monkeypatch.setattr(comfy.memory_management, "aimdo_enabled", True)
    other, text, _ = pack.node("load")("janusflow-tiny", "none", "fp32")
    monkeypatch.undo()
    for patcher in (other, text.patcher):
        for name, part in patcher.model.named_modules():
            assert getattr(part, "weight", 0) is not None, name
        assert not [name for name, value in patcher.model.state_dict().items() if value.is_meta]
    kept = other.model.diffusion_model.get_submodule(Q_PROJ).weight.dtype
    assert kept == torch.bfloat16  # the file's own, though float32 was asked for: the patcher casts at use
    assert sorted(other.model.state_dict()) == sorted(model.model.state_dict())
    assert sorted(text.patcher.model.state_dict()) == sorted(clip.patcher.model.state_dict())
    assert relative(draw(pack, other, text), pictured) <= 1e-5 and write(text) == written


# --- LoRA -------------------------------------------------------------------------------------------------------


def lora(path, names, down="lora_down", up="lora_up", prefix="diffusion_model.", alpha=True, rank=4, scale=3.0):
    """A random LoRA of these linear layers, and what it adds to each weight at strength 1."""
    generator = torch.Generator().manual_seed(1)
    weights, tensors, deltas = tiny().model.state_dict(), {}, {}
    for name in names:
        rows, columns = weights[f"{name}.weight"].shape
        a = torch.randn(rank, columns, generator=generator) / math.sqrt(columns)
        b = torch.randn(rows, rank, generator=generator) * scale / math.sqrt(rank)
        tensors |= {f"{prefix}{name}.{down}.weight": a, f"{prefix}{name}.{up}.weight": b}
        if alpha:
            tensors[f"{prefix}{name}.alpha"] = torch.tensor(float(rank))
        deltas[f"{name}.weight"] = b @ a
    save_file(tensors, path)
    return deltas


def load_lora(model, clip, name, strength_model, strength_clip):
    import nodes

    return nodes.LoraLoader().load_lora(model, clip, name, strength_model, strength_clip)


def test_a_lora_changes_the_side_whose_strength_it_has(pack, model, clip):
    lora(pack.base / "models" / "loras" / "both.safetensors", [Q_PROJ, V_PROJ])
    pictured, spoken = draw(pack, model, clip), first_word(clip)
    drawing = load_lora(model, clip, "both.safetensors", 1.0, 0.0)
    assert relative(draw(pack, *drawing), pictured) > 1e-2 and torch.equal(first_word(drawing[1]), spoken)
    writing = load_lora(model, clip, "both.safetensors", 0.0, 2.0)
    assert torch.equal(draw(pack, *writing), pictured) and relative(first_word(writing[1]), spoken) > 1e-2
    neither = load_lora(model, clip, "both.safetensors", 0.0, 0.0)
    assert torch.equal(draw(pack, *neither), pictured) and torch.equal(first_word(neither[1]), spoken)
    both = load_lora(model, clip, "both.safetensors", 1.0, 2.0)
    assert torch.equal(draw(pack, *both), draw(pack, *drawing))
    assert torch.equal(first_word(both[1]), first_word(writing[1]))
    assert torch.equal(draw(pack, model, clip), pictured) and torch.equal(first_word(clip), spoken)  # nothing is left


@pytest.mark.parametrize(
    "naming",
    [{}, {"down": "lora_A", "up": "lora_B"}, {"down": "lora_A", "up": "lora_B", "alpha": False}, {"alpha": False}],
)
def test_a_lora_adds_its_product_to_the_weights_in_every_naming(pack, model, clip, naming, caplog):
    deltas = lora(pack.base / "models" / "loras" / "named.safetensors", [Q_PROJ, V_PROJ], **naming)
    changed = load_lora(model, clip, "named.safetensors", 0.5, 0.5)
    assert "not loaded" not in caplog.text
    pipe = copy.copy(tiny())
    pipe.model = copy.deepcopy(pipe.model)
    for key, delta in deltas.items():
        pipe.model.get_parameter(key).add_(0.5 * delta)
    expected = pipe.generate(PROMPT, steps=3, guidance=2.0, seed=3, output="latent")
    assert relative(draw(pack, *changed), expected) <= 1e-4
    assert changed[1].decode(write(changed[1])) == pipe.describe(scene(("red", "circle", 30, 40)), max_new_tokens=10)


@pytest.mark.parametrize("dora", [False, True])
def test_our_files_are_loaded_whole_and_give_the_merged_model(pack, model, clip, dora, caplog):
    """Every kind of layer that has one, both halves: LoraLoader against the library, which merges in float32."""
    import comfy.lora

    path, plain = pack.base / "models" / "loras" / "ours.safetensors", dict(tiny().model.named_parameters())
    save_lora(path, random_changes(plain, dora), {"rank": "4"})
    changed = load_lora(model, clip, "ours.safetensors", 0.8, 0.8)
    assert "not loaded" not in caplog.text.lower()
    pipe = copy.copy(tiny())
    pipe.model = copy.deepcopy(pipe.model)
    LoraStack(pipe.model).add(path, 0.8)
    patches = {**changed[0].patches, **changed[1].patcher.patches}
    assert len(patches) == len(random_changes(plain, dora))
    for key, patch in patches.items():
        name = key.removeprefix("diffusion_model.")
        found = comfy.lora.calculate_weight(patch, plain[name].clone(), key)
        assert relative(found, pipe.model.get_parameter(name)) <= 1e-5, name
    expected = pipe.generate(PROMPT, steps=3, guidance=2.0, seed=3, output="latent")
    assert relative(draw(pack, *changed), expected) <= 1e-4
    assert changed[1].decode(write(changed[1])) == pipe.describe(scene(("red", "circle", 30, 40)), max_new_tokens=10)


def random_changes(weights, dora):
    """An adapter for every matrix and kernel but the depthwise ones and the tables."""
    generator, changes = torch.Generator().manual_seed(2), {}
    for name, weight in weights.items():
        if weight.dim() < 2 or "depthwise" in name or "embed" in name or "norm" in name:
            continue
        down = torch.randn(4, *weight.shape[1:], generator=generator) / math.sqrt(weight[0].numel())
        up = 0.05 * torch.randn(len(weight), 4, *[1] * (weight.dim() - 2), generator=generator)
        rows = row_norms(weight) * (1 + 0.05 * torch.randn(len(weight), *[1] * (weight.dim() - 1), generator=generator))
        changes[name] = Adapter(down, up, 1.5, rows if dora else None)
    return changes


def test_a_lora_for_the_model_alone(pack, model, clip):
    import nodes

    lora(pack.base / "models" / "loras" / "alone.safetensors", [Q_PROJ])
    pictured, spoken = draw(pack, model, clip), first_word(clip)
    (changed,) = nodes.LoraLoaderModelOnly().load_lora_model_only(model, "alone.safetensors", 1.0)
    assert relative(draw(pack, changed, clip), pictured) > 1e-3 and torch.equal(first_word(clip), spoken)


def test_a_lora_of_the_output_head_changes_words_only(pack, model, clip):
    lora(pack.base / "models" / "loras" / "head.safetensors", [HEAD], prefix="text_encoders.")
    pictured, spoken = draw(pack, model, clip), first_word(clip)
    drawing = load_lora(model, clip, "head.safetensors", 1.0, 0.0)
    writing = load_lora(model, clip, "head.safetensors", 0.0, 1.0)
    assert torch.equal(draw(pack, *writing), pictured) and relative(first_word(writing[1]), spoken) > 1e-2
    assert torch.equal(draw(pack, *drawing), pictured) and torch.equal(first_word(drawing[1]), spoken)


def test_two_loras_add_up_and_a_bypass_gives_the_same(pack, model, clip):
    import comfy.sd

    path = pack.base / "models" / "loras" / "twice.safetensors"
    lora(path, [Q_PROJ, V_PROJ])
    once = load_lora(model, clip, "twice.safetensors", 1.0, 0.0)
    halves = load_lora(*load_lora(model, clip, "twice.safetensors", 0.5, 0.0), "twice.safetensors", 0.5, 0.0)
    assert relative(draw(pack, *halves), draw(pack, *once)) <= 1e-4
    bypass, _ = comfy.sd.load_bypass_lora_for_models(model, None, load_file(path), 1.0, 0.0)
    assert relative(draw(pack, bypass, clip), draw(pack, *once)) <= 1e-3


def hooked(conditioning, weights, keyframes):
    """Conditioning whose LoRA has these strengths from these fractions of the sampling on."""
    import comfy.hooks

    group = comfy.hooks.create_hook_lora(lora=weights, strength_model=1.0, strength_clip=0.0)
    frames = comfy.hooks.HookKeyframeGroup()
    for start, strength in keyframes:
        frames.add(comfy.hooks.HookKeyframe(strength=strength, start_percent=start, guarantee_steps=1))
    group.set_keyframes_on_hooks(hook_kf=frames)
    return [[conditioning[0][0], {**conditioning[0][1], "hooks": group}]]


def test_a_lora_that_comes_and_goes_leaves_no_stale_prompt(pack, model, clip, monkeypatch):
    path = pack.base / "models" / "loras" / "hook.safetensors"
    lora(path, [name.replace("q_proj", other) for name in (Q_PROJ,) for other in ("k_proj", "v_proj")])
    positive, negative = pack.node("encode")(clip, PROMPT)
    arguments = {"seed": 3, "steps": 6, "cfg": 2.0, "width": 0, "height": 0, "batch_size": 1}
    switched = hooked(positive, load_file(path), [(0.0, 1.0), (0.5, 0.0)])
    cached = [pack.node("sample")(model, row, negative, **arguments)["samples"] for row in (positive, switched)]
    always = pack.node("sample")(model, hooked(positive, load_file(path), [(0.0, 1.0)]), negative, **arguments)[
        "samples"
    ]
    cache = pack.module("nodes.native.model").PrefixCache
    monkeypatch.setattr(cache, "prefill", lambda self, key, flow, prefix, tokens, attention: prefix)
    uncached = [pack.node("sample")(model, row, negative, **arguments)["samples"] for row in (positive, switched)]
    assert relative(cached[0], uncached[0]) <= 1e-5 and relative(cached[1], uncached[1]) <= 1e-5
    assert relative(cached[1], cached[0]) > 1e-3 and relative(cached[1], always) > 1e-3


# --- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.4])
@pytest.mark.parametrize("patched", [False, True])
def test_a_partly_loaded_model_draws_and_writes_the_same(pack, model, clip, monkeypatch, fraction, patched):
    from comfy import model_management

    if patched:
        lora(pack.base / "models" / "loras" / "partial.safetensors", [Q_PROJ, V_PROJ])
        model, clip = load_lora(model, clip, "partial.safetensors", 1.0, 1.0)
    pictured, written = draw(pack, model, clip), write(clip)
    model_management.unload_all_models()
    budget = fraction * model.model_size()
    state, memory = model_management.VRAMState, model_management.minimum_inference_memory()
    monkeypatch.setattr(model_management, "is_device_cpu", lambda device: False)
    monkeypatch.setattr(model_management, "vram_state", state.NORMAL_VRAM if fraction else state.NO_VRAM)
    # Attention asks too, for (all, torch's own): what it gets decides how it splits its work.
    monkeypatch.setattr(
        model_management,
        "get_free_memory",
        lambda device=None, torch_free_too=False: (1e10, 1e10) if torch_free_too else budget + memory,
    )
    monkeypatch.setattr(model_management, "MIN_WEIGHT_MEMORY_RATIO", 0.0)
    found = draw(pack, model, clip)
    assert model.model.model_lowvram
    streamed = [name for name, part in model.model.named_modules() if getattr(part, "comfy_cast_weights", False)]
    loaded = model.loaded_size() / model.model_size()
    assert len(streamed) > 10 and (loaded < 0.1 if fraction == 0 else 0.1 < loaded < 0.9), (len(streamed), loaded)
    assert relative(found, pictured) <= 1e-5 and write(clip) == written
    monkeypatch.undo()
    model_management.unload_all_models()
    assert torch.equal(draw(pack, model, clip), pictured)


def test_weights_that_stay_behind_follow_to_the_gpu(pack, monkeypatch):
    """Every weight in main memory, every input on a GPU that only knows shapes: nothing may meet across the border."""
    from comfy import model_management

    monkeypatch.setattr(model_management, "get_free_memory", lambda *_: (1e10, 1e10))
    # In inference mode `to` would reach for a real GPU.
    with torch.inference_mode(False), torch.no_grad():
        model, clip, _ = pack.node("load")("janusflow-tiny", "none", "fp32")
        flow, text = model.model.diffusion_model, clip.cond_stage_model
        for part in (*flow.modules(), *text.modules()):
            if hasattr(part, "comfy_cast_weights"):
                part.comfy_cast_weights = True
        with FakeTensorMode(allow_non_fake_inputs=True):
            gpu = torch.device("cuda:0")
            prompt, latent = torch.empty(1, 7, 192, device=gpu), torch.empty(1, 4, 12, 12, device=gpu)
            time = torch.full((1,), 500.0, device=gpu)
            found = [
                flow(latent, time, prompt, None, {}, prompt_lengths=[7], time_positions=[7]),
                text.embed_features(text.image_features(torch.empty(1, 3, 96, 96, device=gpu))),
                text.encode_prompt(torch.zeros(1, 5, dtype=torch.long, device=gpu)),
                text.logits(prompt),
            ]
    assert [part.device for part in found] == [gpu] * 4
    assert [tuple(part.shape) for part in found] == [(1, 4, 12, 12), (1, 37, 192), (1, 5, 192), (1, 7, 512)]


# --- files ------------------------------------------------------------------------------------------------------


def saved(pack, name):
    (path,) = (pack.base / "output").glob(f"{name}_*.safetensors")
    return path


def test_model_save_writes_what_our_loader_reads(pack, model, clip):
    from comfy_extras.nodes_model_merging import ModelSave

    ModelSave().save(model, "flow")
    saved(pack, "flow").rename(pack.base / "models" / "diffusion_models" / "flow.safetensors")
    again, no_clip, no_vae = pack.node("load")("flow.safetensors", "none", "fp32")
    assert no_clip is None and no_vae is None
    for key, value in state(model).items():
        assert torch.equal(again.model.state_dict()[key], value), key
    assert torch.equal(draw(pack, again, clip), draw(pack, model, clip))
    assert again.model.model_config.drawing == model.model.model_config.drawing


def test_a_saved_model_has_its_lora_in_it(pack, model, clip):
    from comfy_extras.nodes_model_merging import ModelSave

    lora(pack.base / "models" / "loras" / "merged.safetensors", [Q_PROJ, V_PROJ])
    changed, _ = load_lora(model, clip, "merged.safetensors", 1.0, 0.0)
    pictured = draw(pack, changed, clip)
    ModelSave().save(changed, "merged")
    saved(pack, "merged").rename(pack.base / "models" / "diffusion_models" / "merged.safetensors")
    again, _, _ = pack.node("load")("merged.safetensors", "none", "fp32")
    assert torch.equal(draw(pack, again, clip), pictured)


def test_checkpoint_save_writes_what_our_loader_reads(pack, model, clip):
    from comfy_extras.nodes_model_merging import CheckpointSave

    vae = pack.tiny[2]
    CheckpointSave().save(model, clip, vae, "whole")
    saved(pack, "whole").rename(pack.base / "models" / "checkpoints" / "whole.safetensors")
    again, words, pictures = pack.node("load")("whole.safetensors", "from checkpoint", "fp32")
    for old, new in ((model, again), (clip.patcher, words.patcher), (vae.patcher, pictures.patcher)):
        for key, value in state(old).items():
            assert torch.equal(new.model.state_dict()[key], value), key
    latent = draw(pack, again, words)
    assert torch.equal(latent, draw(pack, model, clip)) and write(words) == write(clip)
    assert again.model.model_config.drawing == model.model.model_config.drawing
    assert torch.equal(pictures.decode(latent / 0.13025), vae.decode(latent / 0.13025))


def test_a_model_without_words_is_no_clip(pack, model, clip):
    """What Load JanusFlow gives for a file of ModelSave: the nodes that need words say so."""
    with pytest.raises(ValueError) as caught:
        pack.node("encode")(None, "a red circle")
    assert_sentence(str(caught.value), "CLIP")


# --- while it runs ----------------------------------------------------------------------------------------------


def test_prompts_in_one_batch_or_alone_draw_the_same(pack, model, clip, monkeypatch):
    together = draw(pack, model, clip)
    monkeypatch.setattr(pack.module("nodes.native.model").PromptCond, "can_concat", lambda self, other: False)
    assert relative(draw(pack, model, clip), together) <= 1e-5


def test_attention_that_is_replaced_sees_every_row_in_its_place(pack, model, clip):
    """Of the prompts too, which are else read once where one begins another: it may tell the branches by their rows."""
    rows, replaced = [], model.clone()

    def override(attention, q, *args, **kwargs):
        rows.append(q.shape[0])
        return attention(q, *args, **kwargs)

    replaced.model_options["transformer_options"]["optimized_attention_override"] = override
    assert relative(draw(pack, replaced, clip), draw(pack, model, clip)) <= 1e-5
    assert len(set(rows)) == 1


def calls_until_cancelled(module, count, run):
    """How often `module` is called when ComfyUI's cancel button is pressed during its call number `count`."""
    from comfy import model_management

    seen = []

    def press(*_):
        seen.append(len(seen) + 1)
        if len(seen) == count:
            model_management.interrupt_current_processing(True)

    hook = module.register_forward_hook(press)
    try:
        with pytest.raises(model_management.InterruptProcessingException):
            run()
    finally:
        hook.remove()
        model_management.interrupt_current_processing(False)
    return len(seen)


@pytest.mark.parametrize("token", [1, 2])
def test_writing_stops_at_the_token_after_a_cancel(clip, token):
    written = write(clip)
    head = clip.cond_stage_model.language_model.lm_head
    assert calls_until_cancelled(head, token, lambda: write(clip)) <= token + 1 <= len(written)
    assert write(clip) == written


@pytest.mark.parametrize("step", [1, 5])
def test_drawing_stops_at_the_step_after_a_cancel(pack, model, clip, step):
    pictured, flow = draw(pack, model, clip), model.model.diffusion_model
    assert calls_until_cancelled(flow, step, lambda: draw(pack, model, clip, steps=9)) <= step + 1
    assert torch.equal(draw(pack, model, clip), pictured)


def test_every_schema_is_whole(pack):
    extension = pack.module("nodes")
    schemas = [node.GET_SCHEMA() for node in extension.NODES]
    assert [schema.node_id for schema in schemas] == list(NODES.values())
    for schema in schemas:
        assert schema.description and schema.display_name and schema.category == "JanusFlow"
        assert schema.outputs and all(each.tooltip for each in schema.inputs)
