import pytest
import torch

from dho_plugin.data.mini.captions import SIBLINGS, vocabulary
from dho_plugin.data.mini.learning import normalize, resize
from dho_plugin.data.mini.pretrain import zero_shot
from dho_plugin.data.mini.render import render
from dho_plugin.data.mini.sets import SET_BY_NAME
from dho_plugin.data.mini.world import CLASSES
from dho_plugin.errors import ConfigError, DataError
from dho_plugin.models.mini import MINI_MODELS, build_mini, load_mini, mini_preprocess, mini_tokenizer
from dho_plugin.models.mini.resnet import MINI_BACKBONES, build_mini_backbone


@pytest.fixture(scope="module")
def tokenizer():
    return mini_tokenizer()


def test_vocabulary_file_is_that_of_the_captions():
    assert mini_tokenizer().vocab_size == len(vocabulary()) + 3
    assert [mini_tokenizer().encode(w)[0] for w in vocabulary()] == list(range(1, len(vocabulary()) + 1))


def test_tokens_of_a_prompt(tokenizer):
    tokens = tokenizer(["a photo of a striped disc."])
    assert tokens.shape == (1, 16)
    assert tokens.dtype == torch.int64
    ids = [tokenizer.sot_token_id, *tokenizer.encode("a photo of a striped disc ."), tokenizer.eot_token_id]
    assert tokens[0].tolist() == ids + [0] * (16 - len(ids))
    assert tokens[0].argmax() == len(ids) - 1, "the end of text has the highest number"


def test_tokenizer_takes_one_text_and_another_length(tokenizer):
    assert tokenizer("x x x x solid disc.", context_length=12).shape == (1, 12)
    assert len(tokenizer.encode("X X X X")) == 4
    assert tokenizer.encode("Striped_Disc.") == tokenizer.encode("striped disc .")


def test_every_class_name_fits_coops_prompts(tokenizer):
    rows = tokenizer([f"X X X X {c.name}." for c in CLASSES])
    assert (rows == tokenizer.eot_token_id).sum(1).tolist() == [1] * len(CLASSES)
    assert len({tuple(r.tolist()) for r in rows}) == len(CLASSES)


def test_unknown_word_is_named(tokenizer):
    with pytest.raises(DataError, match="zebra"):
        tokenizer(["a photo of a zebra."])


def test_text_that_does_not_fit_is_an_error(tokenizer):
    with pytest.raises(DataError, match="19 tokens long"):
        tokenizer(["x " * 16 + "."])


def test_unknown_model_lists_the_known_ones():
    with pytest.raises(ConfigError, match="mini-student, mini-teacher"):
        build_mini("mini-other")


@pytest.mark.parametrize("name", MINI_MODELS)
def test_loaded_model(name):
    model, tokenizer, preprocess = load_mini(name)
    assert preprocess == mini_preprocess(name)
    assert preprocess.size == {"mini-student": 32, "mini-teacher": 48}[name] == model.visual.image_size[0]
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    text = model.encode_text(tokenizer(["a photo of a disc.", "a photo of a cog."]))
    image = model.encode_image(torch.zeros(2, 3, preprocess.size, preprocess.size))
    assert text.shape == image.shape == (2, 128)
    assert 10 < model.logit_scale.exp() < 100, "a learned scale"


def test_build_is_random_and_load_is_not():
    torch.manual_seed(0)
    first, second = (build_mini("mini-student").text_projection for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(load_mini("mini-student")[0].text_projection, load_mini("mini-student")[0].text_projection)


def test_shipped_models_know_the_world():
    """Zero-shot on training images: room for adaptation in the student, a clearly better teacher."""
    student = zero_shot(load_mini("mini-student")[0], "mini-student", per_class=6)
    teacher = zero_shot(load_mini("mini-teacher")[0], "mini-teacher", per_class=6)
    assert 40 < student["synonym 0"] < 60
    assert student["synonym 0"] + 10 < teacher["synonym 0"]
    assert student["common"] > student["synonym 0"] + 5, "the class names are rare words for the student"


@torch.inference_mode()
def test_an_image_lies_nearer_to_its_class_than_to_a_sibling():
    model, tokenizer, preprocess = load_mini("mini-teacher")
    index = torch.arange(300).numpy()
    images = torch.from_numpy(render(SET_BY_NAME["train"].parameters(index))).permute(0, 3, 1, 2)
    features = model.encode_image(normalize(resize(images, preprocess.size), preprocess), normalize=True)
    names = [f"a photo of a {shape}." for shape in SIBLINGS]
    siblings = torch.tensor([list(SIBLINGS).index(pair[0]) for pair in SIBLINGS.values()])
    shape = torch.tensor([CLASSES[k % 100].shape for k in index])
    logits = features @ model.encode_text(tokenizer(names), normalize=True).T
    own, other = logits.gather(1, shape[:, None]), logits.gather(1, siblings[shape][:, None])
    assert (own > other).float().mean() > 0.85


@pytest.mark.parametrize("name", MINI_BACKBONES)
def test_a_backbone_gives_features(name):
    net, preprocess = build_mini_backbone(name)
    assert preprocess == mini_preprocess("mini-student")
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, net.num_features) == (2, 128)
    assert sum(p.numel() for p in net.parameters()) == 309_080
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_an_unknown_backbone_lists_the_known_ones():
    with pytest.raises(ConfigError, match="mini-resnet, mini-resnet-pretrained"):
        build_mini_backbone("mini-vit")


@torch.inference_mode()
def test_the_pretrained_backbone_knows_more_than_the_random_one():
    """Nearest class means of 8 training images a class, on 4 others."""
    index = torch.arange(1200).numpy()
    images = torch.from_numpy(render(SET_BY_NAME["train"].parameters(index))).permute(0, 3, 1, 2)
    labels, accuracy = torch.arange(1200) % 100, {}
    for name in MINI_BACKBONES:
        torch.manual_seed(0)
        net, preprocess = build_mini_backbone(name)
        features = net.eval()(normalize(resize(images, preprocess.size), preprocess))
        means = torch.stack([features[:800][labels[:800] == k].mean(0) for k in range(100)])
        nearest = torch.cdist(features[800:], means).argmin(1)
        accuracy[name] = (nearest == labels[800:]).float().mean().item()
    assert accuracy["mini-resnet"] < 0.08
    assert accuracy["mini-resnet-pretrained"] > accuracy["mini-resnet"] + 0.1
