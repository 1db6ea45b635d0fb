import numpy as np
import open_clip
import pytest
import torch

from dho_plugin.models.templates import IMAGENET_TEMPLATES, PROMPTSRC_TEMPLATES
from dho_plugin.models.zeroshot import class_features

NAMES = ["dog", "great_white_shark", "missile"]


@pytest.mark.parametrize("batch_size", [2, 256])
def test_mean_over_templates_of_normalized_features(tiny_clip, batch_size):
    features = class_features(tiny_clip, NAMES, IMAGENET_TEMPLATES, batch_size=batch_size)
    for k, name in enumerate(["dog", "great white shark", "missile"]):
        tokens = tiny_clip.tokenizer([template.format(name) for template in IMAGENET_TEMPLATES])
        each = tiny_clip.model.encode_text(tokens).double().numpy()
        mean = (each / np.linalg.norm(each, axis=1, keepdims=True)).mean(axis=0)
        np.testing.assert_allclose(features[k].numpy(), mean / np.linalg.norm(mean), atol=1e-6)
    assert features.dtype == torch.float32
    assert not features.requires_grad


def test_promptsrc_averages_the_features_as_they_are(tiny_clip):
    features = class_features(tiny_clip, NAMES, IMAGENET_TEMPLATES, normalize_each=False)
    for k, name in enumerate(["dog", "great white shark", "missile"]):
        tokens = tiny_clip.tokenizer([template.format(name) for template in IMAGENET_TEMPLATES])
        mean = tiny_clip.model.encode_text(tokens).double().numpy().mean(axis=0)
        np.testing.assert_allclose(features[k].numpy(), mean / np.linalg.norm(mean), atol=1e-6)
    assert not torch.allclose(features, class_features(tiny_clip, NAMES, IMAGENET_TEMPLATES), atol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3, 256])
@pytest.mark.parametrize(
    "text", [{}, {"context_length": 32}, {"pool_type": "eos", "eos_id": 49407}, {"no_causal_mask": True}]
)
def test_prompts_that_are_cut_give_the_plain_features(text_clip, text, batch_size):
    names = ["dog", "dog", "great_white_shark", "sunglasses, dark glasses, shades"]
    plain, fast = (text_clip(open_clip.CustomTextCLIP, text_tower=path, **text) for path in ("plain", "auto"))
    expected = class_features(plain, names, IMAGENET_TEMPLATES)
    features = class_features(fast, names, IMAGENET_TEMPLATES, batch_size)
    torch.testing.assert_close(features, expected, atol=1e-6, rtol=1e-5)
    assert features.std(dim=0).mean() > 1e-3


def test_class_features_are_computed_on_short_prompts(text_clip, monkeypatch):
    clip, tokens = text_clip(), []
    monkeypatch.setattr(clip.model.transformer.resblocks[0].ln_1, "forward", lambda x: tokens.append(x.shape[:2]) or x)
    class_features(clip, NAMES, ["a {}.", "a photo of a {}."])
    # start, a, dog or missile, stop, end: 5; with photo, of, a: 8; a great white shark: 2 more
    assert sorted(tokens) == sorted([(2, 5), (1, 7), (2, 8), (1, 10)])


def test_promptsrcs_sixty_templates():
    assert len(set(PROMPTSRC_TEMPLATES)) == 60
    assert all(template.count("{}") == 1 for template in PROMPTSRC_TEMPLATES)
    # the first and the last of its published list, and neighbours that it leaves out
    assert {"a photo of a {}.", "a bad photo of a {}.", "itap of the {}."} < set(PROMPTSRC_TEMPLATES)
    assert not {"a jpeg corrupted photo of the {}.", "itap of a {}."} & set(PROMPTSRC_TEMPLATES)


def test_names_that_read_alike_are_said(tiny_clip, capsys):
    long = "word " * 90
    class_features(tiny_clip, [f"{long}one", "cat", f"{long}two"], ["a photo of a {}."])
    said = capsys.readouterr().out
    assert f"the classes {long + 'one'!r} and {long + 'two'!r} are the same 77 tokens" in said
    class_features(tiny_clip, ["cat", "dog", "cat"], ["a photo of a {}."])  # two classes of one name are nothing new
    assert not capsys.readouterr().out
