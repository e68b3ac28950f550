"""Which numbers a machine computes in."""

import pytest
import torch

from janusflow_core import device
from janusflow_core.device import best_dtype, faster_in_bf16, products

CPU = torch.device("cpu")


@pytest.fixture
def fresh():
    """What was found out before the test is forgotten in it, and what the test finds out, after it."""
    device._cpu_is_for_bf16.cache_clear()
    yield
    device._cpu_is_for_bf16.cache_clear()


@pytest.mark.parametrize("rate, expected", [(0.1, torch.float32), (1.2, torch.float32), (2.0, torch.bfloat16)])
def test_a_cpu_computes_in_what_it_is_faster_in(fresh, monkeypatch, rate, expected):
    rates = {torch.float32: 100.0, torch.bfloat16: 100.0 * rate}
    monkeypatch.setattr(device, "products", lambda device, dtype, side, seconds: rates[dtype])
    assert best_dtype(CPU) == expected


def test_what_is_not_a_cpu_is_not_asked_as_one(fresh, monkeypatch):
    monkeypatch.setattr(device, "products", None)  # would raise
    assert best_dtype(torch.device("mps")) == torch.float32


def test_a_cpu_is_asked_once(fresh, monkeypatch):
    asked = []
    monkeypatch.setattr(device, "faster_in_bf16", lambda *given: not asked.append(given))
    assert [best_dtype(CPU), best_dtype(CPU)] == 2 * [torch.bfloat16] and len(asked) == 1


def test_products_are_counted_by_the_clock():
    assert products(CPU, torch.float32, 8, 0.01) > products(CPU, torch.float32, 512, 0.01) > 1
    assert isinstance(faster_in_bf16(CPU, 64, 0.001), bool)
