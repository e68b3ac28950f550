"""Doctor, the node, in a real server: what it says of the models that lie there."""

import shutil
from pathlib import Path

import graphs
import pytest
from graphs import GOLDEN_FOLDER, Graph, golden


@pytest.fixture(scope="module", autouse=True)
def stocked(server):
    graphs.stock(server.base / "models")


def examined(server, checkpoint: str) -> tuple[str, str]:
    """The report, and whether all is healthy, as texts."""
    graph = Graph()
    doctor = graph.add("JanusFlowDoctor", checkpoint=checkpoint)
    (report,), (healthy,) = graph.texts(server, doctor[0], doctor[1])
    return report, healthy


def test_a_server_that_works_is_found_so(server):
    report, healthy = examined(server, "janusflow-tiny")
    assert healthy == "True" and "[error]" not in report
    for word in ("ComfyUI 0.30.0", "janusflow-tiny: whole", "torch 2.", " on cpu ", "free: memory"):
        assert word in report
    assert f"{GOLDEN_FOLDER}: whole" in report  # which lies in models/janusflow, and is examined unasked
    assert str(Path.home()) not in report


def test_what_breaks_while_it_runs_is_found_by_the_next_run(server):
    folder = golden.write_folder(server.base / "models" / "janusflow" / "Broken", golden.pipeline())
    try:
        assert examined(server, "Broken")[1] == "True"
        whole = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
        report, healthy = examined(server, "janusflow-tiny")
    finally:
        shutil.rmtree(folder)
    assert healthy == "False" and "Broken" in report and "cut short" in report and "copy, download" in report
