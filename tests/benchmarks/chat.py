"""What a chat's memory saves: the second and third question about a picture, with and without it, in turns.

    python tests/benchmarks/chat.py [--size tiny|middle|full] [--dtype fp32|bf16] [--rounds 5]

Random weights; a picture and a question of the usual length, then questions of 16 tokens, answers of 10. Without memory
the vision encoder would look at the picture again as well, which is not counted here.
"""

from __future__ import annotations

import argparse
import sys
from copy import copy
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from janusflow_core.bench.sizes import language_config, medians, random_language_model, usual_prompt  # noqa: E402
from janusflow_core.device import best_device, best_dtype  # noqa: E402
from janusflow_core.recall import Recall, go_on  # noqa: E402

QUESTION, ANSWER, TURNS, NEVER = 16, 10, 3, -1  # tokens, tokens, turns, what ends no answer


def main(size: str, dtype: torch.dtype, device: torch.device, rounds: int) -> None:
    config = language_config(size)
    model = random_language_model(config, dtype, device)
    random = torch.Generator().manual_seed(0)

    def say(recall: Recall, ids: list[int]) -> list[int]:
        def read(known: int) -> torch.Tensor:
            return model.model.embed_tokens(torch.tensor([ids[known:]], device=device))

        parts = (model.model, model.lm_head, model.model.embed_tokens)
        return go_on(recall, "", ids, read, parts, eos=NEVER, max_new_tokens=ANSWER, device=device)

    ids = torch.randint(config.vocab_size, (usual_prompt(size),), generator=random).tolist()
    print(f"{size}, {dtype}, {device}\n")
    print(f"| turn | tokens | read anew | remembered | times faster | kept |\n{'|---' * 6}|")
    recall = Recall()
    for turn in range(1, TURNS + 1):
        kept = sum(part.nbytes for layer in recall._cache.buffers for part in layer)

        def remembered(ids: list[int] = ids) -> list[int]:
            return say(copy(recall), ids)  # a turn replaces what is remembered: each round begins with the same

        anew, fast = medians([lambda ids=ids: say(Recall(), ids), remembered], rounds, device)
        print(f"| {turn} | {len(ids)} | {anew:.3f} s | {fast:.3f} s | {anew / fast:.2f} | {kept / 1e6:.0f} MB |")
        answer = say(recall, ids)
        question = torch.randint(config.vocab_size, (QUESTION,), generator=random).tolist()
        ids = [*ids, *answer, *question]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=["tiny", "middle", "full"], default="tiny")
    parser.add_argument("--dtype", choices=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    where = best_device()
    number = {"fp32": torch.float32, "bf16": torch.bfloat16, None: best_dtype(where)}[given.dtype]
    with torch.no_grad():
        main(given.size, number, where, given.rounds)
