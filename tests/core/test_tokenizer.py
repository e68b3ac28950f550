import json
from pathlib import Path
from shutil import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from janusflow_core.tokenizer import ASSISTANT, SYSTEM_PROMPT, USER, JanusTokenizer, Message, ProcessorConfig

GOLDEN = Path(__file__).parents[1] / "golden"
FOLDERS = {"main": GOLDEN / "tiny", "official_like": GOLDEN / "processor_variants" / "official_like"}
TEXT = json.loads((GOLDEN / "golden" / "text.json").read_text("utf-8"))
MANIFEST = json.loads((GOLDEN / "golden" / "manifest.json").read_text("utf-8"))
CONVERSATIONS = {name: case for name, case in MANIFEST["und"]["cases"].items() if "conversation" in case}
TOKENIZERS = {name: JanusTokenizer.from_folder(folder) for name, folder in FOLDERS.items()}
MAIN = TOKENIZERS["main"]
# Byte-alphabet letters that the vocabulary lists as tokens of their own: they do not survive a round trip.
ODD = "øöúÿõ÷ûýÀùÁþü"
EOS = "<｜end▁of▁sentence｜>"


def golden_cases(section: str, key: str) -> list[str]:
    """Recorded cases of a section whose tensors are stored beside the tests."""
    cases = MANIFEST[section]["cases"]
    return [name for name, case in cases.items() if key in case and (GOLDEN / case["file"]).is_file()]


def tensors(section: str, name: str) -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / MANIFEST[section]["cases"][name]["file"])


def messages(name: str) -> list[Message]:
    return [Message(m["role"], m["content"]) for m in CONVERSATIONS[name]["conversation"]]


def understanding_ids(name: str) -> list[int]:
    return MAIN.understanding_ids(messages(name), len(CONVERSATIONS[name]["images"]))


@pytest.mark.parametrize("name", FOLDERS)
def test_ids_of_special_tokens(name: str):
    tokenizer, expected = TOKENIZERS[name], TEXT[name]["ids"]
    for key in ("bos", "eos", "image", "image_start", "image_end", "image_gen"):
        assert getattr(tokenizer, f"{key}_id") == expected.get(f"{key}_id", expected.get(key))
    assert tokenizer.pad_id == expected["pad_id"]
    assert tokenizer.vocab_size == expected["len_tokenizer"]


@pytest.mark.parametrize(("name", "case"), [(n, c) for n in FOLDERS for c in TEXT[n]["encode"]])
def test_encode_and_decode_equal_golden(name: str, case: dict):
    tokenizer = TOKENIZERS[name]
    assert tokenizer.encode(case["text"]) == case["ids"]
    assert tokenizer.encode(case["text"], bos=False) == case["ids"][1:]
    assert tokenizer.decode(case["ids"]) == case["decode_skip_special"]
    assert tokenizer.decode(case["ids"], skip_special_tokens=False) == case["decode_keep_special"]


@pytest.mark.parametrize(("name", "case"), [(n, c) for n in FOLDERS for c in TEXT[n]["t2i"]])
def test_generation_ids_equal_golden(name: str, case: dict):
    assert TOKENIZERS[name].generation_ids(case["prompt"]) == case["ids"][:-1]
    assert TOKENIZERS[name].image_start_id == case["ids"][-1]


@pytest.mark.parametrize("case", [c for c in MANIFEST["t2i"]["cases"].values() if "prompt" in c], ids=str)
def test_generation_prompt_length_equals_golden(case: dict):
    name = "official_like" if "<image_beg>" in case["text"] else "main"
    assert len(TOKENIZERS[name].generation_ids(case["prompt"])) == case["prompt_len_P"]
    text = TOKENIZERS[name].chat([Message(USER, case["prompt"]), Message(ASSISTANT, "")])
    assert text + TOKENIZERS[name].processor.image_start_tag == case["text"]


@pytest.mark.parametrize("name", golden_cases("t2i", "prompt"))
def test_generation_ids_equal_recorded_tensors(name: str):
    case = MANIFEST["t2i"]["cases"][name]
    tokenizer = TOKENIZERS["official_like" if "<image_beg>" in case["text"] else "main"]
    assert tokenizer.generation_ids(case["prompt"]) == tensors("t2i", name)["input_ids"][:-1].tolist()


