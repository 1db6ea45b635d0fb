"""Training on stored features: the numbers of an online run, without its encoders."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dho_plugin.engine.image_sets as image_sets
from dho_plugin import cache
from dho_plugin.engine.config import get_cfg_default
from dho_plugin.engine.evaluator import TestLogits as StoredLogits
from dho_plugin.models.student import CLIPStudent, Student
from dho_plugin.train import main

# 6 steps an epoch, 3 passes over the labeled images; one prompt a class and one test set, to be quick.
FEW = ("TRAIN.COUNT_ITER", "train_u", "DATASET.TEMPLATES", "('a {}',)", "TEST.SHIFTED", "()")
VIEWS = ("INPUT.VIEWS", "2", *FEW)
ONLINE = ("TRAINER.DHO.TEACHER.MODE", "online", "MODEL.FEATURES", "online")
TEACHER = ("TRAINER.DHO.TEACHER.MODE", "cached", "MODEL.FEATURES", "online")
BOTH = ("TRAINER.DHO.TEACHER.MODE", "cached", "MODEL.FEATURES", "cached")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DHO_CACHE", str(tmp_path / "own_cache"))
    return tmp_path / "own_cache" / "features"


def fill(line: list[str], *flags: str) -> int:
    """Fill the cache with a training's command line."""
    out = line.index("--output-dir")
    return cache.main([*flags, *line[:out], *line[out + 2 :]])


def run(line: list[str]) -> Path:
    assert main(line) == 0
    return Path(line[line.index("--output-dir") + 1])


