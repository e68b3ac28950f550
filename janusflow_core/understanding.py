"""Pictures and a question to words: answers, choices among given ones and how likely each is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import decoding, image, scoring
from .chat import Chat, marks
from .choices import choice_of, option_scores, spelled
from .decoding import LogitsRule, SamplingOptions
from .device import free_memory
from .image import AnyPicture as Picture
from .model import JanusFlow
from .recall import Recall, go_on
from .schemas import SchemaRule
from .scoring import YES_NO, Judging
from .seeds import own_seeds
from .spelling import Numbers, Spelled
from .tokenizer import JanusTokenizer, Message

DEFAULT_QUESTION = "Describe the image."


class Understanding:
    """What a pipeline says about pictures."""

    model: JanusFlow
    tokenizer: JanusTokenizer
    image_config: image.ImageConfig
    device: torch.device
    recall: Recall

    @property
    def dtype(self) -> torch.dtype:
        return self.model.vision_gen_dec_aligner.weight.dtype

    @torch.no_grad()
    def describe(
        self,
        images: Picture | Sequence[Picture],
        question: str | Sequence[str] = DEFAULT_QUESTION,
        *,
        together: bool = False,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | Sequence[int] = 0,
        on_token: Callable[[str], None] | None = None,
    ) -> Any:
        """Answer a question about a picture (a str), about each of several (a list), or once about all `together`.

        Of several questions (a list) each is asked about its own picture, or all about the one picture, or about all
        `together`. Pictures are PIL images, arrays, tensors or paths of files. `temperature` 0 is greedy; answer k is
        the one that its question gets alone at seed + k, or at seed[k] of several. `on_token` gets the words of one
        answer and may raise. Raises ValueError for other numbers of questions or seeds and for a conversation that does
        not fit the model, and what `open_image` raises.
        """
        asked, once = self._asked(images, together)
        if not isinstance(question, str):
            asked, once = asked * len(question) if once else asked, False
        if on_token is not None and len(asked) != 1:
            raise ValueError("on_token follows one answer: give one picture, or together=True.")
        options = SamplingOptions(temperature=temperature, top_p=top_p)
        seeds = own_seeds(seed, len(asked))
        with self._words(on_token) as heard:
            answers = self._answers(asked, question, max_new_tokens, options=options, seeds=seeds, on_token=heard)
        return answers[0] if once else answers

    @contextmanager
    def _words(self, on_token: Callable[[str], None] | None) -> Iterator[decoding.OnToken | None]:
        """What hears the ids of one answer and tells its words, at the end those that were held back."""
        if on_token is None:
            yield None
            return
        stream = self.tokenizer.stream()
        yield lambda _, token: on_token(stream.push(token))
        if rest := stream.flush():
            on_token(rest)

    def _answers(
        self,
        asked: Sequence[Sequence[Picture]],
        question: str | Sequence[str],
        max_new_tokens: int,
        rules: Sequence[LogitsRule] = (),
        seeds: Sequence[int] | None = None,
        **how: Any,
    ) -> list[str]:
        """What `converse` answers to a question, or to each its own, about each group of pictures, in batches that fit
        the memory."""
        questions = one_each("questions", question, len(asked))
        answers, at_once = [], self.at_once(max(questions, key=len, default=""), max_new_tokens)
        for first in range(0, len(asked), at_once):
            some = asked[first : first + at_once]
            pairs = zip(questions[first : first + at_once], some, strict=True)
            turns = [self.tokenizer.question_messages(text, len(own)) for text, own in pairs]
            some_seeds = None if seeds is None else seeds[first : first + at_once]
            answers += self.converse(turns, some, max_new_tokens=max_new_tokens, rules=rules, seeds=some_seeds, **how)
        return answers

    def at_once(self, question: str, max_new_tokens: int) -> int:
        """About how many pictures can be asked this in one batch, by the memory that is free now."""
        language = self.model.config.language
        tokens = len(self.tokenizer.understanding_ids(self.tokenizer.question_messages(question, 1), 1))
        row = decoding.bytes_a_row(language, tokens + max_new_tokens, self.dtype)
        return decoding.fitting(free_memory(self.device), row)

    @torch.no_grad()
    def choose(
        self,
        images: Picture | Sequence[Picture],
        question: str,
        options: Sequence[str] | Mapping[str, Sequence[str]],
        *,
        together: bool = False,
    ) -> Any:
        """Choose an answer about a picture (a Choice), about each of several (a list), or once about all `together`.

        Probabilities are exact, over whole answers. Options may map an answer to several ways of writing it, whose
        chances are added. Raises ValueError where options are the same or empty, and what `describe` raises.
        """
        spellings = spelled(options)
        asked, once = self._asked(images, together)
        ids = [self.tokenizer.answer_ids(text) for written in spellings.values() for text in written]
        choices = [choice_of(spellings, row) for row in self.weigh(asked, question, ids)]
        return choices[0] if once else choices

    def yes_no(self, images: Picture | Sequence[Picture], question: str, *, together: bool = False) -> Any:
        """`choose` between yes and no, however the model writes them."""
        return self.choose(images, question, YES_NO, together=together)

    def number(
        self,
        images: Picture | Sequence[Picture],
        question: str,
        minimum: float = 0,
        maximum: float = 100,
        decimals: int = 0,
        *,
        together: bool = False,
    ) -> Any:
        """Answer with a number of this range, in digits or, up to twenty, in words: an int, or a float with decimals.

        One about a picture, a list about several, one about all `together`. Raises what `Numbers` and `describe` raise.
        """
        numbers = Numbers(minimum, maximum, decimals)
        rule = Spelled(self.tokenizer, numbers.begins, numbers.ends, numbers.takes)
        asked, once = self._asked(images, together)
        values = [numbers.value(text) for text in self._answers(asked, question, numbers.longest + 2, [rule])]
        return values[0] if once else values

    def structured(
        self,
        images: Picture | Sequence[Picture],
        question: str,
        schema: str | Mapping[str, Any],
        *,
        together: bool = False,
        max_new_tokens: int = 512,
    ) -> Any:
        """Answer with JSON that satisfies a schema, parsed: one about a picture, a list about several, one `together`.

        Needs llguidance. Texts, lists and numbers that the schema leaves without bound get one (see `schemas`). Raises
        what `SchemaRule` and `describe` raise, and ValueError where `max_new_tokens` do not suffice.
        """
        rule = SchemaRule(self.tokenizer, schema)
        asked, once = self._asked(images, together)
        values = [rule.value(text) for text in self._answers(asked, question, max_new_tokens, [rule])]
        return values[0] if once else values

    def score(self, images: Picture | Sequence[Picture], prompt: str | Sequence[str], *, by: Judging = "parts") -> Any:
        """How well a picture shows a prompt, from 0 to 1, by the model's own answers; a list for several.

        Each of several pictures may have its own prompt. By `parts`: the probabilities, multiplied, that the model says
        yes when asked for each thing that the prompt names, or their number, and for where they lie; by `whole`: that
        it says yes when asked for all of it; by `caption`: that it describes it in just these words; by `both`: caption
        times parts. Raises ValueError for a prompt without words or as many as fit no pictures, and what `choose`
        raises.
        """
        pictures = [images] if isinstance(images, Picture) else list(images)
        prompts = one_each("prompts", prompt, len(pictures))
        scores = dict[int, float]()
        for one in dict.fromkeys(prompts):
            rows = [row for row, (own, _) in enumerate(zip(prompts, pictures, strict=True)) if own == one]
            scores |= zip(rows, self._chances([pictures[row] for row in rows], one, by), strict=True)
        return scores[0] if isinstance(images, Picture) else [scores[row] for row in range(len(pictures))]

    @torch.no_grad()
    def _chances(self, pictures: Sequence[Picture], prompt: str, by: Judging) -> list[float]:
        asked = [[picture] for picture in pictures]

        def chance(question: scoring.Question) -> list[float]:
            found = self.choose(pictures, question.text, question.options)
            return [choice.probabilities[question.wanted] for choice in found]

        def said(caption: str) -> list[float]:
            ids = self.tokenizer.answer_ids(caption)
            return [float(row.exp()) for row in self.weigh(asked, DEFAULT_QUESTION, [ids])]

        return scoring.score(prompt, by, chance, said)

    def _asked(self, images: Picture | Sequence[Picture], together: bool) -> tuple[list[list[Picture]], bool]:
        """The pictures of each conversation, and whether one answer is all that is asked for."""
        pictures = [images] if isinstance(images, Picture) else list(images)
        once = together or isinstance(images, Picture)
        return ([pictures] if once else [[picture] for picture in pictures]), once

    @torch.no_grad()
    def weigh(
        self, asked: Sequence[Sequence[Picture]], question: str, options: Sequence[Sequence[int]]
    ) -> Iterator[Tensor]:
        """log P (O,) of options, the ids of whole answers, to a question about each group of pictures."""
        more = sum(map(len, options))
        at_once = self.at_once(question, more)
        for first in range(0, len(asked), at_once):
            some = asked[first : first + at_once]
            turns = [self.tokenizer.question_messages(question, len(own)) for own in some]
            prompt, real = self._laid_out(turns, some, more)
            model = self.model
            backbone = model.language_model.model
            yield from option_scores(
                backbone, model.logits, model.encode_prompt, prompt, real, options, eos=self.tokenizer.eos_id
            )

    def reply(
        self,
        chat: Chat,
        *,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        on_token: Callable[[str], None] | None = None,
    ) -> Chat:
        """The chat with the model's answer to its last turn; `on_token` gets its words, and may raise.

        Of a chat that begins as the last one did, only what follows is read. Raises ValueError where nothing is asked,
        the model says nothing, or all of it does not fit the model.
        """
        ids = self.tokenizer.conversation_ids(chat.prompt(self.tokenizer), len(chat.pictures))
        self.model.config.language.check_conversation(len(ids), max_new_tokens)
        with self._words(on_token) as heard:
            text = go_on(
                self.recall,
                self.dtype,
                marks(ids, chat.pictures, self.tokenizer),
                lambda known: self._embedded_after(known, ids, chat.pictures),
                (self.model.language_model.model, self.model.logits, self.model.encode_prompt),
                eos=self.tokenizer.eos_id,
                max_new_tokens=max_new_tokens,
                options=SamplingOptions(temperature=temperature, top_p=top_p),
                seeds=[seed],
                on_token=heard,
                device=self.device,
                fixed=self.device.type == "cuda",
            )
        return chat.replied(self.tokenizer.decode(text))

    def _embedded_after(self, known: int, ids: Sequence[int], pictures: Sequence[Picture]) -> Tensor:
        """Embeddings (1, T, D) of what follows so many tokens, which end outside a picture."""
        unseen = pictures[ids[:known].count(self.tokenizer.image_start_id) :]
        tokens = torch.tensor([ids[known:]], device=self.device)
        return self.model.embed_conversation(tokens, self.tokenizer.image_mask(tokens), self._features(unseen))

    @torch.no_grad()
    def converse(
        self,
        conversations: Sequence[Sequence[Message]],
        images: Sequence[Sequence[Picture]],
        *,
        max_new_tokens: int = 512,
        options: SamplingOptions = SamplingOptions(),
        rules: Sequence[LogitsRule] = (),
        seeds: Sequence[int] | None = None,
        on_token: decoding.OnToken | None = None,
    ) -> list[str]:
        """The next turn of several conversations at once, each with its own pictures; batched equals alone."""
        prompt, real = self._laid_out(conversations, images, max_new_tokens)
        texts = decoding.generate(
            self.model.language_model.model,
            self.model.logits,
            self.model.encode_prompt,
            prompt,
            real,
            eos=self.tokenizer.eos_id,
            max_new_tokens=max_new_tokens,
            options=options,
            rules=rules,
            seeds=seeds,
            on_token=on_token,
            fixed=self.device.type == "cuda",
        )
        return [self.tokenizer.decode(text).strip() for text in texts]

    def _laid_out(
        self, conversations: Sequence[Sequence[Message]], images: Sequence[Sequence[Picture]], more: int
    ) -> tuple[Tensor, Tensor]:
        """Left-padded embeddings (B, T, D) and what of them is real (B, T); `more` tokens must fit behind them."""
        pairs = zip(conversations, images, strict=True)
        ids = [self.tokenizer.understanding_ids(turns, len(own)) for turns, own in pairs]
        tokens, real = (part.to(self.device) for part in self.tokenizer.pad_left(ids))
        self.model.config.language.check_conversation(tokens.shape[1], more)
        features = self._features([picture for own in images for picture in own])
        return self.model.embed_conversation(tokens, self.tokenizer.image_mask(tokens) & real, features), real

    def _features(self, pictures: Sequence[Picture]) -> Tensor | None:
        """What the vision encoder makes (M, N, W) of some pictures."""
        pixels = [image.preprocess(image.opened(picture), self.image_config) for picture in pictures]
        return self.model.image_features(torch.stack(pixels).to(self.device, self.dtype)) if pixels else None


def one_each(what: str, texts: str | Sequence[str], count: int) -> list[str]:
    """A text for each of `count` pictures; raises ValueError where there are neither one nor as many."""
    each = [texts] * count if isinstance(texts, str) else list(texts)
    if len(each) != count:
        raise ValueError(f"got {len(each)} {what} and {count} pictures, expected one of them, or one for each picture.")
    return each