@pytest.mark.parametrize(("name", "case"), [(n, c) for n in FOLDERS for c in TEXT[n]["chat"]])
def test_chat_equals_golden(name: str, case: dict):
    tokenizer = TOKENIZERS[name]
    text = tokenizer.chat(messages(case["id"]), SYSTEM_PROMPT)
    assert text == case["text"]
    assert tokenizer.encode(text) == case["ids_before_image_expansion"]
    ids = tokenizer.understanding_ids(messages(case["id"]), len(CONVERSATIONS[case["id"]]["images"]))
    expected = []
    for i in case["ids_before_image_expansion"]:
        block = [tokenizer.image_start_id, *[tokenizer.image_id] * 576, tokenizer.image_end_id]
        expected += block if i == tokenizer.image_id else [i]
    assert ids == expected


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversation_length_equals_golden(name: str):
    assert len(understanding_ids(name)) == CONVERSATIONS[name]["length"]


@pytest.mark.parametrize("name", golden_cases("und", "conversation"))
def test_understanding_ids_equal_recorded_tensors(name: str):
    recorded = tensors("und", name)
    ids = torch.tensor([understanding_ids(name)])
    assert torch.equal(ids, recorded["input_ids"])
    assert torch.equal(MAIN.image_mask(ids), recorded["images_seq_mask"])


@pytest.mark.parametrize("name", golden_cases("und", "members"))
def test_padded_batches_equal_recorded_tensors(name: str):
    recorded = tensors("und", name)
    members = MANIFEST["und"]["cases"][name]["members"]
    ids, mask = MAIN.pad_left([understanding_ids(member) for member in members])
    assert mask.dtype == torch.bool and torch.equal(mask, recorded["attention_mask"].bool())
    assert torch.equal(ids, recorded["input_ids"])
    assert torch.equal(MAIN.image_mask(ids), recorded["images_seq_mask"])


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_answers_equal_golden(name: str):
    case = CONVERSATIONS[name]
    assert MAIN.decode(case["greedy_ids"]) == case["answer"]
    stream = MAIN.stream()
    assert "".join(stream.push(i) for i in case["greedy_ids"]) + stream.flush() == case["answer"]


def test_system_prompt_equals_golden():
    assert SYSTEM_PROMPT == TEXT["main"]["system_prompt"]


def test_question_messages_are_the_usual_conversation():
    assert MAIN.question_messages("What is in this image?") == messages("square")
    assert MAIN.question_messages("Explain this formula: x^2 + y_1.", 0) == messages("text_only")
    assert MAIN.question_messages("Same?", 2)[0].content == "<image_placeholder><image_placeholder>\nSame?"


@pytest.mark.parametrize(
    ("turns", "system", "expected"),
    [
        ([], "", ""),
        ([("User", " hi "), ("Assistant", "")], "", "User: hi\n\nAssistant:"),
        ([("User", "hi"), ("Assistant", " \n")], "Be kind.", "Be kind.\n\nUser: hi\n\nAssistant:"),
        ([("User", ""), ("Assistant", "")], "", "User:Assistant:"),
        (
            [("User", "hi"), ("Assistant", "yo"), ("User", "ok")],
            "",
            f"User: hi\n\nAssistant: yo{EOS}User: ok",
        ),
        # The separators take turns by place, whoever speaks.
        ([("User", "a"), ("User", "b"), ("User", "c")], "", f"User: a\n\nUser: b{EOS}User: c"),
        ([("Assistant", "hi"), ("User", "yo")], "", f"Assistant: hi\n\nUser: yo{EOS}"),
        ([("<|User|>", "x"), ("<|Assistant|>", "")], "", "<|User|>: x\n\n<|Assistant|>:"),
    ],
)
def test_chat_template(turns: list[tuple[str, str]], system: str, expected: str):
    assert MAIN.chat([Message(*turn) for turn in turns], system) == expected


TAGS = [*json.loads(MAIN.json)["added_tokens"], *({"content": c} for c in ODD)]
ORDINARY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters=ODD), max_size=60).filter(
    lambda text: not any(tag["content"] in text for tag in TAGS)
)


@settings(max_examples=300, deadline=None)
@given(ORDINARY)
def test_text_survives_a_round_trip(text: str):
    ids = MAIN.encode(text)
    assert ids[0] == MAIN.bos_id and MAIN.eos_id not in ids
    assert MAIN.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 1023), max_size=40), st.booleans())
def test_stream_joins_to_decode(ids: list[int], skip: bool):
    stream = MAIN.stream(skip)
    assert "".join(map(stream.push, ids)) + stream.flush() == MAIN.decode(ids, skip)


def test_stream_gives_whole_characters_as_soon_as_they_are_complete():
    ids = MAIN.encode("a 猫🐱!", bos=False)
    stream = MAIN.stream()
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) == "a 猫🐱!" and "\ufffd" not in "".join(pieces)
    assert pieces[0] == "a" and pieces[-1] == "!" and stream.flush() == ""


def test_odd_letters_are_lost_as_in_the_reference():
    assert MAIN.decode(MAIN.encode("schön")) == "sch\ufffdn"


