"""The config: Dassl's keys and precedence, and messages for every slip."""

import re
from pathlib import Path

import pytest

from dho_plugin.engine import config
from dho_plugin.engine.files import write_json
from dho_plugin.engine.run_folder import run_cfg
from dho_plugin.errors import ConfigError

# In the form of CoOp's own files: tuples and 1e-5 are strings to YAML, numbers to the hosts.
HOST_YAML = """
DATALOADER:
  TRAIN_X:
    BATCH_SIZE: 32
  NUM_WORKERS: 8
INPUT:
  SIZE: (224, 224)
  INTERPOLATION: "bicubic"
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]
OPTIM:
  NAME: "sgd"
  LR: 0.002
  WARMUP_CONS_LR: 1e-5
MODEL:
  BACKBONE:
    NAME: "ViT-B/16"
TRAINER:
  COOP:
    CTX_INIT: "a photo of a"
"""


@pytest.fixture
def cfg():
    return config.get_cfg_default()


def test_a_hosts_file_loads_and_means_the_same(cfg, tmp_path):
    (tmp_path / "host.yaml").write_text(HOST_YAML)
    config.merge_file(cfg, tmp_path / "host.yaml")
    config.check_cfg(cfg)
    assert cfg.INPUT.SIZE == (224, 224)
    assert pytest.approx(1e-5) == cfg.OPTIM.WARMUP_CONS_LR
    assert tuple(cfg.INPUT.TRANSFORMS) == ("random_resized_crop", "random_flip", "normalize")
    assert cfg.TRAINER.COOP.CTX_INIT == "a photo of a"


def test_defaults_are_copies(cfg):
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 7
    assert config.get_cfg_default().DATALOADER.TRAIN_X.BATCH_SIZE == 32
    assert cfg.DATALOADER.TRAIN_U.BATCH_SIZE == 32


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (["TRAINER.COOP.NCTX", "4"], "Did you mean TRAINER.COOP.N_CTX"),
        (["TRAINER.DHO.LAMDA", "0.5"], "TRAINER.DHO.LAMBDA"),
        (["OPTIM.LR"], "KEY VALUE pairs"),
        (["OPTIM.MAX_EPOCH", "ten"], "OPTIM.MAX_EPOCH: 'ten' is not a int"),
        (["TRAINER.DHO", "0.5"], "TRAINER.DHO"),
    ],
)
def test_a_slip_on_the_command_line_is_named(cfg, pairs, said):
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        config.merge_pairs(cfg, pairs)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("OPTIM:\n  LRR: 0.1\n", "OPTIM.LR"),
        ("OPTIM: [", "not readable as YAML"),
        ("- 1\n- 2\n", "not readable as YAML"),
        ("OPTIM:\n  LR: fast\n", "Type mismatch"),
    ],
)
def test_a_broken_file_is_named(cfg, tmp_path, text, said):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        config.merge_file(cfg, tmp_path / "broken.yaml")
    assert "broken.yaml" in str(error.value)


def test_a_missing_file_lists_its_neighbours(cfg, tmp_path):
    (tmp_path / "vit_b16.yaml").write_text("")
    with pytest.raises(ConfigError, match="its folder holds: vit_b16"):
        config.merge_file(cfg, tmp_path / "vit_b61.yaml")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("TRAINER.DHO.LAMBDA", "1.5"),
        ("TRAINER.DHO.BETA", "0.0"),
        ("TRAINER.DHO.KD_HEAD", "quadratic"),
        ("DATASET.UNREADABLE", "retry"),
        ("TRAIN.COUNT_ITER", "train"),
        ("TEST.FINAL_MODEL", "best_test"),
        ("DATASET.SUBSAMPLE_CLASSES", "some"),
        ("DATASET.LABELED_PERCENT", "101.0"),
        ("DATASET.SHOTS_FROM", "elsewhere"),
        ("DATASET.CSV", "labels.csv"),
        ("DATASET.TEST_SETS", "('night',)"),
        ("INPUT.JPEG_GAP", "0.5"),
        ("DATALOADER.TEST.BATCH_SIZE", "0"),
        ("DATALOADER.NUM_WORKERS", "-1"),
        ("INPUT.VIEW_SEED", "-1"),
        ("SEED", "4294967296"),
        ("MODEL.TEXT_TOWER", "fast"),
        ("MODEL.IMAGE_TOWER", "fast"),
        ("MODEL.INIT_WEIGHTS", "some.pth"),
    ],
)
def test_a_value_that_is_not_allowed_is_named_with_what_is(cfg, key, value):
    config.merge_pairs(cfg, [key, value])
    with pytest.raises(ConfigError, match=f"{key} is .*{re.escape(value)}.*; allowed: "):
        config.check_cfg(cfg)


