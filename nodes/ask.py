"""Ask in a Chat: the next question of a conversation, and the model's answer."""

from __future__ import annotations

from typing import Any

from ..janusflow_core.chat import Chat
from ..janusflow_core.image import from_tensor
from .native.asking import Live, answer_inputs, sampling_options, shown
from .native.clip import check_clip
from .native.compat import io
from .native.wires import Chat as ChatWire


class JanusFlowAsk(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowAsk",
            display_name="Ask in a Chat (JanusFlow)",
            category="JanusFlow",
            description="Asks the next question of a chat about pictures, and gives the answer and the longer chat.",
            search_aliases=["janus chat", "conversation", "vqa", "follow-up", "multi turn", "llm"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Clip.Input("clip", tooltip="The CLIP of Load JanusFlow."),
                io.String.Input(
                    "question",
                    multiline=True,
                    default="Describe the image.",
                    tooltip="What to ask. Empty, where the chat ends with a question of a Chat Turn.",
                ),
                ChatWire.Input("chat", optional=True, tooltip="What was said before; without it a new chat begins."),
                io.Image.Input("image", optional=True, tooltip="One picture or a batch, shown with the question."),
                *answer_inputs("Another one gives another answer."),
            ],
            outputs=[
                io.String.Output(display_name="text", tooltip="The answer."),
                ChatWire.Output(display_name="chat", tooltip="The chat with question and answer."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip: Any,
        question: str,
        max_new_tokens: int,
        mode: dict[str, Any],
        chat: Chat | None = None,
        image: Any = None,
    ) -> io.NodeOutput:
        check_clip(clip, "Ask in a Chat")
        chat = chat or Chat()
        if question.strip() or image is not None:
            chat = chat.ask(question, [] if image is None else from_tensor(image))
        live = Live([clip.tokenizer.core.stream()], cls.hidden)
        chat = chat.replied(clip.reply(chat, max_new_tokens, sampling_options(mode), mode.get("seed", 0), live))
        answer = chat.turns[-1].text
        return io.NodeOutput(answer, chat, ui=shown([answer], cls.hidden))
