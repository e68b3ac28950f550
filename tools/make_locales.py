"""Makes locales/en from what the nodes say of themselves, for translators to follow: python -m tools.make_locales"""

import json
from pathlib import Path

from janusflow_core.host.find import Json, find_comfyui
from janusflow_core.host.server import Server

CHECKOUT = Path(__file__).resolve().parents[1]
ENGLISH = CHECKOUT / "locales" / "en" / "nodeDefs.json"


def main() -> None:
    """Write the English texts of every node that a real server has from this checkout."""
    with Server(find_comfyui(), pack=CHECKOUT, pack_name="ComfyUI-JanusFlow") as server:
        texts = {name: texts_of(node) for name, node in server.object_info().items() if name.startswith("JanusFlow")}
    ENGLISH.parent.mkdir(parents=True, exist_ok=True)
    ENGLISH.write_text(json.dumps(texts, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def texts_of(node: Json) -> Json:
    """All that the editor shows of a node, under the keys by which it looks for a translation."""
    outputs = zip(node["output_name"], node["output_tooltips"], strict=True)
    return {
        "display_name": node["display_name"],
        "description": node["description"],
        "inputs": inputs_of(node["input"]),
        "outputs": {str(place): {"name": name, "tooltip": tooltip} for place, (name, tooltip) in enumerate(outputs)},
    }


def inputs_of(inputs: Json, prefix: str = "") -> Json:
    """Input -> its name and tooltip; one that comes with a choice is called CHOICE_INPUT."""
    found = {}
    for name, spec in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
        options = spec[1] if len(spec) > 1 else {}
        found[prefix + name] = {"name": name, "tooltip": options.get("tooltip", "")}
        for option in options.get("options", ()):
            if isinstance(option, dict):
                found |= inputs_of(option["inputs"], f"{prefix}{name}_")
    return found


if __name__ == "__main__":
    main()