def metrics(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["metrics"]


def logits(folder: Path) -> dict[str, torch.Tensor]:
    """Return both heads' logits on every test set, in one tensor each."""
    stored = {path.stem: StoredLogits.load(path) for path in sorted((folder / "logits").glob("*.safetensors"))}
    heads = {name: [s.logits_ce, *([] if s.logits_kd is None else [s.logits_kd])] for name, s in stored.items()}
    return {name: torch.cat(parts).float() for name, parts in heads.items()}


def losses(trainer) -> list[float]:
    """Take all steps of a started trainer's first two epochs."""
    steps = []
    for _ in range(12):
        steps.append(trainer.forward_backward(*[next(stream) for stream in trainer.streams])["loss"].item())
        trainer.update_lr(per_step=True)
    return steps


@pytest.fixture
def refuse(monkeypatch):
    """Return a function that makes every further decoding of an image fail."""

    def forbid():
        def decode(path, *options):
            raise AssertionError(f"{path} was opened")

        monkeypatch.setattr(image_sets, "ImageFile", decode)

    return forbid


@pytest.mark.parametrize(
    ("trainer", "modes"),
    [
        ("LinearProbe_DHO", TEACHER),
        ("LinearProbe_DHO", BOTH),
        ("CoOp_DHO", BOTH),
        ("VPT_DHO", TEACHER),
        ("PromptSRC_DHO", TEACHER),
        ("PromptSRC_DHO", BOTH),
        ("PromptSRC", BOTH),
        ("LinearProbe", BOTH),
    ],
)
def test_every_step_on_stored_features_has_the_loss_of_the_online_step(command, started, trainer, modes):
    line = command(trainer, "run", *VIEWS)
    who = (["teacher"] if trainer.endswith("_DHO") else []) + (["student"] if modes == BOTH else [])
    assert fill(line, "--what", ",".join(who)) == 0
    online, stored = started([*line, *ONLINE]), started([*line, *modes])
    assert set(stored.stored) == set(who)
    assert online.stored == {}
    expected = losses(online)
    assert len(set(expected)) > 6
    # What is left is the order of summation; where it tips a float16 of the teacher, a thousandth of a logit.
    assert losses(stored) == pytest.approx(expected, rel=1e-4)


def test_a_whole_run_on_stored_features_decodes_nothing_and_ends_with_the_same_model(command, tmp_path, refuse):
    options = (
        "DATASET.NUM_VAL_SHOTS",
        "2",
        "TRAINER.DHO.SEARCH",
        "True",
        "TEST.SHIFTED",
        "('ImageNetV2', 'ImageNetA')",
    )
    line = command("LinearProbe_DHO", "online", *VIEWS, *options)
    assert fill(line) == 0
    online = run([*line, *ONLINE])
    refuse()
    stored = run(_elsewhere(line, tmp_path / "stored", *BOTH))
    assert metrics(stored) == metrics(online)
    a, b = logits(stored), logits(online)
    assert a.keys() == b.keys() == {"val", "imagenetv2", "imagenet_a", "validation"}
    for name in a:
        assert (a[name] - b[name]).abs().max() < 0.02, name
        assert b[name].abs().max() > 1
    log = (stored / "log.txt").read_text()
    assert "The teacher's features (train) are read from" in log
    assert "The student's features (validation) are read from" in log


def _elsewhere(line: list[str], out: Path, *options: str) -> list[str]:
    line = list(line)
    line[line.index("--output-dir") + 1] = str(out)
    return [*line, *options]


def test_one_cache_serves_other_prompts_temperatures_shots_seeds_and_half_of_the_classes(command, tmp_path, refuse):
    line = command("CoOp_DHO", "run", *VIEWS)
    assert fill(line) == 0
    refuse()
    for number, options in enumerate([
        ("DATASET.TEMPLATES", "('a drawing of {}',)", "TRAINER.DHO.ZETA", "0.05"),
        ("DATASET.NUM_SHOTS", "1", "SEED", "7"),
        ("DATASET.SUBSAMPLE_CLASSES", "base"),
        ("TRAINER.DHO.UNLABELED", "False"),
    ]):  # fmt: skip
        run(_elsewhere(line, tmp_path / f"run{number}", *BOTH, *options))


def test_the_teachers_encoder_is_let_go_and_the_students_stays(command, started):
    line = command("CoOp_DHO", "run", *VIEWS)
    assert fill(line) == 0
    trainer = started([*line, *BOTH])
    assert trainer.teacher.model.model is None
    assert sum(p.numel() for p in trainer.teacher.model.parameters()) == 4 * 32
    assert trainer.clip().model.visual is not None


def test_the_student_sees_the_very_pixels_whether_or_not_its_teacher_is_stored(command, started):
    line = command("CoOp_DHO", "run", *VIEWS)
    assert fill(line, "--what", "teacher") == 0
    online, stored = started([*line, *ONLINE]), started([*line, *TEACHER])
    for a, b in zip(online.streams, stored.streams, strict=True):
        x, y = next(a), next(b)
        assert torch.equal(x["img"], y["img"])
        assert torch.equal(x["index"], y["index"])
        assert "img_teacher" not in y
        with torch.no_grad():
            fresh = online.teacher.model.features(x["img_teacher"])
        torch.testing.assert_close(y["teacher_features"], fresh, rtol=2**-10, atol=2**-14)


def test_auto_reads_what_is_there_and_says_why_not(command, started, capsys):
    line = command("CoOp_DHO", "run", *VIEWS)
    assert started(line).stored == {}
    assert "features" not in capsys.readouterr().out  # nobody has stored anything: nothing to say
    assert fill(line, "--what", "teacher") == 0
    assert set(started(line).stored) == {"teacher"}
    capsys.readouterr()
    assert started([*line, "INPUT.VIEW_SEED", "5"]).stored == {}
    assert "view_seed: 0 there, 5 here" in capsys.readouterr().out
    assert started([*line, "INPUT.VIEWS", "3"]).stored == {}
    assert re.search("incomplete: of 3 files for 3 views 1 are missing", capsys.readouterr().out)
    assert fill(line, "--what", "student") == 0
    assert set(started(line).stored) == {"teacher", "student"}


def test_without_a_fixed_number_of_views_every_pass_must_be_stored(command, started):
    line = command("CoOp_DHO", "run", *FEW)  # 3 x 6 steps of 4: 9 passes over 8 labeled images
    assert fill(line, "--views", "8") == 0
    assert started(line).stored == {}
    assert fill(line, "--views", "9") == 0
    assert set(started(line).stored) == {"teacher", "student"}


@pytest.mark.parametrize(
    ("trainer", "options", "said"),
    [
        ("CoOp_DHO", ("TRAINER.DHO.TEACHER.MODE", "cached"), r"no features named .* --views 2, with this run's flags"),
        ("CoOp", ("MODEL.FEATURES", "cached"), "MODEL.FEATURES cached: no features named .*python -m dho_plugin.cache"),
        ("CoOp_DHO", ("MODEL.FEATURES", "cached"), "the teacher looks at the images"),
        ("VPT", ("MODEL.FEATURES", "cached"), "VPT's image features change as it learns"),
        ("PromptSRC", ("MODEL.FEATURES", "cached"), r"MODEL.FEATURES cached: no features named .*MODEL.FEATURES fill"),
        ("CoOp_DHO", ("MODEL.FEATURES", "fill"), "MODEL.FEATURES fill: the teacher looks at the images"),
        ("CoOp", ("MODEL.FEATURES", "always"), "MODEL.FEATURES is 'always'; allowed: online, cached, auto or fill"),
        ("CoOp", ("TRAINER.DHO.TEACHER.MODE", "on"), "TEACHER.MODE is 'on'; allowed: online, cached, auto or fill"),
        ("CoOp", ("INPUT.VIEWS", "-1"), "INPUT.VIEWS is -1; allowed: 0 or more"),
    ],
)
def test_features_that_are_asked_for_and_cannot_be_had(command, capsys, trainer, options, said):
    assert main([*command(trainer, "run", *VIEWS), *options]) == 2
    assert re.search(said, capsys.readouterr().err, re.DOTALL)


def test_other_weights_are_named(command, tiny_weights, capsys):
    line = command("CoOp_DHO", "run", *VIEWS)
    assert fill(line) == 0
    assert main([*line, *TEACHER, "TRAINER.DHO.TEACHER.CKPT", tiny_weights[0]]) == 2
    error = capsys.readouterr().err
    assert re.search(r"TRAINER.DHO.TEACHER.MODE cached: .*weights: '\w{32}' there, '\w{32}' here", error)
    assert "size: 48 there, 32 here" in error


def test_other_files_are_named(command, tmp_path, capsys):
    line = command("CoOp_DHO", "run", *VIEWS)
    assert fill(line) == 0
    image = sorted((tmp_path / "imagenet/images/train").rglob("*.JPEG"))[3]
    image.write_bytes(image.read_bytes() + b"more")
    assert main([*line, *BOTH]) == 2
    assert re.search(f"files: it was made from others, 1 of 24 .*{image.name} has", capsys.readouterr().err)


def test_a_truncated_cache_stops_a_run_before_its_first_step(command, own_cache, capsys):
    line = command("CoOp_DHO", "run", *VIEWS)
    assert fill(line) == 0
    shard = sorted(own_cache.glob("imagenet-train-ViT-L*/view*"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    for modes in ((), BOTH):
        assert main([*line, *modes]) == 2
        assert f"{shard} is damaged" in capsys.readouterr().err
    assert fill(line) == 2  # nothing is overwritten
    shard.unlink()
    assert fill(line) == 0
    assert main([*line, *BOTH]) == 0


def test_images_that_cannot_be_read_are_skipped_alike(command, tmp_path, started):
    line = command("LinearProbe_DHO", "run", *VIEWS, "DATASET.UNREADABLE", "skip", "DATASET.NUM_SHOTS", "6")
    line += ["TEST.SHIFTED", "('ImageNetV2',)"]
    images = sorted((tmp_path / "imagenet/images/train").rglob("*.JPEG"))[2:4]
    images += sorted((tmp_path / "imagenetv2").rglob("*.jpeg"))[:1]
    for image in images:
        image.write_bytes(image.read_bytes()[:200])
    assert fill(line) == 0
    expected = losses(started([*line, *ONLINE]))
    for modes in (TEACHER, BOTH):
        assert losses(started([*line, *modes])) == pytest.approx(expected, rel=1e-4)
    assert metrics(run([*line, *BOTH]))["imagenetv2"]["n_unreadable"] == 1


def test_zero_shot_evaluation_reads_the_students_features(command, tmp_path, refuse):
    line = command("ZeroshotCLIP2", "online", *VIEWS, flags=("--eval-only",))
    assert fill([word for word in line if word != "--eval-only"]) == 0
    online = run([*line, *ONLINE])
    refuse()
    assert metrics(run(_elsewhere(line, tmp_path / "stored", "MODEL.FEATURES", "cached"))) == metrics(online)


def test_a_placebos_features_are_stored_like_a_teachers(command, started):
    line = command("CoOp_DHO", "run", *VIEWS, "TRAINER.DHO.TEACHER.TYPE", "placebo")
    assert fill(line) == 0
    assert losses(started([*line, *BOTH])) == pytest.approx(losses(started([*line, *ONLINE])), rel=1e-3, abs=1e-3)


def test_where_features_come_from_is_not_part_of_what_a_run_is(command, capsys):
    line = command("CoOp_DHO", "run", *VIEWS)
    assert fill(line) == 0
    run([*line, *ONLINE])
    run([*line, *BOTH])
    assert "is complete" in capsys.readouterr().out


def test_a_method_whose_student_needs_the_images_says_so(command, started):
    class Own(CLIPStudent):
        def features(self, images):
            return images

    class Further(CLIPStudent):
        def extra_loss(self, images, features, logits_ce):
            return None

    assert not Student().storable
    clip = started(command("CoOp", "run", *FEW)).clip()
    assert [kind(clip).storable for kind in (CLIPStudent, Own, Further)] == [True, False, False]


@pytest.mark.parametrize(
    ("trainer", "gap", "views", "size"),
    [("CoOp_DHO", "2", True, 48), ("CoOp_DHO", "2", False, 32), ("CoOp", "2", True, 32), ("CoOp_DHO", "0", True, None)],
)
def test_a_store_belongs_to_the_size_that_images_are_decoded_for(command, started, trainer, gap, views, size):
    built = started(command(trainer, "run", *FEW, "INPUT.JPEG_GAP", gap))
    assert built.description("student", views, built.clip())["decoded_for"] == size


def test_the_defaults_leave_everything_as_it_was():
    cfg = get_cfg_default()
    assert (cfg.INPUT.VIEWS, cfg.MODEL.FEATURES, cfg.TRAINER.DHO.TEACHER.MODE) == (0, "auto", "auto")


def test_photos_that_are_turned_are_stored_turned_and_named(command, tmp_path, started, capsys):
    for path in sorted((tmp_path / "imagenet/images/train").rglob("*.JPEG")):
        image = Image.open(path)
        exif = image.getexif()
        exif[0x0112] = 6  # lies on its side
        image.save(path, exif=exif)
    line = command("LinearProbe_DHO", "run", *VIEWS)
    turned = [*line, "INPUT.UPRIGHT", "True"]
    assert fill(turned) == 0
    expected = losses(started([*turned, *ONLINE]))
    for modes in (TEACHER, BOTH):
        assert losses(started([*turned, *modes])) == pytest.approx(expected, rel=1e-4)
    assert losses(started([*line, *ONLINE])) != pytest.approx(expected, rel=1e-4)
    capsys.readouterr()
    assert main([*line, *BOTH]) == 2
    assert re.search("upright: True there, False here", capsys.readouterr().err)


def own_photos(home: Path, seed: int) -> None:
    """Write photos of two classes, of one name and size in all folders, with a further test set."""
    rng = np.random.default_rng(seed)
    for folder in ("train/a", "train/b", "test/a", "test/b", "night/a", "night/b"):
        (home / folder).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(home / folder / f"{number}.bmp")


def test_own_photos_are_stored_with_their_further_test_sets_and_never_taken_for_others(
    shared_command, tmp_path, monkeypatch, refuse, capsys
):
    for seed, root in enumerate(("one", "two")):
        own_photos(tmp_path / root / "photos", seed)
    where = ("DATASET.PREFIX", "photos", "DATASET.TEST_SETS", "night", *VIEWS, "DATASET.ROOT")
    line = [*shared_command("CoOp_DHO", tmp_path / "fill", *where, dataset="folder"), str(tmp_path / "one")]
    online = metrics(run(_elsewhere(line, tmp_path / "nothing stored")))
    assert set(online) == {"test", "night"}
    assert fill(line) == 0
    assert main(_elsewhere(line, tmp_path / "other", *BOTH, "DATASET.ROOT", str(tmp_path / "two"))) == 2
    assert re.search(r"place: '\S*one/photos' there, '\S*two/photos' here", capsys.readouterr().err)
    refuse()
    monkeypatch.chdir(tmp_path)
    assert metrics(run(_elsewhere(line, tmp_path / "stored", *BOTH, "DATASET.ROOT", "one"))) == online
