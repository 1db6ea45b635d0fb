import pytest
import torch

from dho_plugin.errors import CheckpointError, ConfigError
from dho_plugin.models.clip import LoadedCLIP
from dho_plugin.models.mini import build_mini, mini_preprocess, mini_tokenizer
from dho_plugin.models.prompts import PromptLearner
from dho_plugin.models.text_tower import TextTower

NAMES = ["dog", "great_white_shark", "missile", "sunglasses, dark glasses"]
START, END, STOP = 49406, 49407, 269  # CLIP's <start_of_text>, <end_of_text> and "."


@pytest.fixture(scope="module")
def tower(tiny_clip):
    return TextTower(tiny_clip)


def make(tower, names=NAMES, **options):
    torch.manual_seed(0)
    return PromptLearner(names, tower, **options)


def expected(learner, tower, position, names=NAMES, init=""):
    """CoOp's prompts, one class and one vector after the other, in float64: embeddings, end positions, ctx.

    Words of `init` behind the context stay before each name; what CoOp moves is as many tokens as the name alone has.
    """
    table = tower.token_embedding.weight.detach().double()
    ctx = learner.ctx.detach().double().requires_grad_()
    n, rows, ends = ctx.shape[-2], [], []
    before = {"end": n, "middle": n // 2, "front": 0}[position]
    kept = tower.tokenizer.encode(init.replace("_", " "))[n:]
    for k, name in enumerate(names):
        own, own_words = list(ctx[k] if ctx.dim() == 3 else ctx), tower.tokenizer.encode(name.replace("_", " "))
        rest = [table[i] for i in [*kept, *own_words, STOP, END]]
        moved, rest = rest[: len(own_words)], rest[len(own_words) :]
        row = [table[START], *own[:before], *moved, *own[before:], *rest]
        ends.append(len(row) - 1)
        rows.append(torch.stack(row + [table[0]] * (77 - len(row))))
    return torch.stack(rows), torch.tensor(ends), ctx


@pytest.mark.parametrize(
    "options",
    [
        {"n_ctx": 5},
        {"n_ctx": 4, "class_specific": True},
        {"ctx_init": "a_photo_of a"},
        {"n_ctx": 2, "ctx_init": "a_photo_of a"},
        {"ctx_init": "a sunglasses photo of zebrafish"},
    ],
)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_prompts_features_and_gradient_as_published(tower, reference_text, position, options):
    learner = make(tower, position=position, **options)
    prompts, ends, ctx = expected(learner, tower, position, init=options.get("ctx_init", ""))
    ours = learner()
    torch.testing.assert_close(ours.double(), prompts, atol=0, rtol=0)
    assert torch.equal(learner.eot, ends)
    reference, features = reference_text(prompts, ends), tower(ours, learner.eot)
    torch.testing.assert_close(features.double(), reference, atol=1e-5, rtol=0)
    direction = torch.randn(reference.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (reference * direction).sum().backward()
    (features * direction.float()).sum().backward()
    assert ctx.grad.abs().max() > 0.1
    assert (learner.ctx.grad.double() - ctx.grad).norm() < 1e-5 * ctx.grad.norm()


def test_init_words_are_their_embeddings(tower):
    learner = make(tower, ctx_init="a photo of_a")
    ids = [tower.tokenizer.encode(word)[0] for word in ["a", "photo", "of", "a"]]
    assert learner.n_ctx == 4
    assert torch.equal(learner.ctx, tower.token_embedding.weight[ids])


def test_init_words_at_the_end_are_the_plain_prompt(tiny_clip, tower):
    learner = make(tower, ctx_init="a photo of a")
    tokens = tiny_clip.tokenizer([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    torch.testing.assert_close(tower(learner(), learner.eot), tiny_clip.encode_text(tokens), atol=1e-5, rtol=1e-5)


def test_random_context(tower):
    shared, own = make(tower, n_ctx=16), make(tower, n_ctx=16, class_specific=True)
    assert shared.ctx.shape == (16, 64)
    assert own.ctx.shape == (4, 16, 64)
    assert own.ctx.std().item() == pytest.approx(0.02, rel=0.05)
    assert abs(own.ctx.mean().item()) < 1e-3


def test_only_the_context_learns_and_keys_are_the_originals(tower):
    learner = make(tower, n_ctx=3, position="middle")
    assert [name for name, p in learner.named_parameters() if p.requires_grad] == ["ctx"]
    shapes = {k: tuple(v.shape) for k, v in learner.state_dict().items()}
    assert shapes == {"ctx": (3, 64), "token_prefix": (4, 1, 64), "token_suffix": (4, 73, 64)}


def test_checkpoint_of_other_classes_keeps_this_runs_names(tower):
    old, new = make(tower, n_ctx=3), make(tower, ["cat"], n_ctx=3)
    torch.nn.init.ones_(old.ctx)
    state, suffix = old.state_dict(), new.token_suffix.clone()
    new.load_state_dict(state)
    assert torch.equal(new.ctx, old.ctx)
    assert torch.equal(new.token_suffix, suffix)
    new.load_state_dict({"ctx": state["ctx"]})
    assert state["token_suffix"] is not suffix
    assert tuple(state["token_suffix"].shape) == (4, 73, 64)


def test_checkpoint_of_another_context_length(tower):
    with pytest.raises(CheckpointError, match=r"\(4, 64\).*\(3, 64\).*N_CTX"):
        make(tower, n_ctx=3).load_state_dict(make(tower, n_ctx=4).state_dict())


def test_longest_prompt_that_fits(tower):
    # start + 73 context vectors + dog + stop + end = 77 tokens
    learner = make(tower, ["dog"], n_ctx=73)
    assert learner.eot.tolist() == [76]
    with pytest.raises(ConfigError, match=r"TRAINER\.COOP\.N_CTX: 73 .*'sunglasses, dark glasses'.*77"):
        make(tower, n_ctx=73)


def test_name_longer_than_the_context(tower):
    with pytest.raises(ConfigError, match=r"N_CTX: 1 .*'dog dog"):
        make(tower, ["cat", "dog " * 100], n_ctx=1)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"position": "start"}, "CLASS_TOKEN_POSITION is 'start'; allowed: end, middle, front"),
        ({"n_ctx": 0}, "N_CTX: 0"),
        ({"ctx_init": "a photo", "class_specific": True}, "CSC"),
    ],
)
def test_arguments_that_are_not_allowed(tower, options, key):
    with pytest.raises(ConfigError, match=f"TRAINER.COOP.{key}"):
        make(tower, **options)


