import numpy as np
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


def test_promptsrcs_sixty_templates():
    assert len(set(PROMPTSRC_TEMPLATES)) == 60
    assert all(template.count("{}") == 1 for template in PROMPTSRC_TEMPLATES)
    # the first and the last of its published list, and neighbours that it leaves out
    assert {"a photo of a {}.", "a bad photo of a {}.", "itap of the {}."} < set(PROMPTSRC_TEMPLATES)
    assert not {"a jpeg corrupted photo of the {}.", "itap of a {}."} & set(PROMPTSRC_TEMPLATES)
