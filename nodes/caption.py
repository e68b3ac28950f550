"""Caption Folder: a caption for every picture in a folder of ComfyUI's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from ..janusflow_core.bulk.folder import CaptionRun, caption_pictures
from ..janusflow_core.captions import CaptionOptions, Report
from ..janusflow_core.decoding import AT_MOST
from ..janusflow_core.image import open_as_seen, pixels
from .native.asking import answer_inputs, asked, question_inputs, sampling_options
from .native.clip import JanusFlowCLIP, check_clip
from .native.compat import check_cancelled, io, show_on_node, ui, utils
from .native.files import data_folders, data_path, folder_state

EVERY = 0.5  # seconds between two looks at how far it is


class JanusFlowCaptionFolder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowCaptionFolder",
            display_name="Caption Folder (JanusFlow)",
            category="JanusFlow",
            description="Writes a caption for every picture in a folder and below it, and goes on after a stop.",
            search_aliases=["janus caption", "captioner", "batch caption", "data set", "dataset", "tagger"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load JanusFlow."),
                io.Combo.Input(
                    "folder",
                    options=data_folders(),
                    tooltip="A folder in ComfyUI's input folder, or in its output folder. Press R after adding one.",
                ),
                *question_inputs(),
                io.Combo.Input(
                    "write",
                    options=["txt", "jsonl", "csv"],
                    default="txt",
                    tooltip="A .txt beside each picture, or one table: metadata.jsonl or metadata.csv in the folder.",
                ),
                io.Combo.Input(
                    "exists",
                    options=["skip", "overwrite", "append", "prepend"],
                    default="skip",
                    tooltip="What to do about a picture that has a caption: leave it, replace it, or put the new one "
                    "behind or before it.",
                ),
                io.String.Input("trigger", default="", tooltip="A word or words to stand before every caption."),
                *answer_inputs("Each further picture of the folder adds 1."),
                io.String.Input(
                    "include", default="", advanced=True, tooltip="Only pictures like one of these: *.png, portraits/*"
                ),
                io.String.Input("exclude", default="", advanced=True, tooltip="No picture like one of these."),
                io.String.Input(
                    "separator",
                    default=", ",
                    advanced=True,
                    tooltip="What stands between trigger, old caption and new one.",
                ),
            ],
            outputs=[
                io.Combo.Output(
                    display_name="folder", tooltip="The folder again, for REPA Fine-tune: it waits for the captions."
                ),
                io.String.Output(display_name="report", tooltip="How many got a caption, what failed and why."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str, **kwargs: Any) -> int:
        return folder_state(folder)

    @classmethod
    def execute(cls, clip: Any, folder: str, write: str, **given: Any) -> io.NodeOutput:
        check_clip(clip, "Caption Folder")
        question, place = asked(given["ask"], given["question"]), data_path(folder)
        names = ("exists", "trigger", "separator")
        patterns = {name: _patterns(given[name]) for name in ("include", "exclude")}
        options = CaptionOptions(**{name: given[name] for name in names}, **patterns)
        words = {"question": question, "clip": clip.identity(), **{k: given[k] for k in ("max_new_tokens", "mode")}}
        table = None if write == "txt" else place / f"metadata.{write}"
        run = CaptionRun(place, options, words, table)
        _caption(clip, run, question, given["max_new_tokens"], given["mode"], cls.hidden)
        report = run.finish()
        assert report is not None  # there is no other process
        told = _told(report)
        show_on_node(told, cls.hidden)
        return io.NodeOutput(folder, told, ui=ui.PreviewText(told))


def _caption(
    clip: JanusFlowCLIP, run: CaptionRun, question: str, max_new_tokens: int, mode: dict[str, Any], hidden: Any
) -> None:
    options, open_picture = sampling_options(mode), partial(open_as_seen, config=clip.tokenizer.image)
    started, shown, bar = time.monotonic(), 0.0, utils.ProgressBar(len(run.names))

    def describe(pictures: Sequence[Any], seeds: Sequence[int]) -> list[str]:
        images = [pixels(picture).movedim(0, -1)[None] for picture in pictures]
        conversations = [clip.tokenize(question, image=image) for image in images]
        answers = clip.answer(conversations, max_new_tokens, options, seeds, bar=False)
        return [clip.decode(ids) for ids in answers]

    def on_caption(done: int, total: int, caption: str) -> None:
        nonlocal shown
        check_cancelled()
        bar.update_absolute(done, total)
        now = time.monotonic()
        if now - shown >= EVERY:
            shown, left = now, (now - started) / done * (total - done)
            show_on_node(f"{done} of {total}, {tqdm.format_interval(left)} left\n\n{caption}", hidden)

    caption_pictures(run, open_picture, describe, AT_MOST, mode.get("seed", 0), on_caption)


def _patterns(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", ",").split(",") if part.strip())


def _told(report: Report) -> str:
    return "\n".join([str(report), *(f"{name}: {reason}" for name, reason in report.failed.items())])
