import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from dho_plugin.models.shared_prefix import attend


@pytest.mark.parametrize("queries", [1, 4])
def test_attention_as_with_a_copy_of_the_prefix_for_each_class(queries):
    heads, classes, length, prefix, width = 2, 3, 4, 5, 8
    generator = torch.Generator().manual_seed(0)
    shapes = [(classes, heads, queries, width), *[(classes, heads, length, width)] * 2, *[(heads, prefix, width)] * 2]
    q, k, v, prefix_k, prefix_v = (
        torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes
    )
    mask = torch.zeros(queries, length, dtype=torch.float64)
    mask[0, 1:] = -torch.inf
    both = [torch.cat([p.expand(classes, -1, -1, -1), x], dim=2) for p, x in ((prefix_k, k), (prefix_v, v))]
    expected = scaled_dot_product_attention(q, *both, torch.cat([torch.zeros(queries, prefix), mask], dim=1))
    packed = [x.transpose(0, 1).flatten(1, 2) for x in (q, k, v)]
    for own_mask in (mask, mask.expand(classes, -1, -1)):
        attended = attend(*packed, prefix_k, prefix_v, own_mask)
        attended = attended.view(heads, classes, queries, width).transpose(0, 1)
        torch.testing.assert_close(attended, expected, atol=1e-14, rtol=1e-12)
        inputs = [q, k, v, prefix_k, prefix_v]
        grads = [torch.autograd.grad(x.square().sum(), inputs, retain_graph=True) for x in (attended, expected)]
        for own, other in zip(*grads, strict=True):
            torch.testing.assert_close(own, other, atol=1e-13, rtol=1e-12)
