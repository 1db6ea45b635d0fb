import math
import pickle
import warnings

import open_clip
import pytest
import safetensors.torch
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.pretrained import _PRETRAINED, _pcfg
from torch import nn

from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.models import clip as clip_module
from dho_plugin.models import clip_files, names
from dho_plugin.models.clip import LoadedCLIP, load_clip
from dho_plugin.models.clip_files import _configured_signature
from dho_plugin.models.names import resolve

ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 16, "patch_size": 8, "width": 64, "layers": 1},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}


@pytest.fixture
def named(monkeypatch):
    """Registers tiny architectures in open_clip, with tags, as its own JSON files and tables would."""

    def add(name, tags=None, **changes):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, {**ARCHITECTURE, **changes})
        monkeypatch.setitem(_PRETRAINED, name, {tag: _pcfg(**facts) for tag, facts in (tags or {}).items()})
        torch.manual_seed(1)
        return open_clip.create_model(name).eval()

    return add


def save(model, path, **wrapping):
    state = model.state_dict()
    torch.save({"state_dict": {"module." + k: v for k, v in state.items()}, **wrapping} if wrapping else state, path)
    return str(path)


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_openai_state_dict_of_any_size_is_read_off_the_tensors(tiny_clip, tiny_state):
    assert_same(tiny_clip.model.state_dict(), tiny_state)
    assert tiny_clip.preprocess.size == 32
    assert tiny_clip.preprocess.mean == (0.48145466, 0.4578275, 0.40821073)
    assert (tiny_clip.preprocess.interpolation, tiny_clip.preprocess.resize_mode) == ("bicubic", "shortest")
    assert tiny_clip.feature_dim == 32
    assert tiny_clip.scale == pytest.approx(100, rel=1e-6)
    assert tiny_clip.zeta == pytest.approx(0.01, rel=1e-6)
    assert tiny_clip.encode_image(torch.zeros(2, 3, 32, 32)).shape == (2, 32)
    assert tiny_clip.tokenizer(["a dog"]).shape == (1, 77)


def test_frozen_in_fp32_and_evaluation_mode(tiny_clip):
    assert not tiny_clip.model.training
    assert all(not p.requires_grad and p.dtype == torch.float32 for p in tiny_clip.model.parameters())


