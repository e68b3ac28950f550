"""The benchmark of answers: that it counts right, compares like with like, and prints what it promises."""

import json

import pytest
import torch
from golden import read_json

from janusflow_core.bench.describe import (
    agreement,
    bytes_per_step,
    measure,
    seconds_a_token,
    take_turns,
    write,
)
from janusflow_core.bench.peers import transformers_llama
from janusflow_core.bench.sizes import _forget_peak, bandwidth, language_config, peak_bytes, random_language_model
from janusflow_core.checkpoint import open_checkpoint
from janusflow_core.cli import main
from janusflow_core.config import JanusFlowConfig, LanguageConfig

CPU = torch.device("cpu")
SMALL = LanguageConfig(
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=32,
)


def test_both_ways_write_the_same_text_from_the_same_weights():
    (row,) = measure(SMALL, [3], prompt_tokens=5, new_tokens=24, rounds=3, device=CPU, dtype=torch.float32)
    assert row.same == 1.0
    assert row.ratio == pytest.approx(row.ours_tok_s / row.peer_tok_s)
    assert (row.batch, row.prompt_tokens, row.dtype) == (3, 5, "float32")
    assert min(row.prefill_s, row.static_peer_tok_s, row.of_bound) > 0


def test_the_peer_shares_the_weights_and_computes_the_same_logits():
    ours = random_language_model(SMALL, torch.float32, CPU)
    theirs = transformers_llama(ours, SMALL)
    assert theirs.lm_head.weight.data_ptr() == ours.lm_head.weight.data_ptr()
    ids = torch.arange(7)[None]
    mask = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    mine = ours.lm_head(ours.model(ours.model.embed_tokens(ids), ids, mask))
    torch.testing.assert_close(theirs(input_ids=ids).logits, mine, rtol=1e-4, atol=1e-5)


def test_agreement_ends_at_the_first_difference():
    assert agreement([[1, 2, 3, 4]], [[1, 2, 9, 4]]) == 0.5
    assert agreement([[1, 2], [3, 4]], [[1, 2], [9, 4]]) == 0.5
    assert agreement([[1, 2]], [[1, 2]]) == 1.0


def test_bytes_of_a_step_are_all_weights_but_the_table_and_all_keys_and_values():
    model = random_language_model(SMALL, torch.bfloat16, CPU)
    layer = 16 * 16 + 2 * 16 * 8 + 16 * 16 + 3 * 16 * 24 + 2 * 16
    weights = 2 * layer + 16 + 32 * 16
    assert bytes_per_step(model, SMALL, 3, 10) == 2 * (weights + 3 * 10 * 2 * 2 * 8)


def test_ways_take_turns_and_medians_are_taken():
    calls: list[tuple[str, int]] = []
    ways = [lambda n: calls.append(("a", n)), lambda n: calls.append(("b", n))]
    first, whole = take_turns(ways, 9, 2, CPU)
    assert calls == 2 * [("a", 1), ("a", 9), ("b", 1), ("b", 9)]
    assert len(first) == len(whole) == 2


def test_a_token_takes_what_all_took_less_the_first_one():
    assert seconds_a_token([1.0, 2.0], [5.0, 4.0], 5) == [1.0, 0.5]
    with pytest.raises(ValueError, match="too busy to measure"):
        seconds_a_token([1.0, 2.0], [5.0, 2.0], 5)


def test_what_a_machine_reads_and_holds_is_measured():
    assert 1e8 < bandwidth(CPU) < 1e13
    held = peak_bytes(lambda: torch.ones(1 << 26).sum(), CPU)
    assert held is None or held > 4 << 26


def test_a_machine_that_forbids_measuring_its_memory_is_put_up_with(tmp_path):
    assert not _forget_peak(tmp_path)  # a folder: what is written to it is refused


def test_tiny_is_the_bundled_model_and_full_the_official_one():
    assert language_config("tiny").model_dump() == {
        **open_checkpoint("janusflow-tiny").config.language.model_dump(),
        "max_position_embeddings": 16384,
    }
    assert language_config("full") == JanusFlowConfig.from_dict(read_json("official_config.json")).language


def test_random_weights_write_texts_that_differ_with_the_prompt():
    model = random_language_model(SMALL, torch.float32, CPU)
    one, other = write(model, model.model.embed_tokens(torch.tensor([[1, 2], [3, 4]])), 8)
    assert one != other


def test_the_command_prints_json_or_a_table(capsys):
    short = ["--rounds", "3", "--new-tokens", "24", "--prompt-tokens", "4"]
    small = ["bench", "describe", "--device", "cpu", "--dtype", "fp32", *short]
    assert main([*small, "--batch", "1", "2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["size"], line["batch"], line["same"]) for line in lines] == [("tiny", 1, 1.0), ("tiny", 2, 1.0)]
    assert main([*small, "--batch", "1"]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["batch", "prompt"] and row.split()[:2] == ["1", "4"]


def test_what_cannot_be_measured_is_refused(capsys):
    assert main(["bench", "describe", "--new-tokens", "1"]) == 2
    assert "--new-tokens of at least 2" in capsys.readouterr().err
