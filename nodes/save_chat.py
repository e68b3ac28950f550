"""Save Chat: a chat as a file that any node or program reads."""

from __future__ import annotations

from pathlib import Path

from ..janusflow_core.chat import Chat
from ..janusflow_core.partial import appearing
from .native.asking import shown
from .native.compat import folder_paths, io
from .native.wires import Chat as ChatWire


class JanusFlowSaveChat(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="JanusFlowSaveChat",
            display_name="Save Chat (JanusFlow)",
            category="JanusFlow",
            description="Writes a chat with its pictures as JSON into ComfyUI's output folder.",
            search_aliases=["janus chat", "export", "json", "conversation", "history"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                ChatWire.Input("chat", tooltip="The chat to save."),
                io.String.Input(
                    "filename_prefix",
                    default="chats/janusflow",
                    tooltip="Folder and beginning of the name, below the output folder; a number is put behind it.",
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="json", tooltip="What was written, in the form of OpenAI's chat API, pictures as PNG."
                )
            ],
        )

    @classmethod
    def execute(cls, chat: Chat, filename_prefix: str = "chats/janusflow") -> io.NodeOutput:
        root, text = folder_paths.get_output_directory(), chat.to_json()
        folder, name, number, *_ = folder_paths.get_save_image_path(filename_prefix, root)
        path = Path(folder) / f"{name}_{number:05}_.json"
        with appearing(path) as partial:
            partial.write_text(text, encoding="utf-8")
        told = [f"saved as {path.relative_to(root).as_posix()}", "", chat.text]
        return io.NodeOutput(text, ui=shown(told, cls.hidden))
