"""What README and the pages say is true: the example runs, keys, files, links and commands exist."""

import re
import shlex
from pathlib import Path

import dho_plugin.trainers  # noqa: F401 (fills the registry)
import pytest

import dho_plugin.data.__main__ as data_command
from dho_plugin import cache, export, ood, predict, tables
from dho_plugin.engine.config import check_cfg, flatten, get_cfg_default
from dho_plugin.engine.registry import TRAINER_REGISTRY
from dho_plugin.train import build_parser, setup_cfg

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("[bd]*s/**/*.md"))


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_example_runs(code):
    scope = {}
    exec(code, scope)
    assert scope["features"].grad.abs().sum() > 0
    assert scope["probabilities"].shape == (4, 10)


def test_every_key_in_the_table_exists_with_that_default():
    defaults = dict(flatten(get_cfg_default().TRAINER.DHO))
    text = page("RUNS")
    table = text[text.index("## The keys of DHO") :].split("\n\n")[0]
    named = set()
    for row in table.splitlines()[3:]:
        keys, _, default = (cell.strip() for cell in row.strip("|").split(" | "))
        first, *rest = re.findall(r"`([^`]+)`", keys)
        keys = [first, *(first.rsplit(".", 1)[0] + key if key.startswith(".") else key for key in rest)]
        named |= set(keys)
        for key, value in zip(keys, default.split(", "), strict=False):
            if value != "-":
                assert str(defaults[key]).removesuffix(".0") == value, key
    assert named == set(defaults)


def test_every_data_key_in_the_table_exists_with_that_default():
    defaults = get_cfg_default().DATASET
    text = page("DATA")
    table = text[text.index("| key (`DATASET.`)") :].split("\n\n")[0]
    rows = [[cell.strip() for cell in row.strip("|").split(" | ")] for row in table.splitlines()[2:]]
    assert len(rows) > 5
    for keys, _, default in rows:
        for key in re.findall(r"`([^`]+)`", keys):
            assert default == "-" or str(defaults[key]).removesuffix(".0") == default, key


def test_every_data_set_that_is_named_has_a_config():
    block = README[README.index("scripts/coop_dho.sh oxford_pets 16") :].split("bash ")[0]
    named = set(re.findall(r"[a-z]\w*", block.replace(" or ", " "))) - {"scripts", "coop_dho", "sh"}
    assert len(named) == 10
    assert all((ROOT / "configs/datasets" / f"{name}.yaml").exists() for name in named), named


def test_the_data_check_s_words_exist():
    words = re.search(r"python -m dho_plugin.data (check .*)", page("DATA"))[1]
    args = data_command.build_parser().parse_args(shlex.split(words))
    assert args.verify


def test_the_evaluation_in_the_page_on_own_data_is_a_command_line():
    text = page("OWN_DATA")
    command = text[text.index("python -m dho_plugin.train") :].split("```")[0].replace("\\\n", " ")
    args = build_parser().parse_args(shlex.split(command)[3:])
    cfg = setup_cfg(args)
    assert (cfg.DATASET.NAME, cfg.DATASET.PREFIX, args.load_epoch) == ("ImageFolder", "new", cfg.OPTIM.MAX_EPOCH)
    check_cfg(cfg)


def test_the_words_that_fill_a_cache_are_a_command_line():
    text = page("CACHE")
    words = text[text.index("python -m dho_plugin.cache --views") :].split("\nOUTPUT")[0].replace("\\\n", " ")
    args = cache.build_parser().parse_args(shlex.split(words)[3:])
    cfg = setup_cfg(args)
    assert (args.views, cfg.TRAINER.NAME, cfg.DATASET.NAME) == (10, "LinearProbe_DHO", "ImageNet")


def test_the_words_that_start_several_processes_are_a_command_line():
    text = page("RUNS")
    words = text[text.index("torchrun --nproc_per_node=8") :].split("\nPROCESSES")[0].replace("\\\n", " ")
    cfg = setup_cfg(build_parser().parse_args(shlex.split(words)[4:]))
    assert (cfg.TRAINER.NAME, cfg.DATASET.NUM_SHOTS) == ("CoOp_DHO", 16)
    assert f"| {cfg.TRAIN.ACCUMULATION} |" in text[text.index("| `TRAIN.ACCUMULATION` |") :].split("\n")[0]


