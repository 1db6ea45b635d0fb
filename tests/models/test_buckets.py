from itertools import product

import pytest
import torch

from dho_plugin.models.buckets import bucket_lengths, by_length, most_buckets


def test_one_bucket_for_each_length():
    order, buckets = by_length(torch.tensor([5, 3, 9, 3, 5]))
    assert order.tolist() == [1, 3, 0, 4, 2]  # from short to long, else as they came
    assert buckets == [(3, 0, 2), (5, 2, 4), (9, 4, 5)]


def test_few_buckets_are_padded():
    order, buckets = by_length(torch.tensor([5, 3, 9, 3, 5]), most=2)
    assert order.tolist() == [1, 3, 0, 4, 2]
    assert buckets == [(5, 0, 4), (9, 4, 5)]  # (3, 9) would be longer by 4 tokens


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_no_other_division_pads_less(most):
    lengths = [3, 3, 3, 4, 4, 4, 4, 6, 7, 7, 12, 13]

    def tokens(chosen):
        return sum(min(c for c in chosen if c >= own) for own in lengths)

    chosen = bucket_lengths(lengths, most)
    assert len(chosen) == most
    assert tokens(chosen) == min(tokens(c) for c in product(range(3, 14), repeat=most) if max(c) == 13)


def test_devices():
    assert most_buckets(torch.device("cpu")) is None
    assert most_buckets(torch.device("cuda")) == 3
