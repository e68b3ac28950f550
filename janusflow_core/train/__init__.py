"""Training: objectives, the terms of a step, the optimizer. Knows no world and no command line."""
