"""Image encoders without text: names, hub, local files and what belongs to the weights."""

import pytest
import timm
import torch

from dho_plugin.engine.views import Preprocess
from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.models import backbones
from dho_plugin.models.backbones import feature_dim, is_backbone, load_backbone


@pytest.fixture
def pretrained(monkeypatch):
    """Let timm "download" weights: a model with random ones, noting what was asked for."""
    asked, create = [], timm.create_model

    def stand_in(name, pretrained, **options):
        asked.append((name, pretrained))
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(backbones.timm, "create_model", stand_in)
    return asked


@pytest.mark.parametrize(
    ("name", "tag", "expected"),
    [
        ("resnet18", "", True),
        ("resnet18.tv_in1k", "", True),
        ("mobilenetv2_100", "", True),
        ("hf-hub:someone/dino-resnet-50", "", True),
        ("dino_resnet50", "", True),
        ("ViT-B/16", "", False),
        ("RN50", "", False),
        ("ViT-B-16", "openai", False),
        ("mini-student", "", False),
        ("mini-resnet-pretrained", "", True),
        ("convnext_base", "", True),  # timm's and open_clip's
        ("convnext_base", "laion400m_s13b_b51k", False),
    ],
)
def test_which_names_have_no_text(name, tag, expected):
    assert is_backbone(name, tag) == expected


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_050", "test_vit"])
def test_features_have_the_width_that_is_said(name):
    loaded = load_backbone(name, pretrained=False)
    images = torch.rand(2, 3, loaded.preprocess.size, loaded.preprocess.size)
    assert loaded.encode_image(images).shape == (2, loaded.feature_dim)
    assert loaded.model.training
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())


def test_random_weights_get_imagenets_normalization_and_the_architectures_size():
    loaded = load_backbone("test_resnet", pretrained=False)
    assert loaded.preprocess == Preprocess(160, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert loaded.origin == "from scratch"


def test_published_weights_own_their_preprocessing(pretrained):
    loaded = load_backbone("test_resnet.r160_in1k")
    assert pretrained == [("test_resnet.r160_in1k", True)]
    half = (0.5, 0.5, 0.5)
    assert loaded.preprocess == Preprocess(160, half, half, "bilinear", "shortest", 0.95)
    assert loaded.origin == "pretrained (r160_in1k)"


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_another_size(name):
    loaded = load_backbone(name, pretrained=False, size=64)
    assert loaded.preprocess.size == 64
    assert loaded.encode_image(torch.rand(1, 3, 64, 64)).shape == (1, loaded.feature_dim)


def dino_state() -> dict[str, torch.Tensor]:
    """Return a state dict as DINO's `dino_resnet50_pretrain.pth` is: torchvision's keys, no classifier."""
    torch.manual_seed(0)
    return timm.create_model("resnet50", num_classes=0).state_dict()


def test_dinos_file_loads(tmp_path):
    state, path = dino_state(), tmp_path / "dino_resnet50_pretrain.pth"
    assert "layer4.2.conv3.weight" in state
    assert not any(key.startswith("fc.") for key in state)
    torch.save(state, path)
    loaded = load_backbone("resnet50", ckpt=str(path))
    assert loaded.feature_dim == 2048
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert loaded.preprocess.mean == (0.485, 0.456, 0.406)
    assert (loaded.preprocess.interpolation, loaded.preprocess.crop_pct) == ("bicubic", 1.0)
    tagged = load_backbone("resnet50.tv_in1k", ckpt=str(path)).preprocess  # the tag's own file, fetched elsewhere
    assert (tagged.interpolation, tagged.crop_pct) == ("bilinear", 0.875)


def test_dinos_weights_by_their_name(tmp_path, monkeypatch):
    """The file is fetched from where it is published; here from a folder."""
    state, path = dino_state(), tmp_path / "dino_resnet50_pretrain.pth"
    torch.save(state, path)
    arch, facts = backbones.PUBLISHED["dino_resnet50"]
    assert facts["url"].endswith("/dino_resnet50_pretrain.pth")
    monkeypatch.setitem(backbones.PUBLISHED, "dino_resnet50", (arch, facts | {"url": path.as_uri()}))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    loaded = load_backbone("dino_resnet50")
    for key, value in loaded.model.state_dict().items():
        assert torch.equal(value, state[key]), key
    assert loaded.preprocess == load_backbone("resnet50", ckpt=str(path)).preprocess
    assert loaded.origin == "pretrained (dino)"
    path.unlink()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "other"))
    with pytest.raises(CheckpointError, match=r"dino_resnet50 from the hub.*MODEL.BACKBONE.CKPT"):
        load_backbone("dino_resnet50")


def test_weights_that_were_learned_squashed_are_shown_squashed(monkeypatch):
    facts = {"pretrained_cfg_overlay": {"crop_mode": "squash"}}
    create = timm.create_model
    monkeypatch.setattr(
        backbones.timm, "create_model", lambda name, pretrained, **more: create(name, **more | facts, pretrained=False)
    )
    assert load_backbone("test_resnet").preprocess.resize_mode == "squash"
    assert load_backbone("test_resnet", pretrained=False).preprocess.resize_mode == "shortest"


def test_a_files_classifier_is_left_out(tmp_path):
    whole = timm.create_model("test_resnet", num_classes=7)
    path = tmp_path / "whole.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in whole.state_dict().items()}}, path)
    loaded = load_backbone("test_resnet", ckpt=str(path))
    images = torch.rand(2, 3, 160, 160)
    expected = whole.eval().forward_head(whole.forward_features(images), pre_logits=True)
    torch.testing.assert_close(loaded.model.eval()(images), expected)


def test_a_file_of_another_architecture_is_refused(tmp_path):
    torch.save(timm.create_model("test_efficientnet", num_classes=0).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        CheckpointError, match=r"MODEL.BACKBONE.CKPT.*other.pth does not fit test_resnet: .* and 152 more"
    ):
        load_backbone("test_resnet", ckpt=str(tmp_path / "other.pth"))


def test_a_file_with_code_is_not_unpickled(tmp_path):
    torch.save({"model": timm.create_model("test_resnet")}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="not plain tensors"):
        load_backbone("test_resnet", ckpt=str(tmp_path / "code.pth"))


def test_without_a_network_the_message_says_what_to_do(monkeypatch):
    def fail(name, pretrained, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(backbones.timm, "create_model", fail)
    with pytest.raises(CheckpointError, match=r"resnet18.*no route.*MODEL.BACKBONE.CKPT.*PRETRAINED False"):
        load_backbone("resnet18")


def test_widths_of_the_papers_students():
    widths = {"resnet18": 512, "resnet50": 2048, "mobilenetv2_100": 1280}
    for name, width in widths.items():
        with torch.device("meta"):
            assert feature_dim(timm.create_model(name, num_classes=0)) == width


def test_the_mini_worlds_student():
    scratch, pretrained = (load_backbone(name) for name in ("mini-resnet", "mini-resnet-pretrained"))
    assert scratch.preprocess.size == pretrained.preprocess.size == 32
    images = torch.rand(2, 3, 32, 32)
    assert scratch.encode_image(images).shape == (2, scratch.feature_dim)
    moved = [module for module in pretrained.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert all(module.num_batches_tracked > 0 for module in moved)  # it was trained
    with pytest.raises(ConfigError, match="mini-resnet ships with what it needs"):
        load_backbone("mini-resnet", size=64)
