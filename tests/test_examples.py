"""What the README, the nodes and the tools show as an example comes out right: judged, not only run."""

import ast
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from PIL import Image

from janusflow_core import Chat, JanusFlowPipeline
from janusflow_core.world.judge import judge
from janusflow_core.world.talk import phrase, tells
from tools.make_crescents import things_in
from tools.make_demo_picture import PROMPTS, SEED
from tools.make_lora_picture import LORA, THINGS
from tools.make_lora_picture import SEED as LORA_SEED

ROOT = Path(__file__).resolve().parents[1]
README, LIBRARY, COMMANDS = (
    (ROOT / name).read_text("utf-8") for name in ("README.md", "docs/library.md", "docs/cli.md")
)


def test_the_library_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README + LIBRARY, re.M | re.S)
    code, again = (block for block in blocks if "import" in block)
    assert code == again
    (prompt,) = re.findall(r'generate\("(.+?)"', code)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(code, names)  # noqa: S102 - our own README
    assert len(names["pictures"]) > 1 and all(judge(picture, prompt) for picture in names["pictures"])
    answer, captions, choice = printed.getvalue().splitlines()
    assert answer == "a red circle" and all(tells(caption, prompt) for caption in ast.literal_eval(captions))
    assert re.fullmatch(r"Choice\(answer='red', probabilities={'red': 0\.9\d*, 'blue': [\d.e-]+}\)", choice), choice


def test_the_example_of_a_chat(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt = "a red circle left of a blue square"
    JanusFlowPipeline.from_pretrained("janusflow-tiny").generate(prompt, seed=8)[0].save("picture.png")
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs/answers.md").read_text("utf-8"), re.M | re.S)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code)  # noqa: S102 - our own page
    look, told, count, number = printed.getvalue().splitlines()
    assert (look, count) == ("User: [picture] Describe the image.", "User: How many objects are there?")
    assert tells(told.removeprefix("Assistant: "), prompt) and number == "Assistant: two"
    assert Chat.from_json(Path("chat.json").read_text("utf-8")).text == printed.getvalue().strip()


def test_the_commands(tmp_path):
    told = []
    for line in re.findall(r"^\| `(janusflow (?:generate|describe) [^`]+)` \|", COMMANDS, re.M):
        command = [sys.executable, "-m", "janusflow_core.cli", *shlex.split(line)[1:]]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        told.append(subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True).stdout.splitlines())
    (path,), again, answer = told
    (prompt,) = re.findall(r'^\| `janusflow generate "(.+?)"', COMMANDS, re.M)
    with Image.open(tmp_path / path) as picture:
        assert judge(picture, prompt)
    assert again == [f"janusflow_{seed}_0.png" for seed in (1, 2, 3)]
    assert answer == ["circle"]  # asked for the shape of the red object


def test_the_lora_that_ships_draws_and_names_what_the_model_never_saw():
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu")
    prompts = [phrase(*thing) for thing in THINGS]
    before = pipe.generate(prompts, seed=LORA_SEED)
    pipe.load_lora(LORA)
    after = pipe.generate(prompts, seed=LORA_SEED)
    for thing, old, new in zip(THINGS, before, after, strict=True):
        assert thing not in things_in(old) and things_in(new) == [thing]
    assert pipe.describe(after) == prompts


def test_the_picture_above_the_readme():
    pipe = JanusFlowPipeline.from_pretrained("janusflow-tiny", device="cpu")
    pictures = pipe.generate(PROMPTS, seed=SEED)
    for prompt, picture, caption in zip(PROMPTS, pictures, pipe.describe(pictures), strict=True):
        assert judge(picture, prompt) and tells(caption, prompt), (prompt, caption)
