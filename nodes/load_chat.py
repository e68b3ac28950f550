"""Load Chat: a chat from a file or a text."""

from __future__ import annotations

from ..janusflow_core.chat import Chat
from .native.asking import shown
from .native.compat import io
from .native.files import NO_CHAT, chat_files, chat_state, read_chat
from .native.wires import Chat as ChatWire


class JanusFlowLoadChat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowLoadChat",
            display_name="Load Chat (JanusFlow)",
            category="JanusFlow",
            description="Reads a chat that Save Chat or another program wrote, to go on with it.",
            search_aliases=["janus chat", "import", "json", "conversation", "history"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "file",
                    options=[NO_CHAT, *chat_files()],
                    default=NO_CHAT,
                    tooltip="A .json in ComfyUI's input or output folder. Press R after adding one.",
                ),
                io.String.Input(
                    "json",
                    optional=True,
                    force_input=True,
                    tooltip="The JSON itself, which counts instead of a file.",
                ),
            ],
            outputs=[ChatWire.Output(display_name="chat", tooltip="The chat, with its pictures.")],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str = NO_CHAT, json: str | None = None) -> object:
        return json if json is not None else chat_state(file)

    @classmethod
    def execute(cls, file: str = NO_CHAT, json: str | None = None) -> io.NodeOutput:
        chat = Chat.from_json(read_chat(file) if json is None else json)
        return io.NodeOutput(chat, ui=shown([chat.text], cls.hidden))
