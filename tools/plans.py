"""What stands where in each workflow, for tools.arrange: rows of groups, a group's columns, the nodes of a column."""

from typing import NamedTuple

NOTE = "MarkdownNote"


class Group(NamedTuple):
    """A frame with a name; its kind gives the color, and another one may stand below it."""

    title: str
    kind: str
    columns: list[list[int]]
    below: "Group | None" = None


class Size(NamedTuple):
    """Pixels of a node's body: as it is saved, and the height that it may come to with what it shows."""

    width: int
    height: int
    room: int = 0


COLORS = {"model": "#3f789e", "draw": "#8A8", "ask": "#b58b2a", "train": "#a1309b", "keep": "#8AA", "other": "#b06634"}
WRITE = {"color": "#232", "bgcolor": "#353"}  # where a user writes
HIGHLIGHTED = {
    NOTE: {"color": "#222", "bgcolor": "#000"},
    "JanusFlowEncodePrompt": WRITE,
    "CLIPTextEncode": WRITE,
    "PrimitiveStringMultiline": WRITE,
    "PrimitiveString": WRITE,
}
SIZES = {
    NOTE: Size(340, 100),
    "CheckpointLoaderSimple": Size(320, 100, 130),
    "CLIPTextEncode": Size(340, 140, 150),
    "ComfySwitchNode": Size(240, 100),
    "EmptyImage": Size(300, 130, 160),
    "EmptyLatentImage": Size(300, 110, 130),
    "ImageCompositeMasked": Size(300, 170, 180),
    "ImageScale": Size(280, 150, 170),
    "ImageStitch": Size(280, 150, 190),
    "JanusFlowAsk": Size(380, 440, 470),
    "JanusFlowChatTurn": Size(340, 220, 240),
    "JanusFlowChoose": Size(360, 330, 350),
    "JanusFlowDescribe": Size(360, 350, 430),
    "JanusFlowEncodePrompt": Size(340, 200, 210),
    "JanusFlowLoader": Size(340, 130, 180),
    "JanusFlowNumber": Size(340, 300, 320),
    "JanusFlowREPAFineTune": Size(360, 560, 740),
    "JanusFlowRetry": Size(340, 480, 720),
    "JanusFlowSampler": Size(320, 480, 690),
    "JanusFlowSaveChat": Size(380, 260),
    "JanusFlowScore": Size(340, 270),
    "JanusFlowSheet": Size(280, 80, 110),
    "JanusFlowSweep": Size(340, 180, 230),
    "JanusFlowVAEDecode": Size(260, 100, 110),
    "JanusFlowYesNo": Size(340, 250, 270),
    "KSampler": Size(320, 300, 480),
    "LatentUpscale": Size(300, 130, 160),
    "LoraLoader": Size(320, 150, 160),
    "LoraModelLoader": Size(300, 110, 120),
    "MaskComposite": Size(280, 130, 150),
    "PreviewAny": Size(360, 180),
    "PreviewImage": Size(340, 380),
    "PrimitiveString": Size(260, 80),
    "PrimitiveStringMultiline": Size(340, 120),
    "RebatchImages": Size(280, 80),
    "SaveImage": Size(380, 460),
    "SaveImageTextDataSetToFolder": Size(340, 170, 190),
    "SaveLoRA": Size(300, 90, 120),
    "SetLatentNoiseMask": Size(280, 60),
    "SolidMask": Size(280, 110, 130),
    "StringReplace": Size(320, 220),
    "TextGenerate": Size(360, 330, 420),
    "VAEDecode": Size(220, 60),
    "VAEEncode": Size(260, 80),
}

WORDS_TO_PICTURE, PICTURE_TO_WORDS = "Words to a picture", "The picture to words"

