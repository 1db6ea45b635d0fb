"""Linear evaluation and t-SNE on features whose structure is known."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression

from dho_plugin.analysis import logistic
from dho_plugin.analysis.features import embed, linear_evaluation, score_top
from dho_plugin.errors import DataError


def clusters(per_class, classes, seed, spread=0.3):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), per_class)
    return torch.tensor(4 * np.eye(classes)[labels] + spread * rng.normal(size=(len(labels), classes))), torch.tensor(
        labels
    )


def test_separable_features_are_learned_and_random_ones_are_not():
    train, test = clusters(20, 7, 0), clusters(30, 7, 1)
    found = linear_evaluation(*train, *test)
    assert found == (100.0, 100.0, 210)
    noise = torch.randn(210, 7, generator=torch.Generator().manual_seed(0))
    assert linear_evaluation(*train, noise, test[1]).top1 < 30


def test_logistic_regression_is_scikit_learns(monkeypatch):
    """In parts, too: same probabilities as another program's solution of the same problem."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 5
    x = torch.randn(5, 8, generator=generator)[y].double() + torch.randn(300, 8, generator=generator)
    expected = LogisticRegression(C=0.5, tol=1e-10, max_iter=5000).fit(x.numpy(), y.numpy()).predict_proba(x.numpy())
    monkeypatch.setattr(logistic, "CHUNK", 70)
    found = logistic.Logistic(x, y, c=0.5).fit().scores(x).softmax(dim=1)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-4)


def test_logistic_regression_has_the_gradient_of_its_loss():
    x, y = clusters(6, 3, 0)
    model = logistic.Logistic(x, y, c=0.1)
    model.weight.normal_(generator=torch.Generator().manual_seed(1))
    loss = model.closure()
    weight, bias = (value.clone().requires_grad_() for value in (model.weight, model.bias))
    plain = F.cross_entropy(x @ weight.T + bias, y) + weight.square().sum() / (2 * 0.1 * len(x))
    plain.backward()
    assert loss == pytest.approx(plain.item(), rel=1e-12)
    torch.testing.assert_close(model.weight.grad, weight.grad, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(model.bias.grad, bias.grad, rtol=1e-12, atol=1e-14)


def test_two_classes_have_no_top5():
    assert linear_evaluation(*clusters(20, 2, 0), *clusters(10, 2, 1)) == (100.0, None, 20)


def test_one_class_is_refused():
    with pytest.raises(DataError, match="two classes"):
        linear_evaluation(torch.randn(4, 3), torch.zeros(4, dtype=torch.int64), torch.randn(2, 3), torch.zeros(2))


def test_top5_counts_the_five_best():
    scores = torch.tensor([[6.0, 5, 4, 3, 2, 1]])
    classes = torch.tensor([10, 11, 12, 13, 14, 15])
    for label, want in ((10, (100, 100)), (14, (0, 100)), (15, (0, 0))):
        assert score_top(scores, classes, torch.tensor([label]))[:2] == want


def test_tsne_keeps_clusters_together_and_repeats_itself():
    features, labels = clusters(20, 3, 0)
    plane = embed(features)
    centres = torch.stack([plane[labels == number].mean(0) for number in range(3)])
    assert torch.cdist(plane, centres).argmin(1).tolist() == labels.tolist()
    assert torch.equal(plane, embed(features))
    with pytest.raises(DataError, match="4 images"):
        embed(features[:4])
