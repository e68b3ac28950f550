"""What ComfyUI sees of JanusFlow: the list of nodes and the folder for their models."""

from __future__ import annotations

from .ask import JanusFlowAsk
from .caption import JanusFlowCaptionFolder
from .choose import JanusFlowChoose
from .decode import JanusFlowVAEDecode
from .describe import JanusFlowDescribe
from .doctor import JanusFlowDoctor
from .encode import JanusFlowEncodePrompt
from .finetune import JanusFlowREPAFineTune
from .load import JanusFlowLoader
from .load_chat import JanusFlowLoadChat
from .native.compat import ComfyExtension, io
from .native.files import register_folders
from .number import JanusFlowNumber
from .retry import JanusFlowRetry
from .sample import JanusFlowSampler
from .save_chat import JanusFlowSaveChat
from .score import JanusFlowScore
from .sheet import JanusFlowSheet
from .structured import JanusFlowJSON
from .sweep import JanusFlowSweep
from .turn import JanusFlowChatTurn
from .yes_no import JanusFlowYesNo

NODES: list[type[io.ComfyNode]] = [
    JanusFlowLoader,
    JanusFlowEncodePrompt,
    JanusFlowSampler,
    JanusFlowVAEDecode,
    JanusFlowDescribe,
    JanusFlowChoose,
    JanusFlowYesNo,
    JanusFlowNumber,
    JanusFlowJSON,
    JanusFlowChatTurn,
    JanusFlowAsk,
    JanusFlowSaveChat,
    JanusFlowLoadChat,
    JanusFlowScore,
    JanusFlowRetry,
    JanusFlowCaptionFolder,
    JanusFlowREPAFineTune,
    JanusFlowSweep,
    JanusFlowSheet,
    JanusFlowDoctor,
]


class JanusFlowExtension(ComfyExtension):
    async def on_load(self) -> None:
        register_folders()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
