"""Many mixed prompts for one real ComfyUI, several in its queue at once: `python tests/soak.py [--prompts 300]`.

Draws, describes, chooses, scores and chats with several models, fails on purpose and cancels at random moments, all of
one seed; then says whether every prompt ended as it should, and whether memory, files and threads stayed in bounds.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
import uuid
from collections import Counter, deque, namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "comfy")]

import graphs  # noqa: E402 - found by the line above
from graphs import GOLDEN_FILE, GOLDEN_FOLDER, MICRO_FILE, TINY, Graph, Node  # noqa: E402

from janusflow_core.convert import convert  # noqa: E402
from janusflow_core.host.find import Json, find_comfyui, tail  # noqa: E402
from janusflow_core.host.server import Server  # noqa: E402
from janusflow_core.world.scenes import COLORS  # noqa: E402

LIMIT = 120  # seconds from the end of one prompt to that of the next, before it counts as hung
# Memory that is free goes back, and oneDNN keeps no kernels for shapes: what grows then is not a pool that fills up.
POOLS = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}
EIGHT_BITS, CRESCENT = "eight-bits.safetensors", "janusflow-tiny-crescent.safetensors"
KINDS = "draw draw_by_ksampler draw_by_lora another_model read draw_and_score answer chat".split()
Held = namedtuple("Held", "MiB files threads")  # what a server and its children hold
SCHEMA = {"type": "object", "properties": {"color": {"enum": sorted(COLORS)}}, "required": ["color"]}
BROKEN: dict[str, Callable[[Draft], Node]] = {  # words of the error, and what leads to it
    "must be a number": lambda draft: draft.drawn(draft.load(), cfg=float("nan")),
    "The prompt is empty": lambda draft: draft.drawn(draft.load(), text=" "),
    "brings no VAE": lambda draft: draft.drawn(draft.load(MICRO_FILE, "from checkpoint")),
    "options must be different texts": lambda draft: draft.asked("JanusFlowChoose", options="a\na\n" + draft.words()),
    "NoSuchNode": lambda draft: draft.add("NoSuchNode"),
}


class Draft(Graph):
    """A prompt of some kind about a picture among the inputs, the rest of it left to chance."""

    def __init__(self, dice: random.Random, picture: str) -> None:
        super().__init__()
        self.dice, self.picture = dice, picture

    def words(self) -> str:
        one, other = self.dice.sample(sorted(COLORS), 2)
        return f"a {one} {self.dice.choice(('circle', 'star'))} left of a {other} square"

    def tiny(self) -> Node:
        """The embedded model, now and then in eight bits: made so by the loader, or kept so in a file."""
        name, dtype = self.dice.choice([(TINY, "fp32")] * 4 + [(TINY, "fp8_e4m3fn"), (EIGHT_BITS, "default")])
        return self.load(name, "from checkpoint", dtype)

    def drawn(self, loaded: Node, taught: Node | None = None, text: str = "", **changed: Any) -> Node:
        """A latent by Flow Sampler, by the halves of a LoRA where there is one."""
        dice, encoded = self.dice, self.encode(taught or loaded, text or self.words())
        size = {"width": dice.choice((64, 96, 128)), "height": dice.choice((64, 96)), "batch_size": dice.randint(1, 3)}
        sampler, steps = dice.choice(("auto", "euler", "heun")), dice.randint(1, 8)
        way = {"seed": dice.getrandbits(40), "sampler": sampler, "steps": steps, "cfg": dice.uniform(1, 4)}
        return self.flow(taught or loaded, encoded, **{**size, **way, **changed})

    def decoded(self, latent: Node, loaded: Node, **save: Any) -> Node:
        image = self.add("VAEDecode", samples=latent, vae=loaded[2])
        self.add("SaveImage" if save else "PreviewImage", images=image, **save)
        return image

    def asked(self, kind: str, **inputs: Any) -> Node:
        """A node that answers a question which no cache has the answer of."""
        shown = {"image": self.add("LoadImage", image=self.picture), "pictures": "one by one"}
        return self.add(kind, clip=self.tiny()[1], question=f"What color is {self.words()}?", **shown, **inputs)

    def draw(self) -> None:
        loaded = self.tiny()
        self.decoded(self.drawn(loaded), loaded, filename_prefix="soak")

    def draw_by_ksampler(self) -> None:
        loaded, dice = self.tiny(), self.dice
        encoded, latent = self.encode(loaded, self.words()), self.empty(dice.choice((64, 96)), 96, dice.randint(1, 3))
        chance = {"seed": dice.getrandbits(40), "steps": dice.randint(1, 8)}
        self.decoded(self.ksampler(loaded, encoded, encoded[1], latent, **chance), loaded)

    def draw_by_lora(self) -> None:
        loaded, strength = self.tiny(), self.dice.choice((0.5, 1.0))
        chosen = {"lora_name": CRESCENT, "strength_model": strength, "strength_clip": strength}
        taught = self.add("LoraLoader", model=loaded, clip=loaded[1], **chosen)
        self.show(self.describe(taught[1], self.decoded(self.drawn(loaded, taught), loaded)))

    def another_model(self) -> None:
        loaded = self.load(self.dice.choice((GOLDEN_FILE, GOLDEN_FOLDER, MICRO_FILE)))
        self.save(self.drawn(loaded))
        self.show(self.describe(loaded[1], self.add("LoadImage", image=self.picture), self.words()))

    def read(self) -> None:
        sampling = {"temperature": 0.8, "top_p": 0.95, "seed": self.dice.getrandbits(40)}
        image = self.add("LoadImage", image=self.picture)
        self.show(self.describe(self.tiny()[1], image, tokens=self.dice.randint(4, 40), **sampling))

    def draw_and_score(self) -> None:
        loaded = self.tiny()
        image = self.decoded(self.drawn(loaded), loaded)
        self.add("JanusFlowScore", clip=loaded[1], image=image, prompt=self.words(), keep=1, by="parts")

    def answer(self) -> None:
        self.asked("JanusFlowChoose", options="\n".join(self.dice.sample(sorted(COLORS), 3)))
        self.asked("JanusFlowJSON", schema=json.dumps(SCHEMA), max_new_tokens=64)

    def chat(self) -> None:
        clip, image = self.tiny()[1], self.add("LoadImage", image=self.picture)
        turn = self.add("JanusFlowChatTurn", text=self.words(), role="user", image=image, system="")
        answer = {"clip": clip, "mode": "greedy", "max_new_tokens": 16}
        first = self.add("JanusFlowAsk", question="", chat=turn, **answer)
        self.show(self.add("JanusFlowAsk", question="How many are there?", chat=first[1], **answer))

    def broken(self) -> str:
        """Must fail; returns words of the error."""
        self.show(BROKEN[wrong := self.dice.choice(sorted(BROKEN))](self))
        return wrong


@dataclass
class Job:
    """A prompt, what is planned for it, and what became of it."""

    kind: str
    prompt: Json
    fails: str  # words of the error that is meant
    cancel: str  # deleted or interrupted, if it comes to that in time
    delay: float  # seconds from being sent (deleted) or begun (interrupted) until then
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    due: float = float("inf")  # when to cancel
    began: float = 0.0
    seconds: float = 0.0
    ends: list[str] = field(default_factory=list)  # success, error, interrupted, deleted or refused
    error: str = ""


def plan(count: int, dice: random.Random, cancel: float, pictures: list[str]) -> list[Job]:
    """So many prompts, every kind equally often, some of them broken, some to be cancelled."""
    kinds = ["broken" if number % 13 == 0 else KINDS[number % len(KINDS)] for number in range(count)]
    jobs = []
    for kind in dice.sample(kinds, count):
        draft = Draft(dice, dice.choice(pictures))
        fails = getattr(draft, kind)() or ""
        cancelled = dice.choice(("deleted", "interrupted")) if not fails and dice.random() < cancel else ""
        jobs.append(Job(kind, draft.prompt, fails, cancelled, dice.uniform(0, 0.3)))
    return jobs


class Crowd:
    """Everyone who uses one server at once, over one connection."""

    def __init__(self, server: Server, dice: random.Random, progress: tqdm) -> None:
        self.server, self.dice, self.progress, self.client = server, dice, progress, uuid.uuid4().hex
        self.socket = server._connect(self.client)
        self.jobs, self.open = dict[str, Job](), dict[str, Job]()

    def drive(self, jobs: list[Job]) -> None:
        """Sends all, keeping three to eight in the queue, until all ended; raises TimeoutError when one hangs."""
        todo, self.last_end = deque(jobs), time.monotonic()
        while todo or self.open:
            while todo and len(self.open) < self.dice.randint(3, 8):
                self.send(todo.popleft())
            self.listen()
            for job in [job for job in self.open.values() if job.due <= time.monotonic()]:
                self.cancel(job)
            if self.open and time.monotonic() - self.last_end > LIMIT:
                raise TimeoutError(f"no end for {LIMIT} s: {[*self.open.values()]}; log:\n{tail(self.server.log())}")

    def send(self, job: Job) -> None:
        try:
            job.id = self.server._post_prompt(job.prompt, None, self.client)["prompt_id"]
        except RuntimeError as error:
            job.error = str(error)
            return self.finish(job, "refused")
        self.jobs[job.id] = self.open[job.id] = job
        job.due = time.monotonic() + job.delay if job.cancel == "deleted" else job.due

    def listen(self) -> None:
        """Hears the next message, if there is one within a twentieth of a second."""
        try:
            message = self.server._receive(self.socket, time.monotonic() + 0.05)
        except TimeoutError:
            return
        event = {"data": {}} if isinstance(message, bytes) else json.loads(message)
        job, data = self.jobs.get(event["data"].get("prompt_id", "")), event["data"]
        if job and event["type"] == "execution_start":
            job.began = time.monotonic()
            job.due = job.began + job.delay if job.cancel == "interrupted" else job.due
        elif job and event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
            job.ends.append(event["type"].removeprefix("execution_"))
            job.error = data.get("exception_message", "")
        elif job and event["type"] == "executing" and data["node"] is None:
            self.finish(job, *([] if job.id in self.open else ["closed again"]))

    def finish(self, job: Job, *end: str) -> None:
        self.last_end, job.ends = time.monotonic(), [*job.ends, *end]
        job.seconds = self.last_end - job.began if job.began else 0.0
        self.open.pop(job.id, None)
        self.progress.update()

    def cancel(self, job: Job) -> None:
        """Interrupts a running prompt, or deletes one that waits, which then ends without a message."""
        job.due = float("inf")
        if job.cancel == "interrupted":
            return self.server.interrupt(job.id)
        self.server._post("/queue", {"delete": [job.id]})
        # In this order: a prompt that ends in between has left the queue for the history.
        if job.id not in str(self.server.get("/queue")) and not self.server.history(job.id):
            self.finish(job, "deleted")


def held(server: Server) -> Held:
    """Once it has let go of all that it can: models and results."""
    server._post("/free", {"unload_models": True, "free_memory": True})
    main, seen, deadline = psutil.Process(server._process.pid), [0.0], time.monotonic() + 30
    while time.monotonic() < deadline and (len(seen) < 4 or max(seen[-4:]) - min(seen[-4:]) > 1):
        time.sleep(0.5)
        everyone = [main, *main.children(recursive=True)]
        seen.append(sum(process.memory_info().rss for process in everyone) / 2**20)
    files = sum(process.num_handles() if psutil.WINDOWS else process.num_fds() for process in everyone)
    return Held(seen[-1], files, sum(process.num_threads() for process in everyone))


def picture_bytes(server: Server) -> bytes:
    """The file of the one prompt that is sent at the start and at the end, drawn anew; RuntimeError if it fails."""
    draft = Draft(random.Random(1), "")
    draft.draw()
    result = server.run(draft.prompt, timeout=LIMIT)
    kept = [event for event in result.events if event["type"] == "execution_cached" and event["data"]["nodes"]]
    if result.status != "success" or kept:
        raise RuntimeError(f"a plain prompt ended as {result.status}, {result.error}, or was not drawn anew: {kept}")
    return b"".join(server.output_path(image).read_bytes() for image in result.images)


def faults_of(job: Job, history: Json) -> Iterator[str]:
    """What a prompt did that it should not have done."""
    allowed = {"error", "refused"} if job.fails else {"success", job.cancel}
    end, ran = " and ".join(job.ends), job.ends[0] not in ("deleted", "refused")
    if end not in allowed or job.fails not in job.error:
        yield f"ended as {end} {job.error!r}, expected one of {sorted(allowed)} {job.fails!r}"
    if bool(history) != ran or (ran and f"execution_{end}" not in dict(history["status"]["messages"])):
        yield f"ended as {end}, but the history has {history.get('status', 'nothing of it')}"
    if end == "success" and not history.get("outputs"):
        yield "succeeded without an output"


def faults(server: Server, jobs: list[Job], warm: Held, end: Held, growth: float) -> Iterator[str]:
    """A sentence for all that does not hold, once all prompts have ended."""
    for number, job in enumerate(jobs):
        yield from (f"Prompt {number} ({job.kind}) {fault}." for fault in faults_of(job, server.history(job.id)))
    log = "\n".join(line for line in server.log().splitlines() if "INFO" not in line)  # which other threads write
    for line in re.findall(r"(.+)\n+.*Traceback \(most recent call last\)", log):
        if not any(words in line for words in ("The above exception", "During handling of the", *BROKEN)):
            yield f"The log holds a traceback that no broken prompt asked for, under {line!r}."
    if any(server.get("/queue").values()):
        yield "The queue is not empty at the end."
    for name, before, after, bound in zip(Held._fields, warm, end, (growth * warm.MiB, 10, 10), strict=True):
        if after > before + bound:
            yield f"After the warm-up {name} grew from {before:.0f} to {after:.0f}, by more than {bound:.0f}."


def report(jobs: list[Job], warm: Held, end: Held, seconds: float) -> Json:
    """What came of the prompts, in numbers."""
    ends, slowest = Counter(end for job in jobs for end in job.ends), max(jobs, key=lambda job: job.seconds)
    return {
        "prompts": len(jobs),
        "succeeded": ends["success"],
        "failed as meant": sum(bool(job.fails and job.fails in job.error) for job in jobs),
        "interrupted, deleted": f"{ends['interrupted']}, {ends['deleted']}",
        "seconds": round(seconds),
        "slowest": f"{slowest.seconds:.1f} s ({slowest.kind})",
        **{name: f"{before:.0f} → {after:.0f}" for name, before, after in zip(Held._fields, warm, end, strict=True)},
        "growth": f"{end.MiB / warm.MiB - 1:+.1%}",
    }


def soak(prompts: int = 300, seed: int = 0, cancel: float = 0.15, growth: float = 0.05) -> tuple[Json, list[str]]:
    """A report of a server that was sent so many prompts, which may let memory grow by `growth` after the first third,
    and its faults; raises TimeoutError when a prompt hangs, RuntimeError when the server dies or draws no more."""
    dice, begun = random.Random(seed), time.monotonic()
    with Server(
        find_comfyui(), pack=ROOT, pack_name="ComfyUI-JanusFlow", env={"OMP_NUM_THREADS": "1", **POOLS}
    ) as server:
        graphs.stock(server.base / "models")
        convert(TINY, server.base / "models" / "checkpoints" / EIGHT_BITS, quantize="int8")
        jobs = plan(prompts, dice, cancel, graphs.upload(server, server.base / "temp", graphs.LEFT_RIGHT, graphs.STARS))
        with tqdm(total=prompts, unit="prompt") as progress:
            crowd, first = Crowd(server, dice, progress), picture_bytes(server)
            crowd.drive(jobs[: prompts // 3])
            warm = held(server)
            crowd.drive(jobs[prompts // 3 :])
            end = held(server)
        found = list(faults(server, jobs, warm, end, growth))
        crowd.socket.close()
        if picture_bytes(server) != first:
            found.append("The same prompt gave other picture bytes at the end than at the start.")
    return report(jobs, warm, end, time.monotonic() - begun), found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--prompts", 300), ("--seed", 0)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--cancel", type=float, default=0.15, metavar="SHARE", help="of the prompts is cancelled")
    parser.add_argument("--report", type=Path, metavar="FILE.json")
    options = parser.parse_args()
    told, found = soak(options.prompts, options.seed, options.cancel)
    if options.report:
        options.report.write_text(json.dumps({**told, "faults": found}, indent=2), encoding="utf-8")
    rows = (told, ["---"] * len(told), map(str, told.values()))
    sys.stdout.write("\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *found, ""]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
