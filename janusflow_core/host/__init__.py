"""A real ComfyUI as a child process, and this machine: find, start, run, examine."""