PLANS: dict[str, list[list[Group]]] = {
    "JanusFlow text to image": [
        [Group("Model", "model", [[1, 6]]), Group(WORDS_TO_PICTURE, "draw", [[2], [3], [4], [5]])],
    ],
    "JanusFlow app": [
        [Group("Model", "model", [[1, 6]]), Group(WORDS_TO_PICTURE, "draw", [[2], [3], [4], [5]])],
    ],
    "JanusFlow describe image": [
        [
            Group("Model", "model", [[1, 5]]),
            Group("A picture", "draw", [[2, 6], [7]]),
            Group("What it shows", "ask", [[3, 8], [4]]),
        ],
    ],
    "JanusFlow there and back": [
        [
            Group("Model", "model", [[1, 8]]),
            Group(WORDS_TO_PICTURE, "draw", [[2], [3]]),
            Group("The picture", "keep", [[4], [5]], Group(PICTURE_TO_WORDS, "ask", [[6], [7]])),
        ],
    ],
    "JanusFlow native nodes": [
        [
            Group("Model", "model", [[1, 10]]),
            Group(WORDS_TO_PICTURE, "draw", [[2, 3, 4], [5]]),
            Group("The picture", "keep", [[6], [11], [7]], Group(PICTURE_TO_WORDS, "ask", [[8], [9]])),
        ],
    ],
    "JanusFlow use a LoRA": [
        [
            Group("Model and LoRA", "model", [[1, 8], [9]]),
            Group(WORDS_TO_PICTURE, "draw", [[2], [3]]),
            Group("The picture", "keep", [[4], [5]], Group(PICTURE_TO_WORDS, "ask", [[6], [7]])),
        ],
    ],
    "JanusFlow fine-tune": [
        [
            Group("Model", "model", [[1, 17]]),
            Group("Pictures to learn from", "draw", [[2], [3], [4, 5]]),
            Group("Training", "train", [[6], [7, 8, 9]]),
        ],
        [Group("The same prompt, before and after", "keep", [[10], [11], [13], [12, 14], [15], [16]])],
    ],
    "JanusFlow caption pictures": [
        [
            Group("Model", "model", [[1, 10]]),
            Group("Pictures", "draw", [[2], [3]]),
            Group("What there is", "keep", [[4], [5]], Group("Captions", "ask", [[7, 6], [8, 9]])),
        ],
    ],
    "JanusFlow caption and train": [
        [
            Group("Model", "model", [[1, 18]]),
            Group("Pictures to learn from", "draw", [[2], [3], [4]]),
            Group("Captions, with your word for a thing", "ask", [[5], [6], [7]]),
        ],
        [
            Group("Training", "train", [[8], [9, 10]]),
            Group("The same prompt, before and after", "keep", [[11], [12], [14], [13, 15], [16], [17]]),
        ],
    ],
    "JanusFlow image to image": [
        [
            Group("Model", "model", [[1, 11]]),
            Group("A picture to begin with", "draw", [[2], [3], [4], [12], [5]]),
        ],
        [Group("Another of it", "other", [[6, 7], [8], [9], [10]])],
    ],
    "JanusFlow inpaint": [
        [
            Group("Model", "model", [[1, 15]]),
            Group("A picture to begin with", "draw", [[2], [3], [4], [16], [5]]),
        ],
        [
            Group("What is painted anew", "keep", [[6, 7, 8], [9], [10]]),
            Group("Painting", "other", [[11], [12], [13], [14]]),
        ],
    ],
    "JanusFlow sweep": [
        [
            Group("Model", "model", [[1, 8]]),
            Group("Settings in every combination", "draw", [[2, 3], [4]]),
            Group("One sheet", "keep", [[5], [6], [7]]),
        ],
    ],
    "JanusFlow best of four": [
        [
            Group("Model and prompt", "model", [[1, 2, 9]]),
            Group("Four pictures", "draw", [[3], [4]]),
            Group("All of them", "keep", [[5], [6]], Group("The best of them", "ask", [[7], [8]])),
        ],
    ],
    "JanusFlow draw until right": [
        [
            Group("Model and prompt", "model", [[1, 2, 7]]),
            Group("Draw, look, draw again", "draw", [[3], [4]]),
            Group("The best picture", "keep", [[8, 6], [5]]),
        ],
    ],
    "JanusFlow route by an answer": [
        [
            Group("Model", "model", [[1, 14]]),
            Group("A picture", "draw", [[2], [3], [4], [5]]),
        ],
        [
            Group("A question decides", "ask", [[6, 7, 8], [9]]),
            Group("What is drawn next", "other", [[10], [11], [12], [13]]),
        ],
    ],
    "JanusFlow chat about a picture": [
        [
            Group("Model", "model", [[1, 10]]),
            Group("A picture", "draw", [[2], [3], [4], [5]]),
        ],
        [Group("A conversation about it", "ask", [[6], [7], [8, 9]])],
    ],
    "JanusFlow chat by hand": [
        [
            Group("Model", "model", [[1, 10]]),
            Group("A picture", "draw", [[2], [3], [4], [5]]),
        ],
        [Group("What was said, and what you ask now", "ask", [[6], [7], [8], [9]])],
    ],
    "JanusFlow answers as values": [
        [
            Group("Model", "model", [[1, 14]]),
            Group("A picture", "draw", [[2], [3], [4], [5]]),
        ],
        [
            Group("Questions", "ask", [[6], [9, 8], [7]]),
            Group("What the answers decide", "other", [[10], [11], [12], [13]]),
        ],
    ],
    "JanusFlow from SDXL": [
        [
            Group("Models", "model", [[1, 2, 12]]),
            Group("SDXL composes at 1024 pixels", "other", [[3, 4, 5], [6], [7]]),
            Group("JanusFlow paints at 384", "draw", [[8], [9], [10], [11]]),
        ],
    ],
    "JanusFlow to SDXL": [
        [
            Group("Models", "model", [[1, 5, 11]]),
            Group("JanusFlow composes at 384 pixels", "draw", [[2], [3], [4]]),
            Group("SDXL paints at 1024", "other", [[6, 7], [8], [9], [10]]),
        ],
    ],
}

# What App mode shows: widgets of nodes, and the nodes whose results it shows.
PICTURE_APP = ([(2, "text"), (3, "seed"), (3, "steps"), (3, "cfg")], [5])
APPS: dict[str, tuple[list[tuple[int, str]], list[int]]] = {
    "JanusFlow app": PICTURE_APP,
    "JanusFlow text to image": PICTURE_APP,
    "JanusFlow there and back": ([(2, "text"), (3, "seed"), (6, "question")], [5, 7]),
    "JanusFlow best of four": ([(2, "value"), (4, "seed")], [6, 8]),
    "JanusFlow draw until right": ([(2, "value"), (4, "seed"), (4, "tries"), (4, "until")], [5, 6]),
}
