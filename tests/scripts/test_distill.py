"""Which runs the scripts of compact students make, and which tables they show."""

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
BASELINES = ["KD", "KDFeature", "CE", "CEKDFeature", "CEKD", "SSKD", "DHKD"]
FILE = "LICENSE"  # stands for weights: a file that is there


def runs(calls: list[list[str]]) -> list[str]:
    """Return the trainer's folder and what lies below it, of each run."""
    return ["/".join(Path(call[4]).parts[-3:]) for call in calls if call[0] == "start" and "Distill" in call[2]]


def zero_shots(calls: list[list[str]]) -> list[str]:
    return ["/".join(Path(call[4]).parts[-2:]) for call in calls if call[0] == "start" and "Zero" in call[2]]


def table(done) -> list[str]:
    return shlex.split(next(line for line in done.stdout.splitlines() if line.startswith("tables ")))[1:]


def config(call: list[str]) -> str:
    return call[call.index("--config-file") + 1]


@pytest.mark.parametrize(
    ("words", "folder", "teacher"),
    [
        ("mini 16 mini-resnet", "mini_resnet_16shots", "mini"),
        ("mini 16 mini-student", "mini_student_16shots", "mini"),
        ("imagenet 4 resnet18", "resnet18_scratch_ep20_4shots", "rn50"),
        ("imagenet 4 resnet50", "dino_resnet50_ep20_4shots", "rn50"),
        ("imagenet 1% vit_b16", "vit_b16_ep32_1percent", "vit_h14_378"),
        ("imagenet 10% vit_l14_336", "vit_l14_336_ep32_10percent", "vit_h14_378"),
        ("imagenet 1% vit_b16_from_l14", "vit_b16_from_l14_ep32_1percent", "vit_l14_336"),
        ("imagenet 4 mobilenetv2", "resnet18_scratch_ep20_4shots_mobilenetv2", "rn50"),
        ("dtd 4 resnet18", "resnet18_ep200_4shots", "rn50"),
        ("dtd 4 mobilenetv2", "mobilenetv2_ep200_4shots", "rn50"),
        ("dtd 4 regnety_002", "resnet18_ep200_4shots_regnety_002", "rn50"),
    ],
)
def test_a_students_setting(words, folder, teacher, pretend):
    done, calls = pretend("scripts/distill.sh", *words.split(), "A.B", "-1", SEEDS="1")
    assert done.returncode == 0, done.stderr
    assert runs(calls) == [f"Distill_DHO/{folder}/seed1"]
    assert zero_shots(calls) == [f"ZeroshotCLIP2/{teacher}"]
    call = next(call for call in calls if call[0] == "start" and "Distill" in call[2])
    assert (ROOT / config(call)).is_file()
    assert call[-2:] == ["A.B", "-1"]
    assert ("MODEL.BACKBONE.NAME regnety_002" in " ".join(call)) == ("regnety" in words)
    assert ("MODEL.BACKBONE.NAME mobilenetv2_100" in " ".join(call)) == (words == "imagenet 4 mobilenetv2")
    shown = [Path(word).name for word in table(done) if "/" in word]
    assert shown == [teacher, folder]
    assert table(done)[-1] == ("own" if words.startswith("imagenet") else "--paired")


def test_compare_runs_every_baseline_those_without_labels_in_a_folder_of_their_own(pretend):
    done, calls = pretend("scripts/distill.sh", "mini", "4", "mini-resnet", "--compare", SEEDS="1 2")
    assert done.returncode == 0, done.stderr
    labeled = [*(f"Distill_{name}" for name in BASELINES[2:]), "Distill_DHO"]
    assert runs(calls) == [
        *(f"Distill_{name}/mini_resnet_unlabeled/seed{seed}" for name in ("KD", "KDFeature") for seed in (1, 2)),
        *(f"{name}/mini_resnet_4shots/seed{seed}" for name in labeled for seed in (1, 2)),
    ]
    _, again = pretend("scripts/distill.sh", "mini", "16", "mini-resnet", "--compare", SEEDS="1 2")
    assert not [run for run in runs(again) if "unlabeled" in run]  # they are there


