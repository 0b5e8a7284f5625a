"""The loss in blocks is the cross-entropy of all logits, and so are its gradients."""

import pytest
import torch
import torch.nn.functional as F

from overlays.model import loss


def reference(hidden, weight, targets, count):
    hidden, weight = (value.detach().clone().requires_grad_() for value in (hidden, weight))
    total = F.cross_entropy(hidden @ weight.T, targets, reduction="sum") / count
    total.backward()
    return total, hidden.grad, weight.grad


@pytest.mark.parametrize("block", [1 << 26, 7 * 97, 1])
@pytest.mark.parametrize("trained", ["both", "hidden", "weight"])
def test_values_and_gradients_are_those_of_all_logits(monkeypatch, block, trained):
    monkeypatch.setattr(loss, "BLOCK_VALUES", block)
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(23, 16, generator=generator), torch.randn(97, 16, generator=generator)
    targets = torch.randint(0, 97, (23,), generator=generator)
    expected, *gradients = reference(hidden, weight, targets, 5.0)
    hidden.requires_grad_(trained != "weight")
    weight.requires_grad_(trained != "hidden")
    found = loss.linear_cross_entropy(hidden, weight, targets, torch.tensor(5.0))
    (3 * found).backward()
    assert torch.allclose(found, expected, rtol=1e-6)
    for value, gradient in zip((hidden, weight), gradients, strict=True):
        assert (value.grad is None) == (not value.requires_grad)
        if value.requires_grad:
            assert torch.allclose(value.grad, 3 * gradient, atol=1e-5)


def test_logits_that_round_to_probability_zero_have_a_finite_loss():
    hidden = torch.tensor([[200.0, 0.0]], requires_grad=True)
    found = loss.linear_cross_entropy(hidden, torch.eye(2), torch.tensor([1]))
    assert found.item() == 200.0
    found.backward()
    assert hidden.grad.tolist() == [[1.0, -1.0]]


def test_autocast_computes_as_a_linear_layer_does():
    hidden, weight = torch.randn(9, 16), torch.randn(31, 16)
    targets = torch.randint(0, 31, (9,))
    with torch.autocast("cpu", torch.bfloat16):
        found = loss.linear_cross_entropy(hidden, weight, targets)
        expected = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")
    assert found.dtype == torch.float32 and torch.allclose(found, expected, rtol=1e-5)


def test_nothing_supervised_gives_zero_and_gradients_of_zero():
    hidden, weight = torch.zeros(0, 16, requires_grad=True), torch.randn(31, 16, requires_grad=True)
    found = loss.linear_cross_entropy(hidden, weight, torch.zeros(0, dtype=torch.long))
    found.backward()
    assert found.item() == 0.0 and not weight.grad.any()
