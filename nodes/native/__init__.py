"""What our nodes stand on in ComfyUI: its internals in one place, MODEL and CLIP as it knows them, its folders."""
