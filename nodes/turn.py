"""Chat Turn: what one side says, put behind a chat."""

from __future__ import annotations

from typing import Any

from ..janusflow_core.chat import Chat
from ..janusflow_core.image import from_tensor
from ..janusflow_core.tokenizer import SYSTEM_PROMPT
from .native.asking import shown
from .native.compat import io
from .native.refusals import check_pictures
from .native.wires import Chat as ChatWire


class JanusFlowChatTurn(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowChatTurn",
            display_name="Chat Turn (JanusFlow)",
            category="JanusFlow",
            description="Puts a turn behind a chat, or begins one: what you say and show, or what the model said.",
            search_aliases=["janus chat", "message", "system prompt", "few shot", "conversation", "history"],
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input(
                    "text", multiline=True, default="", tooltip="What is said; may be empty beside a picture."
                ),
                io.Combo.Input(
                    "role",
                    options=["user", "assistant"],
                    default="user",
                    tooltip="Who says it: you, or the model, to show by example how it should answer.",
                ),
                ChatWire.Input("chat", optional=True, tooltip="What was said before; without it a new chat begins."),
                io.Image.Input("image", optional=True, tooltip="One picture or a batch that the user shows."),
                io.String.Input(
                    "system",
                    multiline=True,
                    default=SYSTEM_PROMPT,
                    advanced=True,
                    tooltip="What the model is told first, where a new chat begins; by default what it learnt with.",
                ),
            ],
            outputs=[ChatWire.Output(display_name="chat", tooltip="The chat with this turn.")],
        )

    @classmethod
    def execute(
        cls,
        text: str,
        role: str = "user",
        chat: Chat | None = None,
        image: Any = None,
        system: str = SYSTEM_PROMPT,
    ) -> io.NodeOutput:
        if role == "assistant" and image is not None:
            raise ValueError("Chat Turn got a picture of the assistant, who shows none: make it the user's.")
        chat = Chat(system=system.strip()) if chat is None else chat
        if image is not None:
            check_pictures(image, "Chat Turn")
        pictures = [] if image is None else from_tensor(image)
        chat = chat.ask(text, pictures) if role == "user" else chat.answer(text)
        return io.NodeOutput(chat, ui=shown([chat.text], cls.hidden))
