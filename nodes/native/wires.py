"""Wires that only nodes of this pack have ends for."""

from __future__ import annotations

from .compat import io

Chat = io.Custom("JANUSFLOW_CHAT")  # core's Chat: a system prompt, turns, their pictures
Sweep = io.Custom("JANUSFLOW_SWEEP")  # the two axes of a sweep: columns, rows