def test_table_1(pretend):
    done, calls = pretend("scripts/table1.sh", SEEDS="1", METHODS="KD CE DHO", SHOTS="1 16", STUDENT_CKPT=FILE)
    assert done.returncode == 0, done.stderr
    expected = []
    for setting in ("resnet18_scratch_ep20", "dino_resnet50_ep20"):
        expected.append(f"Distill_KD/{setting}_unlabeled/seed1")
        expected += [f"Distill_{name}/{setting}_{n}shots/seed1" for n in (1, 16) for name in ("CE", "DHO")]
    assert runs(calls) == expected
    lines = [" ".join(call) for call in calls if call[0] == "start" and "Distill" in call[2]]
    assert [f"CKPT {FILE}" in line for line in lines] == [False] * 5 + [True] * 5
    assert table(done)[-4:] == ["--wide", "--paired", "--paper-table", "1"]
    assert len(table(done)) == 1 + len(expected) + 4


def test_table_1_on_mini(pretend):
    done, calls = pretend("scripts/table1.sh", "mini", "A.B", "c", SEEDS="1")
    assert done.returncode == 0, done.stderr
    assert len(runs(calls)) == 2 * (2 + 3 * 7)
    assert len([call for call in calls if "TipAdapterF" in call]) == 3  # DHO-F's teachers are those of both students
    assert all(call[-2:] == ["A.B", "c"] for call in calls if call[0] == "start" and "Distill" in call[2])
    assert "--paper-table" not in table(done)


def test_a_compact_student_of_mini_has_the_method_s_tuned_values_and_ones_own_words_win(pretend):
    words = {"SEEDS": "1", "METHODS": "CEKD DHO", "SHOTS": "4", "STUDENTS": "mini-resnet"}
    _, calls = pretend("scripts/table1.sh", "mini", "OPTIM.LR", "1.0", **words)
    lines = [" ".join(call) for call in calls if call[0] == "start" and "Distill" in call[2]]
    assert len(lines) == 2
    for weight, line in zip(("0.02", "0.1"), lines, strict=True):
        assert line.endswith(f"OPTIM.LR 3e-2 TRAINER.DHO.LAMBDA {weight} OPTIM.LR 1.0")
    _, calls = pretend("scripts/distill.sh", "mini", "4", "mini-resnet-pretrained", "--compare", SEEDS="1")
    found = {call[2]: " ".join(call) for call in calls if call[0] == "start"}
    assert "OPTIM.LR 1e-1" in found["Distill_CE"]
    assert "LAMBDA" not in found["Distill_CE"] + found["Distill_KD"]
    assert all("OPTIM.LR 3e-2 TRAINER.DHO.LAMBDA 0.1" in found[f"Distill_{name}"] for name in ("DHO", "CEKD", "SSKD"))
    assert "OPTIM.LR 1e-2 TRAINER.DHO.LAMBDA 0.1" in found["Distill_DHKD"]
    _, calls = pretend("scripts/distill.sh", "imagenet", "4", "resnet18", SEEDS="1")
    assert "OPTIM.LR" not in " ".join(calls[-2])


