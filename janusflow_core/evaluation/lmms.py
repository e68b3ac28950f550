"""JanusFlow in lmms-eval: `python -m lmms_eval --model janusflow --model_args model=PATH,dtype=bf16 --tasks pope`.

lmms-eval finds `manifest` through this package's entry point. It fixes versions that ComfyUI cannot live with, so it
has an environment of its own. A simple model in its words: pictures stand in front of the question, as in the authors'
template, and tasks that weigh given answers run too, which they do not for its chat models.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tqdm import tqdm

from ..bulk.batches import chunks
from ..decoding import SamplingOptions
from ..device import usable_device
from ..pipeline import JanusFlowPipeline

try:
    from accelerate import Accelerator
    from lmms_eval.api.instance import GenerationResult, Instance
    from lmms_eval.api.model import lmms
except ImportError as error:
    raise ImportError("this needs lmms-eval, in an environment of its own: pip install lmms-eval") from error

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Wanted:
    """How a task wants to be answered: requests of equal settings share batches."""

    max_new_tokens: int
    options: SamplingOptions
    until: tuple[str, ...]

    @classmethod
    def of(cls, told: Mapping[str, Any], max_new_tokens: int) -> Wanted:
        """A task's generation_kwargs, which are those of transformers; beams, which we have not, are left out."""
        sampled = told.get("do_sample", told.get("temperature"))
        temperature = told.get("temperature", 1.0) or 0.0 if sampled else 0.0
        until = told.get("until") or ()
        stops = (until,) if isinstance(until, str) else tuple(until)
        # lmms-eval adds the blank line to every task that names no stop: it would end long answers behind a paragraph.
        stops = tuple(stop for stop in stops if stop not in ("", "\n\n"))
        options = SamplingOptions(temperature=temperature, top_p=told.get("top_p") or 1.0)
        return cls(told.get("max_new_tokens") or max_new_tokens, options, stops)

    def cut(self, text: str) -> str:
        """The text before the first stop."""
        for stop in self.until:
            text = text.partition(stop)[0]
        return text


class Janusflow(lmms):
    """A JanusFlow that lmms-eval asks; each of several processes has its own."""

    def __init__(
        self,
        model: str = "janusflow-tiny",
        device: str | None = None,
        dtype: Literal["bf16", "fp32"] | None = None,
        lora: str | None = None,
        lora_strength: float = 1.0,
        batch_size: int | str = 1,
        max_new_tokens: int = 512,
    ) -> None:
        """`max_new_tokens` where the task names none. Raises ValueError, and what `from_pretrained` raises."""
        super().__init__()
        if dtype not in (None, *DTYPES) or not str(batch_size).isdecimal() or not int(batch_size):
            raise ValueError(f"got dtype {dtype} and batch size {batch_size}, expected bf16 or fp32 and a number.")
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        place = self.accelerator.device if self.world_size > 1 else usable_device(device)
        loras = [(lora, lora_strength)] if lora else []
        self.pipe = JanusFlowPipeline.from_pretrained(model, device=place, dtype=dtype and DTYPES[dtype], loras=loras)
        self.device = self.pipe.device  # lmms-eval gathers there
        self.batch_size, self.max_new_tokens = int(batch_size), max_new_tokens

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """The answers, in the order of the requests; repeats of a question are sampled from seeds that count up."""
        groups, asked = defaultdict[Wanted, list[tuple[int, Instance, int]]](list), Counter[tuple[Any, ...]]()
        for place, request in enumerate(requests):
            question = request.args[3:]
            groups[Wanted.of(request.args[1], self.max_new_tokens)].append((place, request, asked[question]))
            asked[question] += 1
        batches = [(wanted, batch) for wanted, rows in groups.items() for batch in chunks(rows, self.batch_size)]
        answers = dict[int, str]()
        for wanted, batch in tqdm(batches, desc="JanusFlow answers", disable=self.rank != 0):
            places, some, seeds = zip(*batch, strict=True)
            answers |= zip(places, self._answers(wanted, some, seeds), strict=True)
        return [answers[place] for place in range(len(requests))]

    def _answers(self, wanted: Wanted, requests: Sequence[Instance], seeds: Sequence[int]) -> list[str]:
        tokenizer, pictures = self.pipe.tokenizer, [self._pictures(request) for request in requests]
        rows = [(request.args[0], len(own)) for request, own in zip(requests, pictures, strict=True)]
        turns = [tokenizer.question_messages(*row) for row in rows]
        longest = max(len(tokenizer.understanding_ids(own, row[1])) for own, row in zip(turns, rows, strict=True))
        # Tasks allow as much as the largest models' contexts hold: a limit, not a wish.
        room = max(1, self.pipe.model.config.language.max_position_embeddings - longest)
        more = min(wanted.max_new_tokens, room)
        texts = self.pipe.converse(turns, pictures, max_new_tokens=more, options=wanted.options, seeds=seeds)
        return [wanted.cut(text) for text in texts]

    def _pictures(self, request: Instance) -> list[Any]:
        *_, doc_to_visual, doc_id, task, split = request.args
        return list(doc_to_visual(self.task_dict[task][split][doc_id]) or ())

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """-log P of each continuation as the whole answer, and whether it is what is said greedily.

        Minus, because lmms-eval takes the smallest: its own models give torch's loss, whatever its base class says.
        Within a GenerationResult, because lmms-eval 0.7.3 makes a text of a bare pair and then cannot read it.
        """
        groups, found = defaultdict[tuple[Any, ...], list[int]](list), dict[int, GenerationResult]()
        for place, request in enumerate(requests):
            groups[(request.args[0], *request.args[3:])].append(place)
        for places in tqdm(groups.values(), desc="JanusFlow weighs answers", disable=self.rank != 0):
            weighed = self._weighed([requests[place] for place in places])
            found |= zip(places, map(GenerationResult, weighed), strict=True)
        return [found[place] for place in range(len(requests))]

    def _weighed(self, requests: Sequence[Instance]) -> Iterator[tuple[float, bool]]:
        """Of continuations of one question, by one pass over all that are different."""
        pipe, question, pictures = self.pipe, requests[0].args[0], self._pictures(requests[0])
        answers = [tuple(pipe.tokenizer.answer_ids(self._continuation(request))) for request in requests]
        different = [*dict.fromkeys(answers)]
        (scores,) = pipe.weigh([pictures], question, different)
        said = pipe.describe(pictures, question, together=True, max_new_tokens=max(map(len, different)) + 1)
        for ids in answers:
            yield -float(scores[different.index(ids)]), pipe.tokenizer.decode(ids).strip() == said

    def _continuation(self, request: Instance) -> str:
        _, target, _, doc_id, task, split = request.args
        return target if isinstance(target, str) else target(self.task_dict[task][split][doc_id])

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        raise NotImplementedError("JanusFlow answers tasks of one round only: leave this task out.")

    def clean(self) -> None:
        """Free the model's memory: a judge may need it."""
        del self.pipe
        super().clean()


def manifest() -> Any:
    """What the entry point names."""
    from lmms_eval.models.registry_v2 import ModelManifest  # whose package asks for this while it is imported

    return ModelManifest("janusflow", simple_class_path=f"{__name__}.{Janusflow.__name__}")