@pytest.mark.parametrize("template", ["a photo.", "a {} of a {}.", "a {name}.", "a {0}.", "{{}}"])
def test_a_template_names_the_class_once(cfg, template):
    cfg.DATASET.TEMPLATES = ("a photo of a {}.", template)
    with pytest.raises(ConfigError, match=r"DATASET\.TEMPLATES is .* one {} each"):
        config.check_cfg(cfg)
    cfg.DATASET.TEMPLATES = ("a photo of a {}.", "{} 100%")
    config.check_cfg(cfg)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("night", ("night",)),
        ("night,sketches", ("night", "sketches")),
        ("night, sketches", ("night", "sketches")),
        ("('night','sketches')", ("night", "sketches")),
        ("['night']", ("night",)),
        ("(night,)", ("night",)),
        ("('night')", ("night",)),
        ("'night',", ("night",)),
        ("2024", ("2024",)),
        ("()", ()),
        ("", ()),
    ],
)
def test_names_may_be_written_as_people_write_them(cfg, value, names):
    config.merge_pairs(cfg, ["DATASET.TEST_SETS", value])
    assert names == cfg.DATASET.TEST_SETS


def test_one_template_may_have_commas(cfg):
    config.merge_pairs(cfg, ["DATASET.TEMPLATES", "a photo of a {}, a kind of bird."])
    assert cfg.DATASET.TEMPLATES == ("a photo of a {}, a kind of bird.",)
    config.merge_pairs(cfg, ["OPTIM.STEPSIZE", "(3,)", "INPUT.RRCROP_SCALE", "(0.5, 1.0)"])
    assert (cfg.OPTIM.STEPSIZE, cfg.INPUT.RRCROP_SCALE) == ((3,), (0.5, 1.0))


def test_a_flag_behind_the_pairs_is_named(cfg):
    with pytest.raises(ConfigError, match="flags come before KEY VALUE pairs; found behind them: --config-file"):
        config.merge_pairs(cfg, ["OPTIM.LR", "1", "--config-file", "a.yaml"])


def test_shots_and_percent_exclude_each_other(cfg):
    config.merge_pairs(cfg, ["DATASET.LABELED_PERCENT", "1", "DATASET.NUM_SHOTS", "16"])
    with pytest.raises(ConfigError, match="NUM_SHOTS is 16; allowed: only -1 beside DATASET"):
        config.check_cfg(cfg)


@pytest.mark.parametrize("value", ["2024", "None", "1e3", "'quoted'", "it's", "(a", "['x']"])
def test_a_text_may_look_like_anything(cfg, value):
    config.merge_pairs(cfg, ["DATASET.PREFIX", value])
    assert value.strip("'") == cfg.DATASET.PREFIX


@pytest.mark.parametrize("text", ["2024", "2024_05", "1e5", "None", "['x']"])
def test_a_text_that_looks_like_something_else_comes_back_from_a_runs_folder(tmp_path, text):
    cfg = config.get_cfg_default()
    config.merge_pairs(cfg, ["DATASET.PREFIX", text, "DATASET.TEST_SETS", "1,2"])
    write_json(tmp_path / "config.json", config.as_plain(cfg))
    again = run_cfg(tmp_path)
    assert text == again.DATASET.PREFIX
    assert again.DATASET.TEST_SETS == ("1", "2")
    (tmp_path / "a.yaml").write_text("DATASET: {PREFIX: 0123}")  # which YAML reads as 83
    with pytest.raises(ConfigError, match="PREFIX"):
        config.merge_file(cfg, tmp_path / "a.yaml")