def test_tables_4_and_12_share_their_runs(pretend):
    done, calls = pretend("scripts/table4.sh", SEEDS="1")
    assert done.returncode == 0, done.stderr
    settings = ("vit_b16_ep32", "vit_l14_336_ep32")
    assert runs(calls) == [f"Distill_DHO/{name}_{p}percent/seed1" for name in settings for p in (1, 10)]
    students = ["ZeroshotCLIP/vit_b16"]
    assert zero_shots(calls) == [*students, "ZeroshotCLIP2/vit_h14_378"]
    assert table(done)[0].endswith(students[0])
    assert table(done)[-2:] == ["--paper-table", "4"]
    done, calls = pretend("scripts/table12.sh", SEEDS="1")
    assert runs(calls) == [f"Distill_DHO/vit_b16_from_l14_ep32_{p}percent/seed1" for p in (1, 10)]
    assert zero_shots(calls) == ["ZeroshotCLIP2/vit_l14_336"]
    assert table(done)[-2:] == ["--paper-table", "12"]
    assert "\nAt beta 1.0:\n" in done.stdout
    folders = ("vit_b16_from_l14", "vit_b16", "vit_l14_336")
    rescored = next(line.split() for line in done.stdout.splitlines() if line.startswith("ood "))
    assert [Path(word).parts[-3:] for word in rescored[1:-2]] == [
        ("Distill_DHO", f"{name}_ep32_{p}percent", "seed1") for name in folders for p in (1, 10)
    ]
    assert rescored[-2:] == ["--beta", "1"]
    done, calls = pretend("scripts/table12.sh", "mini", SEEDS="1")
    assert runs(calls) == [f"Distill_DHO/mini_student_{p}percent/seed1" for p in (1, 10)]
    assert zero_shots(calls) == ["ZeroshotCLIP/mini", "ZeroshotCLIP2/mini"]
    assert "--paper-table" not in table(done)
    done, calls = pretend("scripts/table12.sh", "mini", "TEST.SPLIT", "val", SEEDS="2", PERCENTS="1%")
    assert done.returncode == 0, done.stderr
    assert len(runs(calls)) == 1
    assert "At beta" not in done.stdout


def test_the_student_s_zero_shot_row_is_counted_and_read_from_its_file(pretend):
    words = {"SEEDS": "1", "PERCENTS": "1%", "STUDENTS": "vit_b16", "STUDENT_CKPT": FILE, "JOBS": "2"}
    done, calls = pretend("scripts/table4.sh", **words)
    assert done.returncode == 0, done.stderr
    assert "seed1: started (3 of 3)" in done.stdout
    assert f"MODEL.BACKBONE.CKPT {FILE}" in next(" ".join(call) for call in calls if "ZeroshotCLIP" in call)
    done, calls = pretend("scripts/table4.sh", **{**words, "STUDENTS": "vit_l14_336"})
    assert not [row for row in zero_shots(calls) if "ZeroshotCLIP/" in row]  # no config for it


def test_table_5_takes_away_one_thing_after_the_other(pretend):
    done, calls = pretend("scripts/table5.sh", SEEDS="1")
    assert done.returncode == 0, done.stderr
    variants = ("", "_not_aligned", "_init_ce", "_init_none")
    assert runs(calls) == [f"Distill_DHO/vit_b16_from_l14_ep32_1percent{variant}/seed1" for variant in variants]
    heads = [
        [word for word in call if word in ("linear", "kaiming")]
        for call in calls
        if call[0] == "start" and "Distill" in call[2]
    ]
    assert heads == [[], ["linear"], ["linear", "kaiming"], ["linear", "kaiming", "kaiming"]]
    assert table(done)[-2:] == ["--paper-table", "5"]
    done, calls = pretend("scripts/table5.sh", "mini", "A.B", "c", SEEDS="1", PERCENTS="1% 10%")
    assert len(runs(calls)) == 8
    assert "--paper-table" not in table(done)


