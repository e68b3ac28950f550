import pytest
import torch
from hypothesis import settings

# The goldens were recorded on one thread; the same examples on every run keep a failure repeatable.
torch.set_num_threads(1)
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    """Leave slow tests out unless the command line chooses with -m."""
    config.option.markexpr = config.option.markexpr or "not slow"