def test_tags_in_a_text_become_tokens_as_in_the_reference():
    assert MAIN.eos_id in MAIN.generation_ids(f"a {EOS} b")
    assert MAIN.image_start_id in MAIN.generation_ids("a <begin_of_image> b")


MISFITS = [("a <image_placeholder> b", 1, 1), ("", 2, 1), ("", 2, 3), ("What?", 2, 0)]


@pytest.mark.parametrize(("question", "tags", "images"), MISFITS)
def test_number_of_image_tags_must_fit(question: str, tags: int, images: int):
    with pytest.raises(ValueError, match=f"holds 2 <image_placeholder> tags, expected {images}, one per image"):
        MAIN.understanding_ids(MAIN.question_messages(question, tags), images)


def test_literal_start_tag_is_refused():
    with pytest.raises(ValueError, match="holds 1 literal <begin_of_image> tags, expected none: remove"):
        MAIN.understanding_ids(MAIN.question_messages("What is <begin_of_image>?"), 1)
    other = TOKENIZERS["official_like"]
    ids = other.understanding_ids(other.question_messages("What is <begin_of_image>?"), 1)
    assert ids.count(other.image_start_id) == 1


def test_number_of_image_tokens_comes_from_the_file():
    tokenizer = JanusTokenizer(MAIN.json, ProcessorConfig(num_image_tokens=36))
    ids = tokenizer.understanding_ids(tokenizer.question_messages("Describe the image."), 1)
    assert tokenizer.image_mask(torch.tensor(ids)).sum() == 37 and ids.count(tokenizer.image_end_id) == 1


def test_add_special_token_is_refused_for_pictures():
    tokenizer = JanusTokenizer(MAIN.json, ProcessorConfig(add_special_token=True))
    with pytest.raises(ValueError, match="add_special_token in processor_config.json is true"):
        tokenizer.understanding_ids(tokenizer.question_messages("What?"), 1)
    assert tokenizer.understanding_ids(messages("text_only"), 0) == understanding_ids("text_only")


def test_pad_left():
    ids, mask = MAIN.pad_left([[1, 2, 3], [4], []])
    assert ids.tolist() == [[1, 2, 3], [MAIN.pad_id, MAIN.pad_id, 4], [MAIN.pad_id] * 3]
    assert mask.tolist() == [[True] * 3, [False, False, True], [False] * 3]
    with pytest.raises(ValueError, match="got no rows"):
        MAIN.pad_left([])


@pytest.mark.parametrize("name", FOLDERS)
def test_three_parts_rebuild_the_tokenizer(name: str):
    tokenizer = TOKENIZERS[name]
    assert tokenizer.json == (FOLDERS[name] / "tokenizer.json").read_text("utf-8")
    processor = ProcessorConfig.from_json_dict(tokenizer.processor.to_json_dict())
    again = JanusTokenizer(tokenizer.json, processor, json.loads(json.dumps(tokenizer.special)))
    assert again.processor == tokenizer.processor and again.special == tokenizer.special
    asked = messages("square")
    assert again.understanding_ids(asked, 1) == tokenizer.understanding_ids(asked, 1)


def test_processor_config_reads_the_file():
    values = json.loads((FOLDERS["official_like"] / "processor_config.json").read_text("utf-8"))
    config = ProcessorConfig.from_json_dict(values)
    assert (config.image_start_tag, config.image_end_tag) == ("<image_beg>", "<end_of_image>")
    assert config.sft_format == "deepseek_old" and values.items() <= config.to_json_dict().items()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_tag", None),
        ("image_start_tag", ""),
        ("num_image_tokens", "576"),
        ("num_image_tokens", 0),
        ("num_image_tokens", True),
        ("add_special_token", 0),
        ("sft_format", "plain"),
    ],
)
def test_processor_config_rejects_wrong_values(key: str, value: object):
    with pytest.raises(ValueError, match=f"{key} in processor_config.json is .*, expected .*: correct"):
        ProcessorConfig.from_json_dict({key: value})


def test_folder_with_only_a_tokenizer(tmp_path: Path):
    copy(FOLDERS["main"] / "tokenizer.json", tmp_path)
    tokenizer = JanusTokenizer.from_folder(tmp_path)
    assert tokenizer.processor == ProcessorConfig()
    assert (tokenizer.bos_id, tokenizer.eos_id) == (MAIN.bos_id, MAIN.eos_id)


def test_declared_tokens_come_before_the_tags():
    special = {"additional_special_tokens": [{"content": "<new>"}, "<image_placeholder>"]}
    tokenizer = JanusTokenizer(TOKENIZERS["official_like"].json, ProcessorConfig(), special)
    assert tokenizer.encode("<new>", bos=False) == [916]
    assert (tokenizer.image_id, tokenizer.image_start_id, tokenizer.image_end_id) == (917, 918, 919)