def test_table_14_has_the_four_combinations_of_heads(pretend, tmp_path):
    done, calls = pretend("scripts/table14.sh", "A.B", "c", SEEDS="1", SHOTS="16")
    assert done.returncode == 0, done.stderr
    variants = {"": set(), "_nl_ce": {"CE_HEAD"}, "_nl_kd": {"KD_HEAD"}, "_nl_ce_kd": {"CE_HEAD", "KD_HEAD"}}
    folder = "resnet18_scratch_ep20_16shots"
    assert runs(calls) == [f"Distill_DHO/{folder}{variant}/seed1" for variant in variants]
    trained = [call for call in calls if call[0] == "start" and "Distill" in call[2]]
    heads = [{key.split(".")[-1] for key, value in pairwise(call) if value == "mlp"} for call in trained]
    assert heads == list(variants.values())
    for call, found in zip(trained, heads, strict=True):  # what a CLIP student would start from class features
        starts = {key for key, value in pairwise(call) if value == "kaiming"}
        assert starts == {{"CE_HEAD": "TRAINER.DISTILL.INIT", "KD_HEAD": "TRAINER.DHO.INIT"}[head] for head in found}
    assert all(call[-2:] == ["A.B", "c"] for call in trained)
    assert table(done)[-5:] == ["--heads", "--paired", "--wide", "--paper-table", "14"]
    assert [Path(word).name for word in table(done)[1:-5]] == [f"{folder}{variant}" for variant in variants]
    _, calls = pretend("scripts/table1.sh", SEEDS="1", SHOTS="16", STUDENTS="resnet18", METHODS="DHO")
    assert not runs(calls)  # the first row is there
    done, calls = pretend("scripts/table14.sh", "mini", SEEDS="1", OUTPUT=str(tmp_path / "mini"))
    assert len(runs(calls)) == 4 * 3
    assert "--paper-table" not in table(done)
    done, calls = pretend("scripts/table14.sh", "imagenet", SEEDS="1", SHOTS="1%", STUDENTS="vit_b16")
    assert runs(calls)[-1] == "Distill_DHO/vit_b16_ep32_1percent_nl_ce_kd/seed1"
    settings = {"SEEDS": "1", "SHOTS": "1", "DATASETS": "dtd eurosat", "OUTPUT": str(tmp_path / "ten")}
    done, calls = pretend("scripts/table14.sh", "ten", "A.B", "c", **settings)
    assert len(runs(calls)) == 4 * 2
    assert table(done)[-1] == "--mean"