def test_the_keys_of_the_cache_exist_with_that_default():
    cfg = get_cfg_default()
    text = page("CACHE")
    table = text[text.index("| `INPUT.VIEWS` |") :].split("\n\n")[0].splitlines()
    assert table[0].endswith(f"| {cfg.INPUT.VIEWS} |")
    assert table[1].endswith(f"| {cfg.MODEL.FEATURES} |")


def test_the_commands_exist():
    pages = "\n".join(file.read_text(encoding="utf-8") for file in PAGES)
    commands = set(re.findall(r"(?:^|`)(bash scripts/[^\s`]+|python -m dho_plugin[^\s`]*)", pages, re.MULTILINE))
    commands.discard("bash scripts/taskres_dho.sh")  # CONTRIBUTING's example of a method to be added
    assert len(commands) > 20
    for command in commands:
        what = command.split()[-1]
        module = ROOT / what.replace(".", "/")
        files = [ROOT / what] if command.startswith("bash") else [module.with_suffix(".py"), module / "__main__.py"]
        assert any(file.exists() for file in files), command
    text = page("RUNS")
    long = text[text.index("python -m dho_plugin.train") :].split("```")[0].replace("\\\n", " ")
    cfg = setup_cfg(build_parser().parse_args(shlex.split(long)[3:]))
    assert cfg.TRAINER.NAME == "CoOp_DHO"
    ood.build_parser().parse_args(shlex.split("--alpha 0.4 --beta 0.5 output/my_run"))
    assert callable(tables.main)


def test_the_words_that_use_a_result_are_command_lines():
    section = page("RESULTS")
    words = re.findall(r"^python -m dho_plugin.(?:predict|export) .*", section, re.MULTILINE)
    lines = [shlex.split(line, comments=True) for line in words]
    parsers = {"dho_plugin.predict": predict, "dho_plugin.export": export}
    found = [parsers[line[2]].build_parser().parse_args(line[3:]) for line in lines]
    assert [args.run_dir for args in found] == ["output/my_run"] * 3
    assert (found[0].images, found[0].top) == (["photos/", "more.jpg", "scans/*.png"], 3)
    released = section[section.index("python -m dho_plugin.train") :].split("```")[0].replace("\\\n", " ")
    args = build_parser().parse_args(shlex.split(released)[3:])
    cfg = setup_cfg(args)
    check_cfg(cfg)
    assert (args.eval_only, args.model_dir) == (True, "vit_b_1.pt")
    dho, student = cfg.TRAINER.DHO, cfg.TRAINER.DISTILL
    assert (dho.KD_HEAD, student.CE_HEAD, dho.ALPHA, dho.BETA) == ("unit", "linear", 0.5, 0.5)


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_no_page_waits_for_its_figures(file):
    text = file.read_text(encoding="utf-8")
    assert not re.findall(r"^[A-Z_]{4,}$|TODO|FIXME|XXX", text, re.MULTILINE)


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_every_link_to_a_file_of_ours_leads_there(file):
    text = re.sub(r"```.*?```|`[^`]*`", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
    assert not [link for link in links if not (file.parent / link.partition("#")[0]).exists()]


def test_readme_leads_to_every_page():
    assert not [file.name for file in (ROOT / "docs").glob("*.md") if f"]({'docs/' + file.name})" not in README]


def test_every_key_of_compact_students_exists_with_that_default():
    defaults = dict(flatten(get_cfg_default()))
    section = page("STUDENTS")
    named = set()
    for row in section[section.index("| key |") :].split("\n\n")[0].splitlines()[2:]:
        keys, _, values = (cell.strip() for cell in row.strip("|").split(" | "))
        first, *rest = re.findall(r"`([^`]+)`", keys)
        keys = [first, *(first.rsplit(".", 1)[0] + key if key.startswith(".") else key for key in rest)]
        named |= set(keys)
        for key, value in zip(keys, values.split(", "), strict=False):
            assert value == "-" or str(defaults[key]).removesuffix(".0") == value, key
    assert named >= {key for key in defaults if key.startswith("TRAINER.DISTILL.")} - {"TRAINER.DISTILL.PREC"}
    trainers = re.findall(r"^\| `(Distill_\w+)`", section, re.MULTILINE)
    assert sorted(trainers) == sorted(n for n in TRAINER_REGISTRY.registered_names() if n.startswith("Distill_"))
    for name in re.findall(r"`?((?:scripts/)?\w+\.sh)`?", section):
        assert (ROOT / "scripts" / Path(name).name).is_file(), name
