import pytest
import torch

from dho_plugin.models.deep_prompts import DeepPrompts
from dho_plugin.models.prompts import PromptLearner
from dho_plugin.models.text_classifier import TextClassifier
from dho_plugin.models.text_paths import Plain
from dho_plugin.models.text_tower import TextTower


@pytest.fixture(params=["auto", "truncated", "plain"])
def classifier(request, text_clip):
    tower = TextTower(text_clip(text_tower=request.param))
    torch.manual_seed(0)
    learner, deep = PromptLearner(["dog", "great white shark"], tower, n_ctx=3), DeepPrompts(3, 64, 2)
    for values in (learner.ctx, *deep.layers()):
        torch.nn.init.normal_(values, std=0.5)  # so that they matter
    return TextClassifier(learner, tower, deep)


@torch.no_grad()
def plain(classifier):
    return Plain(classifier.tower, classifier.prompt_learner)(classifier.deep.layers())


def assert_right(classifier):
    torch.testing.assert_close(classifier().detach(), plain(classifier), atol=1e-5, rtol=1e-5)


def test_in_evaluation_the_features_are_computed_once(classifier):
    classifier.eval()
    with torch.no_grad():
        assert classifier() is classifier()
    assert_right(classifier)


@pytest.mark.parametrize("which", ["prompt_learner", "deep"])
def test_an_optimizer_step_is_seen(classifier, which):
    """After a step in training, and after one between two calls in evaluation."""
    learned = getattr(classifier, which)
    optimizer = torch.optim.SGD(learned.parameters(), lr=1.0)
    for mode in (True, False, False):
        classifier.train(mode)
        before = classifier().detach().clone()
        classifier().square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        assert_right(classifier)
        assert not torch.allclose(classifier(), before, atol=1e-3)


def test_loaded_prompts_are_seen(classifier):
    classifier.eval()
    before = classifier().detach().clone()
    state = {name: -values for name, values in classifier.prompt_learner.state_dict().items()}
    classifier.prompt_learner.load_state_dict(state)
    assert_right(classifier)
    assert not torch.allclose(classifier(), before, atol=1e-3)


def test_the_tower_stays_in_evaluation_and_only_prompts_learn(classifier):
    assert not classifier.train().tower.transformer.training
    learns = {id(values) for values in classifier.parameters() if values.requires_grad}
    assert learns == {id(values) for values in (classifier.prompt_learner.ctx, *classifier.deep.layers())}