def test_figure_5(pretend, tmp_path):
    settings = {"SEEDS": "1", "SHOTS": "1", "METHODS": "CE DHO"}
    done, calls = pretend("scripts/fig5.sh", "A.B", "c", **settings)
    assert done.returncode == 0, done.stderr
    assert len(runs(calls)) == 10 * 2 * 2
    sets = {Path(call[4]).parts[-4] for call in calls if call[0] == "start" and "Distill" in call[2]}
    assert len(sets) == 10
    assert all((ROOT / f"configs/datasets/{name}.yaml").is_file() for name in sets)
    assert table(done)[-1] == "--mean"
    assert len(table(done)) == 10 * 5 + 1
    whole = {**settings, "METHODS": "", "DATASETS": "dtd", "OUTPUT": str(tmp_path / "whole")}
    _, calls = pretend("scripts/fig5.sh", STUDENTS="resnet18", **whole)
    one = "resnet18_ep200_1shots"
    assert runs(calls) == [
        "Distill_KD/resnet18_ep200_unlabeled/seed1",
        *(f"Distill_{name}/{one}/seed1" for name in ("CE", "CEKDFeature", "CEKD", "DHO")),
        f"Distill_DHO/{one}_few_shot/seed1",
    ]
    assert [call[2] for call in calls if call[0] == "start"][1] == "TipAdapterF"  # before all students
    _, calls = pretend("scripts/fig5.sh", STUDENTS="vit_b16", **whole)
    assert not any("few_shot" in run for run in runs(calls))  # no config for a few-shot teacher of its own
    done, calls = pretend("scripts/fig5.sh", DATASETS="dtd eurosat", STUDENT="mobilenetv2", **settings)
    assert not runs(calls)  # they are there
    shown = {Path(word).name for word in table(done) if "Distill" in word}
    assert shown == {"mobilenetv2_ep200_1shots"}
    done, calls = pretend("scripts/fig5.sh", DATASETS="dtd", STUDENTS="mobilenetv2 vit_b16", **settings)
    assert {Path(run).parts[1] for run in runs(calls)} == {"vit_b16_ep32_1shots"}  # the other's are there
    assert any("mobilenetv2_ep200" in word for word in table(done))
    done, calls = pretend("scripts/fig5.sh", "mini", **settings)
    assert {Path(run).parts[1] for run in runs(calls)} == {"mini_resnet_pretrained_1shots"}
    assert "--mean" not in table(done)


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        ("distill.sh mini 4", {}, "usage: bash scripts/distill.sh"),
        ("distill.sh mini 4 resnet18", {}, "'resnet18' is no student of mini; there are: mini-resnet"),
        ("distill.sh dtd 4 RN50", {}, "STUDENT is 'RN50'"),
        ("distill.sh dtd 0 resnet18", {}, "SHOTS is '0'"),
        ("distill.sh dtd 4 resnet18 --depth", {}, "unknown option '--depth'"),
        (
            "distill.sh mini 4 mini-resnet --compare",
            {"METHODS": "DHO"},
            "--compare says which methods, and METHODS does",
        ),
        ("table1.sh mini", {"METHODS": "CE SHO"}, "unknown method 'SHO'"),
        (
            "distill.sh mini 4 mini-resnet",
            {"STUDENT_CKPT": "x.pt"},
            "STUDENT_CKPT is 'x.pt', and there is no file x.pt",
        ),
        ("distill.sh mini 4 mini-resnet", {"TEACHER_CKPT": "tests"}, "TEACHER_CKPT is 'tests', and there is no file"),
        ("table4.sh", {"STUDENT_CKPT": FILE}, "STUDENT_CKPT is one student's file"),
        ("table12.sh", {"TEACHER_CKPT": FILE}, "TEACHER_CKPT is one teacher's file"),
        ("table4.sh", {"METHODS": "DHO DHO-F"}, "no configs/trainers/TipAdapterF/vit_h14_378.yaml"),
        ("table1.sh nowhere", {}, "unknown data set 'nowhere'"),
        ("distill.sh dtd '' resnet18", {}, "usage: bash scripts/distill.sh"),
        ("distill.sh dtd 16 ''", {}, "usage: bash scripts/distill.sh"),
        ("tune_distill.sh dtd 16 ''", {}, "STUDENT is ''"),
        ("distill.sh dtd 16 mini-resnet", {}, "'mini-resnet' is a student of mini alone; on dtd it is one of resnet18"),
        ("distill.sh tests 16 mini-resnet", {}, "'mini-resnet' is a student of mini alone"),
        ("distill.sh imagenet 16 vit_b_16", {}, "STUDENT is 'vit_b_16', which is neither one of resnet18 "),
        ("tune_distill.sh imagenet 16 resnet81", {}, "close to it are: resnet18 "),
        ("fig5.sh", {"DATASETS": "dtd nowhere"}, "unknown data set 'nowhere'"),
        ("fig5.sh", {"DATASETS": "dtd mini"}, "'resnet18' is no student of mini"),
        ("table4.sh", {"PERCENTS": "1 10"}, "PERCENTS has '1'; each of its words ends in %, as in PERCENTS=\"1% 10%\""),
        ("table5.sh mini", {"PERCENTS": "1% 10"}, "PERCENTS has '10'"),
        ("table5.sh mini", {"METHODS": "CE"}, "METHODS and STUDENTS are of other tables"),
        ("table14.sh ten", {"METHODS": "CE"}, "METHODS is 'CE'; these rows are those of DHO DHO+NL-Head-CE"),
        (
            "table14.sh mini TRAINER.DHO.KD_HEAD mlp",
            {},
            "TRAINER.DHO.KD_HEAD is among the options, and the rows differ",
        ),
        ("table14.sh ten", {"DATASETS": "dtd nowhere"}, "unknown data set 'nowhere'"),
        ("table5.sh mini TRAINER.DHO.INIT kaiming", {}, "TRAINER.DHO.INIT is among the options"),
        ("tune_distill.sh mini 4 mini-resnet", {"METHODS": "DHO+NL-Head-KD"}, "DHO+NL-Head-KD has DHO's values"),
        ("table14.sh dtd --heads", {}, "unknown option '--heads'"),
        ("table14.sh nowhere", {}, "unknown data set 'nowhere'"),
        ("table5.sh", {"STUDENTS": "vit_b16"}, "METHODS and STUDENTS are of other tables"),
    ],
)
def test_a_slip_is_one_message_before_anything_is_trained(words, settings, message, pretend):
    script, *words = shlex.split(words)
    done, calls = pretend(f"scripts/{script}", *words, **settings)
    assert done.returncode == 2
    assert message in done.stderr
    assert not calls