def test_transforms_that_views_do_not_know_are_refused(cfg):
    cfg.INPUT.TRANSFORMS = ("random_flip", "randaugment")
    with pytest.raises(ConfigError, match="randaugment"):
        config.check_cfg(cfg)


def test_whole_numbers_are_taken_where_a_float_is_wanted(cfg, tmp_path):
    (tmp_path / "a.yaml").write_text("TRAINER:\n  PROMPTSRC:\n    GPA_STD: 3\nOPTIM:\n  MAX_EPOCH: 4\n")
    config.merge_file(cfg, tmp_path / "a.yaml")
    config.merge_pairs(cfg, ["OPTIM.LR", "1", "SEED", "2"])
    values = cfg.TRAINER.PROMPTSRC.GPA_STD, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR, cfg.SEED
    assert [(type(value), value) for value in values] == [(float, 3.0), (int, 4), (float, 1.0), (int, 2)]
    with pytest.raises(ConfigError, match=r"OPTIM\.MAX_EPOCH"):
        config.merge_pairs(cfg, ["OPTIM.MAX_EPOCH", "1.5"])


def test_two_configs_differ_only_in_what_changes_numbers(cfg):
    mine, other = config.as_plain(cfg), config.as_plain(cfg)
    other["DATALOADER"]["NUM_WORKERS"], other["DATASET"]["ROOT"] = 99, "/elsewhere"
    assert config.differing_keys(mine, other) == []
    other["OPTIM"]["LR"] = 1.0
    assert config.differing_keys(mine, other) == ["OPTIM.LR: 1.0 there, 0.0003 here"]


def test_own_data_are_called_as_their_folder_and_list(cfg):
    assert config.dataset_label(cfg) == ""
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "ImageNet", "/data/all"
    assert config.dataset_label(cfg) == "imagenet"
    cfg.DATASET.PREFIX = "mini"
    assert config.dataset_label(cfg) == "mini"
    cfg.DATASET.NAME, cfg.DATASET.PREFIX = "OxfordPets", "vision"
    assert config.dataset_label(cfg) == "oxfordpets"
    cfg.DATASET.NAME, cfg.DATASET.PREFIX = "ImageFolder", ""
    assert config.dataset_label(cfg) == "all"
    cfg.DATASET.PREFIX, cfg.DATASET.CSV = "more/photos", "lists/labels.csv"
    assert config.dataset_label(cfg) == "photos_labels"


def test_of_ones_own_data_the_place_counts(cfg):
    cfg.DATASET.NAME, cfg.DATASET.ROOT = "ImageFolder", "/photos"
    mine, other = config.as_plain(cfg), config.as_plain(cfg)
    other["DATASET"]["ROOT"] = "/other"
    assert config.differing_keys(mine, other) == ["DATASET.ROOT: '/other' there, '/photos' here"]


def test_a_config_stored_before_a_key_was_there_has_its_default(cfg):
    mine, older = config.as_plain(cfg), config.as_plain(cfg)
    del older["OPTIM"]["WARMUP_STEPS"], older["TRAINER"]["VPT"]
    assert config.differing_keys(mine, older) == []
    mine["OPTIM"]["WARMUP_STEPS"] = 7
    assert config.differing_keys(mine, older) == ["OPTIM.WARMUP_STEPS: 0 there, 7 here"]


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/**/*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_config_loads(cfg, path):
    config.merge_file(cfg, path)
    config.check_cfg(cfg)


def test_settings_that_nothing_reads_are_named(cfg, tmp_path):
    assert config.without_effect(cfg) == []
    (tmp_path / "host.yaml").write_text(HOST_YAML.replace("(224, 224)", "(336, 336)"))
    config.merge_file(cfg, tmp_path / "host.yaml")
    idle = config.without_effect(cfg)
    assert "INPUT.SIZE = (336, 336)" in idle
    assert not [line for line in idle if line.startswith(("OPTIM.", "INPUT.TRANSFORMS", "TRAINER."))]


def test_every_key_without_effect_is_a_key():
    known = [key for key, _ in config.flatten(config.get_cfg_default())]
    assert not [start for start in config.WITHOUT_EFFECT if not any(key.startswith(start) for key in known)]