def test_missing_tags_are_added_in_the_order_of_the_reference():
    tokenizer = JanusTokenizer(TOKENIZERS["official_like"].json, ProcessorConfig(image_gen_tag="<gen>"))
    assert (tokenizer.image_id, tokenizer.image_gen_id) == (916, 917)
    assert (tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.vocab_size) == (918, 919, 920)


def test_truncation_and_padding_in_the_file_are_ignored():
    values = json.loads(MAIN.json)
    values["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    tokenizer = JanusTokenizer(json.dumps(values), ProcessorConfig())
    assert tokenizer.encode("one two three") == MAIN.encode("one two three")


def test_broken_folders(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json: point to a folder"):
        JanusTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json is broken, it cannot be read"):
        JanusTokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="tokenizer.json is not UTF-8"):
        JanusTokenizer.from_folder(tmp_path)
    copy(FOLDERS["main"] / "tokenizer.json", tmp_path)
    (tmp_path / "processor_config.json").write_text("{'")
    with pytest.raises(ValueError, match="processor_config.json is not valid JSON"):
        JanusTokenizer.from_folder(tmp_path)
    (tmp_path / "processor_config.json").write_text("[]")
    with pytest.raises(ValueError, match="processor_config.json holds a list, expected an object"):
        JanusTokenizer.from_folder(tmp_path)


def test_broken_special_tokens():
    with pytest.raises(ValueError, match="bos_token in .* is 7, expected"):
        JanusTokenizer(MAIN.json, ProcessorConfig(), {"bos_token": 7})
    with pytest.raises(ValueError, match="tokenizer.json has no token <s>"):
        JanusTokenizer(MAIN.json, ProcessorConfig(), {"bos_token": "<s>"})


def altered(**parts: object) -> str:
    """MAIN's file with some of its parts replaced."""
    return json.dumps({**json.loads(MAIN.json), **parts})


EMPTY_PATTERN = {"type": "Replace", "pattern": {"String": ""}, "content": "x"}


def test_a_file_that_makes_the_library_panic_is_refused():
    """A panic of Rust code is no Exception: it would end a server's worker, and with it every later prompt."""
    with pytest.raises(ValueError, match="tokenizer.json is broken, it cannot be read .*Precompiled"):
        JanusTokenizer(altered(normalizer={"type": "Precompiled", "precompiled_charsmap": ""}), MAIN.processor)
    tokenizer = JanusTokenizer(altered(normalizer=EMPTY_PATTERN), MAIN.processor)
    with pytest.raises(ValueError, match="tokenizer.json is broken, it cannot encode this text .*out of bounds"):
        tokenizer.encode("a cat")


def test_tokens_that_are_no_unicode_are_refused():
    with pytest.raises(ValueError, match="bos_token in special_tokens_map.json .* expected a token's text"):
        JanusTokenizer(MAIN.json, ProcessorConfig(), {"bos_token": "\ud800"})


def test_vocabulary_size_covers_ids_that_a_file_leaves_out():
    model = json.loads(MAIN.json)["model"]
    model["vocab"] = {token: id + 5000 * (id > 300) for token, id in model["vocab"].items()}
    tokenizer = JanusTokenizer(altered(model=model), MAIN.processor, MAIN.special)
    assert tokenizer.vocab_size == 1 + max(*tokenizer.encode("a red circle on the Zugspitze"), *model["vocab"].values())
    assert tokenizer.vocab_size > MAIN.vocab_size + 4000


def test_half_a_surrogate_pair_is_named():
    with pytest.raises(ValueError, match="half a surrogate pair at position 3"):
        MAIN.encode("cat\ud83d")


def test_a_file_nested_too_deeply_is_named():
    nested: list = []
    for _ in range(2000):
        nested = [nested]
    with pytest.raises(ValueError, match="processor_config.json is nested too deeply: correct the file"):
        ProcessorConfig.from_json_dict({"image_tag": nested})


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("answer", ["yes", "a red circle", " Two. ", "7", "zwölf 猫", '{"a": 1}'])
def test_an_answer_stands_behind_its_question_as_in_the_whole_conversation(name: str, answer: str):
    tokenizer = TOKENIZERS[name]
    asked = tokenizer.question_messages("What is it?", 1)
    whole = tokenizer.understanding_ids([asked[0], Message("Assistant", answer)], 1)
    assert tokenizer.understanding_ids(asked, 1) + tokenizer.answer_ids(answer) + [tokenizer.eos_id] == whole


def test_an_empty_answer_is_none():
    with pytest.raises(ValueError, match="an answer is empty, expected a text"):
        MAIN.answer_ids(" ")