def test_the_teacher_of_dho_f_is_trained_before_its_students(pretend):
    done, calls = pretend(
        "scripts/table1.sh", "mini", METHODS="DHO DHO-F", SHOTS="4", STUDENTS="mini-resnet", SEEDS="1 2"
    )
    assert done.returncode == 0, done.stderr
    started = ["/".join(Path(call[4]).parts[-3:]) for call in calls if call[0] == "start"]
    assert started == [
        "mini/ZeroshotCLIP2/mini",
        *(f"TipAdapterF/mini_4shots/seed{seed}" for seed in (1, 2)),
        *(f"Distill_DHO/mini_resnet_4shots/seed{seed}" for seed in (1, 2)),
        *(f"Distill_DHO/mini_resnet_4shots_few_shot/seed{seed}" for seed in (1, 2)),
    ]
    students = [" ".join(call) for call in calls if call[0] == "start" and "shots_few_shot" in call[4]]
    assert all("TRAINER.DHO.TEACHER.TYPE few_shot" in line and "mini_4shots/seed{seed}" in line for line in students)
    assert [Path(word).name for word in table(done)[-4:-2]] == ["mini_4shots", "mini_resnet_4shots_few_shot"]


# Weights from files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("student", ["resnet18", "mobilenetv2"])
def test_one_student_from_a_file_has_runs_beside_those_from_scratch(student, pretend, tmp_path):
    (tmp_path / "my weights.pth").touch()
    added = "" if student == "resnet18" else f"_{student}"
    for file, end in (("", ""), (str(tmp_path / "my weights.pth"), "_from_my_weights.pth")):
        done, calls = pretend("scripts/distill.sh", "imagenet", "4", student, SEEDS="1", STUDENT_CKPT=file)
        assert done.returncode == 0, done.stderr
        assert runs(calls) == [f"Distill_DHO/resnet18_scratch_ep20_4shots{added}{end}/seed1"]
        assert ("MODEL.BACKBONE.CKPT" in " ".join(calls[-2])) == bool(file)
        assert table(done)[-4].endswith(f"_4shots{added}{end}")


def test_one_s_own_words_for_the_student_s_weights_are_in_force(pretend):
    done, calls = pretend("scripts/table1.sh", "MODEL.BACKBONE.CKPT", "own.pth", SEEDS="1", METHODS="CE", SHOTS="1")
    assert done.returncode == 0, done.stderr
    assert [call[-1] for call in calls if call[0] == "start" and "Distill" in call[2]] == ["own.pth"] * 2


def test_paths_are_those_of_the_folder_that_a_script_is_started_in(pretend, tmp_path):
    for name in ("s.pt", "t.pt"):
        (tmp_path / name).touch()
    ask = f"cd {tmp_path}; bash {ROOT}/scripts/distill.sh imagenet 4 vit_b16"
    words = {"STUDENT_CKPT": "s.pt", "TEACHER_CKPT": "./t.pt", "DATA": "sets", "OUTPUT": "runs", "SEEDS": "1"}
    done, calls = pretend("-c", ask, **words)
    assert done.returncode == 0, done.stderr
    line = " ".join(calls[-2])
    assert f"MODEL.BACKBONE.CKPT {tmp_path}/s.pt TRAINER.DHO.TEACHER.CKPT {tmp_path}/./t.pt" in line
    assert f"--root {tmp_path}/sets " in line
    assert f"--output-dir {tmp_path}/runs/imagenet/" in line
    done, _ = pretend("-c", ask, **{**words, "STUDENT_CKPT": FILE})
    assert f"STUDENT_CKPT is '{FILE}', and there is no file {tmp_path}/{FILE}" in done.stderr
    (tmp_path / "runs").rename(tmp_path / "runs1")
    _, calls = pretend("-c", ask, **{**words, "DATA": "", "STUDENT_CKPT": "~/s.pt", "HOME": str(tmp_path)})
    line = " ".join(calls[-2])
    assert "--root data " in line  # the default lies in the repository
    assert f"MODEL.BACKBONE.CKPT {tmp_path}/s.pt " in line