@pytest.mark.parametrize("n_ctx", [1, 2, 4, None])
@pytest.mark.parametrize("words", ["a photo of a", "a sunglasses_photo of zebrafish"])
def test_the_first_tokens_of_the_words_learn_and_the_others_stay(tiny_clip, tower, n_ctx, words):
    learner = make(tower, n_ctx=n_ctx, ctx_init=words)
    assert learner.ctx.shape == (n_ctx or len(words.replace("_", " ").split()), 64)
    prompts = [f"{words} {name}.".replace("_", " ") for name in NAMES]
    tokens = tiny_clip.tokenizer(prompts)
    assert torch.equal(learner(), tower.embed(tokens))
    assert torch.equal(learner.eot, tower.eot(tokens))
    features = tower(learner(), learner.eot)
    torch.testing.assert_close(features, tiny_clip.encode_text(tokens), rtol=1e-5, atol=1e-6)
    features.sum().backward()
    assert learner.ctx.grad.abs().min(dim=1).values.max() > 0
    assert [name for name, _ in learner.named_parameters()] == ["ctx"]


def test_words_that_do_not_fill_the_context_are_refused(tower):
    with pytest.raises(ConfigError, match="KEY is 4, but CTX_INIT 'a photo of' has 3 tokens"):
        make(tower, n_ctx=4, ctx_init="a photo of", key="KEY")


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_mini(position):
    model = build_mini("mini-student").eval().requires_grad_(False)
    tower = TextTower(LoadedCLIP("mini-student", model, mini_tokenizer(), mini_preprocess("mini-student")))
    learner = make(tower, ["striped disc", "star"], n_ctx=4, position=position)
    assert learner.eot.tolist() == [1 + 4 + 2 + 1, 1 + 4 + 1 + 1]
    assert tower(learner(), learner.eot).shape == (2, 128)
