import open_clip
import pytest
import torch

from dho_plugin.errors import ConfigError
from dho_plugin.models.deep_prompts import DeepPrompts
from dho_plugin.models.mini import MINI_MODELS, build_mini, mini_tokenizer
from dho_plugin.models.text_tower import TextTower, checkpoint_text

PROMPTS = ["a dog.", "a photo of a very large cat, sleeping.", ""]


def assert_as_encode_text(clip, prompts):
    tower, tokens = TextTower(clip), clip.tokenizer(prompts)
    features = tower(tower.embed(tokens), tower.eot(tokens))
    torch.testing.assert_close(features, clip.model.encode_text(tokens), atol=1e-5, rtol=1e-5)
    assert features.std(dim=0).mean() > 1e-2  # the prompts are told apart, so the comparison says something


def test_openai(tiny_clip):
    assert_as_encode_text(tiny_clip, PROMPTS)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (open_clip.CLIP, {}),
        (open_clip.CustomTextCLIP, {}),
        (open_clip.CustomTextCLIP, {"pool_type": "eos", "eos_id": 49407}),
        (open_clip.CLIP, {"pool_type": "eos", "eos_id": 49407}),
        (open_clip.CustomTextCLIP, {"no_causal_mask": True}),
        (open_clip.CustomTextCLIP, {"proj_bias": True}),
        (open_clip.CustomTextCLIP, {"proj_type": "none"}),
        (open_clip.CLIP, {"ls_init_value": 0.5}),
    ],
)
def test_open_clip(text_clip, kind, text):
    assert_as_encode_text(text_clip(kind, **text), PROMPTS)


@pytest.mark.parametrize("name", MINI_MODELS)
def test_mini(text_clip, name):
    torch.manual_seed(0)
    assert_as_encode_text(text_clip(build_mini(name), mini_tokenizer()), ["a photo of a disc.", "a striped star."])


def test_published_formulas_in_float64(tiny_clip, reference_text):
    tower, tokens = TextTower(tiny_clip), tiny_clip.tokenizer(PROMPTS)
    eot = torch.tensor([row.tolist().index(49407) for row in tokens])
    assert torch.equal(tower.eot(tokens), eot)
    prompts = tower.embed(tokens)
    torch.testing.assert_close(tower(prompts, eot).double(), reference_text(prompts.double(), eot), atol=1e-5, rtol=0)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("n_ctx", [1, 4])
def test_deep_prompts_features_and_gradients_as_published(tiny_clip, reference_text, n_ctx, depth):
    tower = TextTower(tiny_clip)
    tokens = tiny_clip.tokenizer(["X X X X dog.", "X X X X great white shark."])
    deep = DeepPrompts(n_ctx, tower.width, depth)
    ours = [tower.embed(tokens).requires_grad_(), *deep.layers()]
    with torch.no_grad():
        for prompts in ours[1:]:
            prompts.mul_(50)  # far from zero, so that they matter
    theirs = [p.detach().double().requires_grad_() for p in ours]
    features = tower(ours[0], tower.eot(tokens), ours[1:])
    expected = reference_text(theirs[0], tower.eot(tokens), theirs[1:])
    assert len(ours) == depth
    assert (features.double() - expected).norm() < 1e-5 * expected.norm()
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (expected * direction).sum().backward()
    (features * direction.float()).sum().backward()
    for own, other in zip(ours, theirs, strict=True):
        assert other.grad.norm() > 1e-3
        assert (own.grad.double() - other.grad).norm() < 1e-5 * other.grad.norm()


def test_deep_prompts_take_the_place_of_the_context_and_of_nothing_else(tiny_clip):
    """What the context tokens became in layer 0 is read by the later tokens there, then it is gone."""
    tower = TextTower(tiny_clip)
    tokens = tiny_clip.tokenizer(["X X dog.", "X X cat."])
    prompts, eot = tower.embed(tokens), tower.eot(tokens)
    plain, deep = tower(prompts, eot), torch.zeros(2, tower.width)
    assert not torch.allclose(plain, tower(prompts, eot, [deep]))
    assert torch.equal(plain, tower(prompts, eot, []))
    assert torch.equal(plain, tower(prompts, eot, [deep[:0]]))


def test_gradient_reaches_the_prompts_only(tiny_clip):
    tower, tokens = TextTower(tiny_clip), tiny_clip.tokenizer(PROMPTS)
    prompts = tower.embed(tokens).requires_grad_()
    tower(prompts, tower.eot(tokens)).sum().backward()
    assert prompts.grad.abs().sum() > 0
    assert all(p.grad is None for p in tower.parameters())


def test_parameters_are_shared(tiny_clip):
    tower = TextTower(tiny_clip)
    assert tower.positional_embedding is tiny_clip.model.positional_embedding
    assert (tower.context_length, tower.width) == (77, 64)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"pool_type": "last"}, "pooled by 'last'"),
        ({"embed_cls": True}, "class token"),
    ],
)
def test_towers_without_a_pooled_end_token_are_refused(text_clip, text, reason):
    with pytest.raises(ConfigError, match=rf"MODEL\.BACKBONE\.NAME.*some-clip.*{reason}"):
        TextTower(text_clip(open_clip.CustomTextCLIP, **text))


def test_tower_of_another_library_is_refused(monkeypatch, text_clip):
    class Foreign(torch.nn.Module):
        pass

    clip = text_clip(open_clip.CustomTextCLIP)
    clip.model.text = Foreign()
    monkeypatch.setattr("dho_plugin.models.text_tower.HFTextEncoder", Foreign)
    with pytest.raises(ConfigError, match="another library"):
        TextTower(clip)


def test_prompts_that_are_cut_behind_their_end(tiny_clip):
    tower, tokens = TextTower(tiny_clip), tiny_clip.tokenizer(PROMPTS)
    eot = tower.eot(tokens)
    cut = tower(tower.embed(tokens[:, : int(eot.max()) + 1]), eot)
    assert eot.max() < 20
    torch.testing.assert_close(cut, tiny_clip.encode_text(tokens), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("depth", [1, 3])
def test_checkpointing_changes_what_is_kept_and_not_the_gradient(text_clip, depth):
    clip, grads, kept = text_clip(), [], []
    tower, tokens = TextTower(clip), clip.tokenizer(PROMPTS)
    deep = DeepPrompts(2, tower.width, depth)
    for on in (False, True):
        checkpoint_text(clip, on)
        prompts, sizes = tower.embed(tokens).requires_grad_(), []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, to=sizes: to.append(x.numel()) or x, lambda x: x):
            features = tower(prompts, tower.eot(tokens), deep.layers())
        grads.append(torch.autograd.grad(features.square().sum(), [prompts, *deep.layers()]))
        kept.append(sum(sizes))
    for own, other in zip(*grads, strict=True):
        torch.testing.assert_close(own, other, atol=0, rtol=0)
    assert kept[1] < kept[0] / 4