def test_a_folder_among_figure_5_s_sets_leaves_the_others_where_they_are(pretend, tmp_path):
    (tmp_path / "photos").mkdir()
    words = {"DATASETS": f"dtd {tmp_path}/photos eurosat", "METHODS": "CE", "SHOTS": "1", "SEEDS": "1", "DATA": "/sets"}
    done, calls = pretend("scripts/fig5.sh", **words)
    assert done.returncode == 0, done.stderr
    roots = [call[call.index("--root") + 1] for call in calls if call[0] == "start" and "Distill" in call[2]]
    assert roots == [*["/sets"] * 2, *[str(tmp_path)] * 2, *["/sets"] * 2]  # two students each


# Tuning ------------------------------------------------------------------------------------------------------------


def test_every_method_has_as_many_tries_on_held_out_labels(pretend):
    done, calls = pretend("scripts/tune_distill.sh", "mini", "4", "mini-resnet", "A.B", "c", GOOD="*DHO*_lr1e-2_*")
    assert done.returncode == 0, done.stderr
    tries = runs(calls)
    assert len(tries) == 7 * 5
    assert len(set(tries)) == 7 * 5
    assert [run.split("shots")[1] for run in tries if "_DHO/" in run] == [
        f"_lr{rate}_lambda{weight}/seed101"
        for rate, weight in (("3e-3", 0.1), ("1e-2", 0.1), ("3e-2", 0.1), ("1e-2", 0.5), ("1e-2", 0.02))
    ]
    assert [run.split("shots")[1].split("/")[0] for run in tries if "_CE/" in run] == [
        "_lr3e-3", "_lr1e-2", "_lr3e-2", "_lr1e-3", "_lr1e-1",
    ]  # fmt: skip
    for call in (call for call in calls if call[0] == "start"):
        words = " ".join(call)
        assert "DATASET.NUM_VAL_SHOTS 32 TEST.SPLIT val TEST.SHIFTED () A.B c" in words
        assert ("OPTIM.LR 1e-2" in words) == ("_lr1e-2" in words)
        assert ("LAMBDA 0.02" in words) == ("_lambda0.02" in words)
    assert "\nDHO lr 1e-2 lambda 0.5: 60.5\n" in done.stdout
    assert "\nCEKD lr 3e-3 lambda 0.02: 9.5\n" in done.stdout
    assert "\nKD lr 1e-1: 9.5\n" in done.stdout


def test_a_try_whose_loss_is_no_longer_finite_has_no_result(pretend):
    words = {"METHODS": "DHO", "RATES": "1e-4 3e-2", "LAMBDAS": "0.1 0.5", "CODE": "4"}
    done, calls = pretend("scripts/tune_distill.sh", "dtd", "16", "resnet18", FAIL="*_lr3e-2_*", **words)
    assert done.returncode == 0, done.stderr
    assert runs(calls)[-1] == "Distill_DHO/resnet18_ep200_16shots_lr1e-4_lambda0.5/seed101"
    assert "\nDHO lr 1e-4 lambda 0.1: 9.5\nDHO lr 3e-2 lambda 0.1: \n" in done.stdout


def test_tries_of_another_process_are_waited_for(pretend):
    words = {"METHODS": "DHO", "RATES": "1e-4 3e-2", "LAMBDAS": "0.1 0.5", "CODE": "3"}
    done, calls = pretend("scripts/tune_distill.sh", "dtd", "16", "resnet18", FAIL="*_lr3e-2_*", **words)
    assert done.returncode == 2
    assert "another process is at" in done.stderr
    assert len(runs(calls)) == 2


def test_other_values_are_tried_when_asked(pretend):
    words = {"METHODS": "DHO", "RATES": "1e-4", "LAMBDAS": "0.5", "VAL_SHOTS": "4"}
    done, calls = pretend("scripts/tune_distill.sh", "dtd", "16", "resnet18", **words)
    assert done.returncode == 0, done.stderr
    assert runs(calls) == ["Distill_DHO/resnet18_ep200_16shots_lr1e-4_lambda0.5/seed101"]
    assert "NUM_VAL_SHOTS 4" in " ".join(calls[0])
    done, _ = pretend("scripts/tune_distill.sh", "dtd", "16", "resnet18", METHODS="DHO DHO-F")
    assert done.returncode == 2
    assert "DHO-F has DHO's values" in done.stderr
