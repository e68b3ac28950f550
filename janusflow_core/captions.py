"""Captions: what is asked for them."""

from __future__ import annotations

# Questions that need no thinking up, meant for JanusFlow-1.3B: its training asked for captions in many words.
PRESETS = {
    "short": "Describe the image in one short sentence.",
    "detailed": "Describe the image in detail.",
    "tags": "List what the image shows as short tags, separated by commas.",
    "prompt": "Write the prompt from which an image generator would draw this image.",
}
