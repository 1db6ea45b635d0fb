"""A host's data for DHO: the same view for the teacher, all training images, keys of classes."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dho_plugin.errors import ConfigError, DataError
from dho_plugin.hosts.data import SameView, all_training_images, class_keys, show_teacher, unlabeled_stream


def items(*pairs):
    return [SimpleNamespace(impath=path, label=label) for path, label in pairs]


def draws(image):
    return torch.tensor([image, random.random(), np.random.rand(), torch.rand(()).item()])


def test_both_transforms_draw_the_same_numbers():
    first, second = SameView(draws, lambda image: -draws(image)).pair()
    seen = [(first(image), second(image)) for image in range(5)]
    assert all(torch.equal(a, -b) for a, b in seen)
    assert len({tuple(a.tolist()[1:]) for a, _ in seen}) == 5


def seed_all():
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)


def test_the_hosts_draws_do_not_depend_on_the_teacher():
    first, second = SameView(draws, lambda image: [draws(image) for _ in range(7)]).pair()
    seed_all()
    with_teacher = [(first(image), second(image))[0] for image in range(4)]
    seed_all()
    assert all(torch.equal(seen, draws(image)) for image, seen in enumerate(with_teacher))


def test_the_teacher_sees_the_students_views(host_trainer):
    trainer = host_trainer("Frozen_DHO")
    batch = next(iter(trainer.train_loader_x))
    assert batch["img"].shape[-1] == 32
    assert batch["img2"].shape[-1] == 48
    smaller = torch.nn.functional.interpolate(batch["img2"], 32, mode="bicubic", antialias=True)
    for mine, its in zip(smaller, batch["img"], strict=True):
        same, mirrored = (mine - its).abs().mean(), (mine - its.flip(-1)).abs().mean()
        assert same < 0.5 * mirrored


def test_a_teacher_of_the_same_size_needs_no_second_view(host_trainer, tiny_weights):
    trainer = host_trainer("Frozen_DHO", "TRAINER.DHO.TEACHER.CKPT", tiny_weights[0])
    assert trainer._teacher_key == "img"
    assert "img2" not in next(iter(trainer.train_loader_x))


def test_several_views_are_refused(host_trainer):
    with pytest.raises(ConfigError, match=r"several views of an image \(DATALOADER\.K_TRANSFORMS"):
        host_trainer("Frozen_DHO", "DATALOADER.K_TRANSFORMS", "2")


def test_all_training_images_once(host_trainer):
    trainer = host_trainer("Frozen")
    images = all_training_images(trainer.cfg, trainer.dm.dataset)
    paths = [item.impath for item in images]
    assert len(paths) == len(set(paths)) == 24
    assert paths[:8] == [item.impath for item in trainer.dm.dataset.train_x]
    assert all("/train/" in path for path in paths)


def test_a_hosts_own_unlabeled_images_come_first(small_host):
    dataset = SimpleNamespace(train_x=items(("a", 0)), train_u=items(("a", 0), ("b", 0)), val=None, test=[])
    assert [item.impath for item in all_training_images(None, dataset)] == ["a", "b"]


def test_nothing_is_learned_from_validation_images():
    dataset = SimpleNamespace(train_x=items(("a", 0)), train_u=items(("b", 0)), val=items(("b", 0)), test=[])
    cfg = SimpleNamespace(DATASET=SimpleNamespace(NAME="Any"))
    with pytest.raises(DataError, match="Any: 1 of its training images are test or validation images"):
        all_training_images(cfg, dataset)


def test_the_unlabeled_batches_go_over_all_images(host_trainer):
    options = ("DATALOADER.TRAIN_U.SAME_AS_X", "False", "DATALOADER.TRAIN_U.BATCH_SIZE", "6")
    trainer = host_trainer("Frozen_DHO", *options)
    stream = unlabeled_stream(trainer.cfg, all_training_images(trainer.cfg, trainer.dm.dataset), trainer.train_loader_x)
    passes = [[path for _ in range(4) for path in next(stream)["impath"]] for _ in range(2)]
    assert len(set(passes[0])) == 24
    assert sorted(passes[0]) == sorted(passes[1])
    assert passes[0] != passes[1]
    images = all_training_images(trainer.cfg, trainer.dm.dataset)
    resumed = unlabeled_stream(trainer.cfg, images, trainer.train_loader_x, lambda: 2)
    assert [path for _ in range(4) for path in next(resumed)["impath"]] != passes[0]  # other images come first


@pytest.mark.parametrize(
    ("found", "names", "keys"),
    [
        (items(("r/n2/x", 0), ("r/n2/y", 0), ("r/n1/x", 1)), ["a", "a"], ["n2", "n1"]),
        (items(("r/all/x", 0), ("r/all/y", 1)), ["cat", "dog"], ["cat", "dog"]),
        (items(("r/n00000002/x", 0), ("r/n00000001/y", 1)), ["cat", "dog"], ["n00000002", "n00000001"]),  # ImageNet
        (items(("r/0/x", 0), ("r/1/y", 1)), ["cat", "dog"], ["0", "1"]),  # ImageNet-V2
        (items(("r/SeaLake/x", 0), ("r/Forest/y", 1)), ["Sea or Lake", "Forest"], ["Sea or Lake", "Forest"]),  # EuroSAT
        (items(("r/n2/x", 0), ("r/n3/y", 0), ("r/n1/x", 1)), ["cat", "dog"], ["cat", "dog"]),
    ],
)
def test_keys_of_classes(found, names, keys):
    assert class_keys(found, names) == keys


def test_classes_that_nothing_tells_apart():
    with pytest.raises(DataError, match="neither a folder each nor different names: \\['crane'\\] stand twice"):
        class_keys(items(("r/all/x", 0), ("r/all/y", 1)), ["crane", "crane"])


def test_show_teacher_says_what_it_needs(host_trainer):
    trainer = host_trainer("Frozen_DHO")  # its loader shows two views by now
    with pytest.raises(ConfigError, match="a list of transforms"):
        show_teacher(trainer.cfg, trainer.train_loader_x, trainer.teacher.preprocess)