def test_openai_weights_use_quickgelu(tiny_clip):
    assert isinstance(tiny_clip.model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert isinstance(tiny_clip.model.visual.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def test_openai_resnet(tiny_resnet_state, tmp_path):
    torch.save(tiny_resnet_state, tmp_path / "rn.pt")
    clip = load_clip("RN50", ckpt=str(tmp_path / "rn.pt"))
    assert_same(clip.model.state_dict(), tiny_resnet_state)
    assert clip.encode_image(torch.zeros(2, 3, 32, 32)).shape == (2, 32)


class Archive(torch.nn.Module):
    """Parameters under OpenAI's nested names, and its three integers, so that torch.jit.script can save them."""

    def forward(self, x):
        return x


def nested(state):
    root = Archive()
    for key, value in state.items():
        *path, leaf = key.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Archive())
            module = module._modules[part]
        module.register_buffer(leaf, value)
    return root


def test_openai_torchscript_archive_in_fp16(tiny_state, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in tiny_state.items()}
    sizes = {"input_resolution": 32, "context_length": 77, "vocab_size": 49408}
    archive = nested({**half, **{k: torch.tensor(v) for k, v in sizes.items()}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in newer torch
        torch.jit.script(archive).save(str(tmp_path / "ViT.pt"))
    clip = load_clip("ViT-B/16", ckpt=str(tmp_path / "ViT.pt"))
    assert_same(clip.model.state_dict(), {k: v.float() for k, v in half.items()})


def test_openai_file_of_another_known_size_is_refused(tiny_state, tmp_path):
    # the shapes that tell ViT-B/32 from ViT-L/14@336px
    shapes = {"visual.positional_embedding": (50, 768), "text_projection": (64, 512)}
    torch.save({**tiny_state, **{k: torch.zeros(s) for k, s in shapes.items()}}, tmp_path / "b32.pt")
    with pytest.raises(CheckpointError, match=r"TEACHER\.CKPT.*holds OpenAI's ViT-B/32.*ViT-L-14-336"):
        load_clip("ViT-L/14@336px", ckpt=str(tmp_path / "b32.pt"), key="TRAINER.DHO.TEACHER")


def test_marked_openai_file_under_another_name_is_refused(tiny_state, tmp_path):
    torch.save({**tiny_state, "input_resolution": torch.tensor(32)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="ViT-H-14-378"):
        load_clip("ViT-H-14-378-quickgelu", tag="dfn5b", ckpt=str(tmp_path / "x.pt"))


@pytest.mark.parametrize("extra", [{}, {"epoch": 3, "name": "run"}])
def test_open_clip_pt(named, tmp_path, extra):
    model = named("tiny-named")
    clip = load_clip("tiny-named", ckpt=save(model, tmp_path / "a.pt", **extra))
    assert_same(clip.model.state_dict(), model.state_dict())
    assert clip.tokenizer(["a dog"]).shape == (1, 20)
    assert isinstance(clip.model.transformer.resblocks[0].mlp.gelu, torch.nn.GELU)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(clip.encode_image(images), model.encode_image(images))


def test_open_clip_safetensors_with_a_custom_text_tower(named, tmp_path):
    model = named("tiny-custom", custom_text=True)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "a.safetensors")
    clip = load_clip("tiny-custom", ckpt=str(tmp_path / "a.safetensors"))
    assert isinstance(clip.model, open_clip.CustomTextCLIP)
    assert_same(clip.model.state_dict(), model.state_dict())
    assert clip.feature_dim == 32


def test_old_keys_load_into_a_custom_text_tower(named, tmp_path):
    old = named("tiny-old")
    named("tiny-custom", custom_text=True)
    clip = load_clip("tiny-custom", ckpt=save(old, tmp_path / "a.pt"))
    tokens = clip.tokenizer(["a dog"])
    torch.testing.assert_close(clip.encode_text(tokens), old.encode_text(tokens))


def test_preprocessing_and_activation_follow_the_tag(named, tmp_path):
    facts = {"mean": (0.5, 0.4, 0.3), "interpolation": "bilinear", "resize_mode": "squash", "quick_gelu": True}
    path = save(named("tiny-tagged", {"dfn_like": facts, "other": {}}), tmp_path / "a.pt")
    clip = load_clip("tiny-tagged", tag="dfn-like", ckpt=path)
    assert clip.preprocess.mean == (0.5, 0.4, 0.3)
    assert (clip.preprocess.size, clip.preprocess.interpolation, clip.preprocess.resize_mode) == (
        16,
        "bilinear",
        "squash",
    )
    assert isinstance(clip.model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert load_clip("tiny-tagged", tag="other", ckpt=path).preprocess.interpolation == "bicubic"


def test_file_without_a_tag_takes_what_all_published_weights_share(named, tmp_path):
    facts = {"mean": (0.5, 0.4, 0.3), "quick_gelu": True}
    path = save(named("tiny-tagged", {"one": facts, "two": facts}), tmp_path / "a.pt")
    clip = load_clip("tiny-tagged", ckpt=path)
    assert clip.preprocess.mean == (0.5, 0.4, 0.3)
    assert isinstance(clip.model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def test_file_without_a_tag_is_refused_where_published_weights_differ(named, tmp_path):
    path = save(named("tiny-tagged", {"one": {"mean": (0.5, 0.4, 0.3)}, "two": {}}), tmp_path / "a.pt")
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE\.TAG is empty.*one, two"):
        load_clip("tiny-tagged", ckpt=path)


def test_other_architecture_names_the_differing_keys(named, tmp_path):
    path = save(named("tiny-big", embed_dim=48), tmp_path / "a.pt")
    named("tiny-small")
    with pytest.raises(CheckpointError, match=r"a\.pt does not fit tiny-small: text_projection is \(64, 48\), not"):
        load_clip("tiny-small", ckpt=path)


def test_other_resolution_is_not_interpolated_silently(named, tmp_path):
    vision = {**ARCHITECTURE["vision_cfg"], "image_size": 32}
    path = save(named("tiny-32px", vision_cfg=vision), tmp_path / "a.pt")
    named("tiny-16px")
    with pytest.raises(CheckpointError, match=r"visual\.positional_embedding is \(17, 64\), not \(5, 64\)"):
        load_clip("tiny-16px", ckpt=path)


def test_no_warning_about_random_weights(named, tmp_path, caplog):
    path = save(named("tiny-quiet"), tmp_path / "a.pt")
    caplog.clear()
    load_clip("tiny-quiet", ckpt=path)
    assert "random" not in caplog.text


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_file(named, tmp_path, suffix):
    model, path = named("tiny-cut"), tmp_path / f"a{suffix}"
    if suffix == ".pt":
        torch.save(model.state_dict(), path)
    else:
        safetensors.torch.save_file(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=rf"cannot read .*a{suffix}"):
        load_clip("tiny-cut", ckpt=str(path))


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("content", [{"state_dict": Bomb()}, [1, 2], {"epoch": 3}])
def test_only_plain_tensors_are_read(tmp_path, content):
    torch.save(content, tmp_path / "a.pt", pickle_module=pickle)
    with pytest.raises(CheckpointError, match=r"a\.pt") as caught:
        load_clip("ViT-B-32", tag="laion2b_s34b_b79k", ckpt=str(tmp_path / "a.pt"))
    assert "weights_only" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"MODEL\.BACKBONE\.CKPT: no such file: .*nothing\.pt"):
        load_clip("ViT-B/16", ckpt=str(tmp_path / "nothing.pt"))


def test_host_name_with_a_file_that_is_not_openai(named, tmp_path):
    path = save(named("tiny-custom", custom_text=True), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"no OpenAI CLIP.*text_projection"):
        load_clip("ViT-B/16", ckpt=path)


def test_openai_file_of_another_vocabulary(tiny_state, tmp_path):
    few = {**tiny_state, "token_embedding.weight": tiny_state["token_embedding.weight"][:100]}
    torch.save(few, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"100 tokens.*49408"):
        load_clip("ViT-B/16", ckpt=str(tmp_path / "a.pt"))


def test_no_network(monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip.factory, "download_pretrained", offline)
    with pytest.raises(CheckpointError, match=r"dfn5b.*no route to host.*MODEL\.BACKBONE\.CKPT"):
        load_clip("ViT-H-14-378-quickgelu", tag="dfn5b")


def test_tag_downloads_and_brings_its_own_preprocessing(named, monkeypatch, tmp_path):
    model = named("tiny-hub", {"web": {"mean": (0.5, 0.4, 0.3), "quick_gelu": True}})
    path = save(model, tmp_path / "hub.pt")
    monkeypatch.setattr(open_clip.factory, "download_pretrained", lambda *a, **k: path)
    clip = load_clip("tiny-hub", tag="web")
    assert_same(clip.model.state_dict(), model.state_dict())
    assert (clip.preprocess.size, clip.preprocess.mean) == (16, (0.5, 0.4, 0.3))
    assert isinstance(clip.model.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)


def test_every_host_name_is_openai_with_quickgelu():
    for name in names.HOST_NAMES:
        source = names.resolve(name, "", "K")
        assert source.openai
        assert names.weights_facts(source)["quick_gelu"]
    sizes = [_configured_signature(names.HOST_NAMES[name]) for name in names.HOST_NAMES]
    assert _configured_signature("ViT-L-14-336") == (577, 1024, 768)
    assert len(set(sizes)) == len(sizes)


def test_host_name_with_a_tag_takes_the_tags_activation():
    plain = names.resolve("ViT-B/16", "laion2b_s34b_b88k", "K")
    assert (plain.arch, plain.openai) == ("ViT-B-16", False)
    assert not names.weights_facts(plain)["quick_gelu"]
    assert names.weights_facts(names.resolve("ViT-B/16", "dfn2b", "K"))["quick_gelu"]
    assert names.weights_facts(names.resolve("ViT-H-14-378-quickgelu", "dfn5b", "K"))["quick_gelu"]


def test_every_published_tag_can_be_said_in_our_preprocessing():
    for arch, tag in open_clip.list_pretrained():
        facts = names.weights_facts(names.resolve(arch, tag, "K"))
        assert facts["interpolation"] in ("bicubic", "bilinear")
        assert facts["resize_mode"] in ("shortest", "squash")
        assert len(_configured_signature(arch)) == 3


def test_unknown_name_lists_the_known_and_the_close_ones():
    with pytest.raises(ConfigError, match=r"TRAINER\.DHO\.TEACHER\.NAME.*ViT-L/14@336px.*ViT-H-14-378-quickgelu"):
        load_clip("ViT-H-14-378-quikgelu", key="TRAINER.DHO.TEACHER")


def test_unknown_tag_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE\.TAG.*'laion'.*laion2b_s34b_b88k"):
        load_clip("ViT-B/16", tag="laion")


def test_neither_tag_nor_file():
    with pytest.raises(ConfigError, match=r"BACKBONE\.TAG and MODEL\.BACKBONE\.CKPT are both empty.*dfn5b"):
        load_clip("ViT-H-14-378-quickgelu")


def test_mini_takes_no_file():
    with pytest.raises(ConfigError, match=r"MODEL\.BACKBONE\.CKPT"):
        load_clip("mini-student", ckpt="x.pt")


def test_scale_of_one_element(named, tmp_path):
    model = named("tiny-scale", nonscalar_logit_scale=True)
    torch.nn.init.constant_(model.logit_scale, math.log(50.0))
    state = {**model.state_dict(), "logit_scale": model.logit_scale.detach().reshape(())}
    torch.save(state, tmp_path / "a.pt")
    assert load_clip("tiny-scale", ckpt=str(tmp_path / "a.pt")).zeta == pytest.approx(0.02, rel=1e-6)


class Normalizing(nn.Module):
    """As CoCa: features have length 1 unless something else is asked for."""

    logit_scale = torch.zeros(())

    def __init__(self):
        super().__init__()
        self.visual = nn.Identity()

    def encode_image(self, images, normalize=True):
        return nn.functional.normalize(images, dim=-1) if normalize else images

    encode_text = encode_image


def test_features_are_never_normalized():
    clip = LoadedCLIP("coca", Normalizing(), None, None)
    values = torch.tensor([[3.0, 4.0]])
    assert torch.equal(clip.encode_image(values), values)
    assert torch.equal(clip.encode_text(values), values)


def test_a_text_tower_of_another_library_has_open_clips_number_of_tokens(monkeypatch):
    """Its number of positions is none, 0 or 514."""
    model, asked = nn.Module(), []
    model.text = HFTextEncoder.__new__(HFTextEncoder)
    nn.Module.__init__(model.text)
    monkeypatch.setattr(open_clip, "get_model_tokenize_cfg", lambda _: {"context_length": 514, "vocab_size": 9})
    monkeypatch.setattr(clip_module, "_named_tokenizer", lambda arch, length: asked.append((arch, length)))
    clip_module._tokenizer(model, resolve("roberta-ViT-B-32", "laion2b_s12b_b32k", "MODEL.BACKBONE"))
    assert asked == [("roberta-ViT-B-32", None)]


def test_no_weight_is_drawn_or_left_to_chance():
    before = torch.get_rng_state()
    with clip_files._NoRandomWeights():
        made = nn.Linear(64, 64), nn.Embedding(9, 8)
        nn.init.trunc_normal_(made[0].weight)
        nn.init.xavier_uniform_(made[0].weight)
    assert all(not parameter.any() for module in made for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), before)
