"""Which runs each script makes, in which order, folder and device; a stand-in notes them."""

import os
import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
FILE = "LICENSE"  # stands for weights: a file that is there


def started(calls: list[list[str]]) -> list[tuple[str, str]]:
    """Return the trainer and the folder, from the trainer's own on, of each run."""
    return [(call[2], "/".join(Path(call[4]).parts[-2:])) for call in calls if call[0] == "start"]


SOURCE = "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets"
SCRIPTS = [
    ("linear_probe_dho.sh imagenet 4", "LinearProbe", "vit_b16_ep20"),
    ("linear_probe_dho.sh mini 4", "LinearProbe", "mini_ep10"),
    ("vpt_dho.sh imagenet 4", "VPT", "vit_b16_ep20_depth3"),
    ("vpt_dho.sh imagenet 4 --depth 9", "VPT", "vit_b16_ep20_depth9"),
    ("vpt_dho.sh mini 4", "VPT", "mini_ep10_depth3"),
    ("vpt_dho.sh mini 4 --depth 1", "VPT", "mini_ep10_depth1"),
    ("coop_dho.sh imagenet 4", "CoOp", "vit_b16_ep50_ctxv1"),
    ("coop_dho.sh mini 4", "CoOp", "mini_ep10"),
    ("promptsrc_dho.sh imagenet 4", "PromptSRC", SOURCE),
    ("promptsrc_dho.sh mini 4", "PromptSRC", "mini_ep10"),
]


@pytest.mark.parametrize(("words", "method", "config"), SCRIPTS)
def test_each_method_has_its_script(words, method, config, pretend, tmp_path):
    script, *words = words.split()
    done, calls = pretend(f"scripts/{script}", *words, "A.B", "-1", "--compare", SEEDS="1 2")
    assert done.returncode == 0, done.stderr
    seeds = ("seed1", "seed2")
    assert started(calls)[2:] == [
        *((f"{method}_DHO", f"{config}_4shots/{seed}") for seed in seeds),
        *((method, f"{config}_4shots/{seed}") for seed in seeds),
        *((f"{method}_DHO", f"{config}_4shots_labeled/{seed}") for seed in seeds),
        *((f"{method}_DHO", f"{config}_4shots_placebo/{seed}") for seed in seeds),
    ]
    assert [trainer for trainer, _ in started(calls)[:2]] == ["ZeroshotCLIP", "ZeroshotCLIP2"]
    lines = [" ".join(call) for call in calls if call[0] == "start"]
    assert all(line.endswith("A.B -1") and "DATASET.NUM_SHOTS 4" in line for line in lines[2:])
    assert ["UNLABELED False" in line for line in lines[2:]] == [False] * 4 + [True] * 2 + [False] * 2
    assert ["TYPE placebo" in line for line in lines[2:]] == [False] * 6 + [True] * 2
    _, calls = pretend(f"scripts/{script}", *words, SEEDS="1", OUTPUT=str(tmp_path / "another"))
    assert len(calls) == 2 * 3  # start and end of the zero-shot rows and of one run


@pytest.mark.parametrize(
    ("words", "config", "has"),
    [
        ("mini 4", "mini", ""),
        ("mini 4 --config mini_student", "mini_student", ""),
        ("imagenet 4", "rn50", ""),
        ("oxford_pets 4 --config vit_b16", "vit_b16", ""),
        (
            "eurosat 1%",
            "rn50",
            "ALPHA 2.0 TRAINER.TIPADAPTER.SEARCH_SCALE (12.0,10.0) OPTIM.MAX_EPOCH 100 INPUT.VIEWS 100",
        ),
        (
            "oxford_flowers 4",
            "rn50",
            "ALPHA 10.0 TRAINER.TIPADAPTER.SEARCH_SCALE (50.0,50.0) OPTIM.MAX_EPOCH 20 INPUT.VIEWS 20",
        ),
    ],
)
def test_tip_adapter_makes_a_teacher_of_each_seed(words, config, has, pretend):
    done, calls = pretend("scripts/tip_adapter.sh", *words.split(), "A.B", "c", SEEDS="1 2", TEACHER_CKPT=FILE)
    assert done.returncode == 0, done.stderr
    labeled = "1percent" if "%" in words else "4shots"
    assert started(calls) == [
        ("ZeroshotCLIP2", f"ZeroshotCLIP2/{config}"),
        *((trainer, f"{config}_{labeled}/seed{s}") for trainer in ("TipAdapter", "TipAdapterF") for s in (1, 2)),
    ]
    lines = [" ".join(call) for call in calls if call[0] == "start"]
    assert all(f"MODEL.BACKBONE.CKPT {FILE}" in line and "TEACHER.CKPT" not in line for line in lines)
    assert all(line.endswith(f"{has} A.B c") if has else line.endswith(" A.B c") for line in lines[1:])
    assert ("TIPADAPTER" in "".join(lines)) == bool(has)


@pytest.mark.parametrize(("data", "teacher"), [("mini", "mini"), ("imagenet", "vit_l14_336")])
def test_few_shot_adds_dho_f_behind_its_teachers(data, teacher, pretend, tmp_path):
    words = (data, "4", "--few-shot", "OPTIM.LR", "1", "TEST.SPLIT", "test")
    done, calls = pretend("scripts/coop_dho.sh", *words, SEEDS="1 2", STUDENT_CKPT="setup.py", TEACHER_CKPT=FILE)
    assert done.returncode == 0, done.stderr
    config = "mini_ep10" if data == "mini" else "vit_b16_ep50_ctxv1"
    assert started(calls)[2:] == [
        *(("TipAdapterF", f"{teacher}_4shots/seed{seed}") for seed in (1, 2)),
        *(("CoOp_DHO", f"{config}_4shots/seed{seed}") for seed in (1, 2)),
        *(("CoOp_DHO", f"{config}_4shots_few_shot/seed{seed}") for seed in (1, 2)),
    ]
    lines = [" ".join(call) for call in calls if call[0] == "start"][2:]
    assert all(
        line.endswith(f"MODEL.BACKBONE.CKPT {FILE} TEST.SPLIT test") for line in lines[:2]
    )  # no rate of the method
    assert not any("TYPE few_shot" in line for line in lines[:4])
    adapter = f"{tmp_path}/out/{data}/TipAdapterF/{teacher}_4shots/seed{{seed}}"
    pairs = f"TRAINER.DHO.TEACHER.TYPE few_shot TRAINER.DHO.ALPHA 0.2 TRAINER.DHO.TEACHER.ADAPTER {adapter}"
    assert all(line.endswith(f"{pairs} OPTIM.LR 1 TEST.SPLIT test") for line in lines[4:])
    assert f"few-shot teacher (DHO-F): {pairs}" in done.stdout


def test_table13_runs_every_row_and_compares_with_the_paper(pretend):
    done, calls = pretend("scripts/table13.sh", "imagenet", "A.B", "c", SEEDS="1")
    assert done.returncode == 0, done.stderr
    kinds = (("", ""), ("_DHO", "_labeled"), ("_DHO", ""))
    assert started(calls)[2:] == [
        (method + twin, f"{config}{variant}/seed1")
        for method, config in (
            ("LinearProbe", "vit_b16_ep20_1percent"),
            ("VPT", "vit_b16_ep20_depth3_16shots"),
            ("VPT", "vit_b16_ep20_depth9_16shots"),
            ("CoOp", "vit_b16_ep50_ctxv1_16shots"),
            ("PromptSRC", f"{SOURCE}_16shots"),
        )
        for twin, variant in kinds
    ]
    assert all(call[-2:] == ["A.B", "c"] for call in calls if call[0] == "start" and "Zero" not in call[2])
    table = next(line for line in done.stdout.splitlines() if line.startswith("tables "))
    assert shlex.split(table)[2:] == ["--paired", "--paper"]


def test_table13_on_mini_has_other_depths_and_no_paper(pretend):
    settings = {"SEEDS": "3", "METHODS": "VPT-1 VPT-3"}
    done, calls = pretend("scripts/table13.sh", "mini", "8", "--placebo", **settings)
    assert done.returncode == 0, done.stderr
    names = [
        f"mini_ep10_depth{depth}_8shots{kind}/seed3" for depth in (1, 3) for kind in ("", "_labeled", "", "_placebo")
    ]
    assert [name for _, name in started(calls)[2:]] == names
    assert "--paired" in done.stdout
    assert "--paper" not in done.stdout


def test_every_run_has_one_device_and_no_device_two_runs(pretend):
    settings = {"GPUS": "4 7", "SEEDS": "1 2 3", "JOBS": "", "SECONDS_A_RUN": "0.3"}
    done, calls = pretend("scripts/coop_dho.sh", "imagenet", "16", "--compare", **settings)
    assert done.returncode == 0, done.stderr
    busy, seen = set(), []
    for what, device, *_ in calls:
        if what == "start":
            assert device in ("4", "7")
            assert device not in busy
            busy.add(device)
            seen.append(device)
        else:
            busy.remove(device)
    assert len(seen) == 14
    assert {"4", "7"} == set(seen)
    _, calls = pretend("scripts/coop_dho.sh", "imagenet", "1", GPUS="4 7", JOBS="1")
    assert {call[1] for call in calls} == {"4"}
    _, calls = pretend("scripts/coop_dho.sh", "imagenet", "2")
    assert {call[1] for call in calls} == {os.environ.get("CUDA_VISIBLE_DEVICES") or "none"}


def test_the_zero_shot_rows_are_of_the_clips_that_the_words_name(pretend):
    student = ("MODEL.BACKBONE.NAME", "ViT-B-16", "MODEL.BACKBONE.TAG", "laion2b")
    teacher = ("TRAINER.DHO.TEACHER.NAME", "ViT-L-14", "TRAINER.DHO.TEACHER.TAG", "dfn2b")
    done, calls = pretend("scripts/coop_dho.sh", "imagenet", "2", *student, *teacher, "OPTIM.LR", "1", SEEDS="1")
    assert done.returncode == 0, done.stderr
    ends = {call[2]: " ".join(call) for call in calls if call[0] == "start"}
    assert ends["ZeroshotCLIP"].endswith(" MODEL.BACKBONE.NAME ViT-B-16 MODEL.BACKBONE.TAG laion2b")
    assert ends["ZeroshotCLIP2"].endswith(" MODEL.BACKBONE.NAME ViT-L-14 MODEL.BACKBONE.TAG dfn2b")
    assert ends["CoOp_DHO"].endswith(" ".join((*student, *teacher, "OPTIM.LR 1")))


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_run_that_another_process_is_at_is_left_to_it(jobs, pretend, tmp_path):
    done, calls = pretend("scripts/table13.sh", "imagenet", METHODS="CoOp", FAIL="*/CoOp/*/seed2", CODE="3", JOBS=jobs)
    assert done.returncode == 0, done.stderr
    assert len(started(calls)) == 2 + 9
    run_folder = tmp_path / "out/imagenet/CoOp/vit_b16_ep50_ctxv1_16shots/seed2"
    assert f"{run_folder}: another process is at it, left to it" in done.stdout
    assert f"{run_folder} was left to another process (not finished yet" in done.stderr
    assert done.stderr.count("was left to another process") == 1
    assert "tables " in done.stdout


def test_two_scripts_side_by_side_share_the_runs(pretend, tmp_path):
    settings = {"METHODS": "LinearProbe CoOp", "SEEDS": "1 2", "SECONDS_A_RUN": "0.7"}
    words = ("scripts/table13.sh", "imagenet")
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(pretend, *words, GPUS=gpus, JOBS="", **settings) for gpus in ("0 1", "2 3")]
        done = [script.result()[0] for script in both]
    assert [script.returncode for script in done] == [0, 0], done[0].stderr + done[1].stderr
    calls = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    folders = [call[4] for call in calls if call[0] == "start"]
    assert len(folders) == len(set(folders)) == 2 + 2 * 3 * 2
    devices = {call[1] for call in calls}
    assert devices & {"0", "1"}
    assert devices & {"2", "3"}
    assert any("was left to another process" in script.stderr for script in done)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_failing_run_is_named_with_its_log(jobs, pretend, tmp_path):
    done, calls = pretend("scripts/table13.sh", "imagenet", FAIL="*/CoOp/*/seed1", CODE="1", JOBS=jobs)
    assert done.returncode == 2
    run_folder = tmp_path / "out/imagenet/CoOp/vit_b16_ep50_ctxv1_16shots/seed1"
    assert f"the log of the failed run: {run_folder}/log.txt" in done.stderr
    assert f"{run_folder} failed (exit code 1)" in done.stderr
    assert "tables " not in done.stdout
    assert not any("PromptSRC" in trainer for trainer, _ in started(calls))


def test_every_finished_run_is_evaluated_once_on_every_shifted_set(pretend, tmp_path):
    groups = ("mini_ep10_4shots", "mini_ep10_4shots_placebo", "mini_ep10_14shots")
    for run_folder in (*(f"{group}/seed{seed}" for group in groups for seed in (1, 2)), "mini_ep10_4shots/seed3"):
        (tmp_path / "out/mini/VPT_DHO" / run_folder).mkdir(parents=True)
        content = "{}"
        if not run_folder.endswith("seed3"):  # that one is not finished
            (tmp_path / "out/mini/VPT_DHO" / run_folder / "results.json").write_text(content)
    words = ("scripts/eval_ood.sh", "VPT_DHO", "mini", "4")
    done, calls = pretend(*words, STUDENT_CKPT=FILE)
    assert done.returncode == 0, done.stderr
    sets = ("mini_imagenetv2", "mini_imagenet_sketch", "mini_imagenet_r", "mini_imagenet_a")
    home = tmp_path / "out/evaluation/VPT_DHO"
    assert [(call[3], call[4]) for call in calls if call[0] == "start"] == [
        (name, str(home / group / name / f"seed{seed}")) for group in groups[:2] for seed in (1, 2) for name in sets
    ]
    mixing = f"TRAINER.DHO.SEARCH False MODEL.BACKBONE.CKPT {FILE}"  # the evaluation takes alpha and beta of the run
    assert all(" ".join(call).endswith(mixing) for call in calls if call[0] == "start")
    assert done.stdout.splitlines()[-1] == f"tables --evaluations {home}/{groups[0]} {home}/{groups[1]}"
    again, calls = pretend(*words)
    assert (calls, again.stdout.count("is complete: skipped")) == ([], 16)
    later = time.time() + 10
    os.utime(tmp_path / "out/mini/VPT_DHO" / groups[0] / "seed2/results.json", (later, later))
    _, calls = pretend(*words)
    assert {call[4] for call in calls if call[0] == "start"} == {
        str(home / groups[0] / name / "seed2") for name in sets
    }
    os.utime(tmp_path / "out/mini/VPT_DHO" / groups[0] / "seed2/results.json", (later - 3600, later - 3600))
    for expected in (4, 0):  # other words are other figures, in folders of their own
        done, calls = pretend(*words, "TRAINER.DHO.ALPHA", "0.3", "A.PATH", "x/y", SETS="imagenet_a")
        assert len(started(calls)) == expected
    added = "_ALPHA_0.3_PATH_x_y"
    assert done.stdout.splitlines()[-1] == f"tables --evaluations {home}/{groups[0]}{added} {home}/{groups[1]}{added}"
    assert (pretend(*words)[0]).stdout.count("is complete: skipped") == 16


def test_runs_that_look_at_no_label_are_evaluated_by_that_name(pretend, tmp_path):
    for name in ("mini_resnet_unlabeled", "mini_resnet_4shots"):
        folder = tmp_path / "out/mini/Distill_KD" / name / "seed1"
        folder.mkdir(parents=True)
        (folder / "results.json").write_text("{}")
    done, calls = pretend("scripts/eval_ood.sh", "Distill_KD", "mini", "unlabeled", SETS="imagenet_a")
    assert done.returncode == 0, done.stderr
    assert [Path(call[4]).parts[-3] for call in calls if call[0] == "start"] == ["mini_resnet_unlabeled"]


@pytest.mark.parametrize("how", ["folder", "csv", "relative"])
def test_a_folder_or_a_csv_of_ones_own_is_a_data_set(pretend, tmp_path, how):
    photos = tmp_path / "my photos & 2024"
    photos.mkdir()
    (photos / "labels.csv").touch()
    where = {"folder": photos, "csv": photos / "labels.csv", "relative": os.path.relpath(photos, ROOT)}[how]
    done, calls = pretend("scripts/coop_dho.sh", str(where), "4", SEEDS="1")
    assert done.returncode == 0, done.stderr
    name = "my_photos___2024" + ("_labels" if how == "csv" else "")
    assert started(calls)[2] == ("CoOp_DHO", "vit_b16_ep50_ctxv1_4shots/seed1")
    for call in calls[::2]:
        line = " ".join(call)
        assert f"out/{name}/" in line
        assert f"--root {tmp_path} " in line
        assert "--dataset-config-file configs/datasets/folder.yaml" in line
        assert "DATASET.PREFIX my photos & 2024" in line
        assert ("DATASET.CSV labels.csv" in line) == (how == "csv")
    assert f"tables {tmp_path}/out/{name}" in done.stdout


@pytest.mark.parametrize("relative", [False, True])
def test_own_data_never_lands_among_the_runs_of_a_published_set(pretend, tmp_path, relative):
    (tmp_path / "imagenet").mkdir()
    script = f"cd {tmp_path}; bash {ROOT}/scripts/coop_dho.sh {'./imagenet' if relative else tmp_path / 'imagenet'} 4"
    _, calls = pretend("-c", script, SEEDS="1")
    assert len(calls) == 6
    assert all("out/own_imagenet" in " ".join(call) for call in calls)
    assert all(f"--root {tmp_path} " in " ".join(call) for call in calls[::2])


def test_a_percentage_may_be_labeled(pretend):
    done, calls = pretend("scripts/linear_probe_dho.sh", "imagenet", "1%", SEEDS="2")
    assert done.returncode == 0, done.stderr
    assert started(calls)[2] == ("LinearProbe_DHO", "vit_b16_ep20_1percent/seed2")
    assert "DATASET.NUM_SHOTS -1 DATASET.LABELED_PERCENT 1" in " ".join(calls[4])
    for wrong in ("%1", "0%", "0.0%"):  # 0 would label all images
        assert pretend("scripts/linear_probe_dho.sh", "imagenet", wrong)[0].returncode == 2


def test_an_empty_name_of_a_data_set_is_not_the_current_folder(pretend):
    done, calls = pretend("scripts/coop_dho.sh", "", "4")
    assert (done.returncode, calls) == (2, [])
    assert "no data set is named" in done.stderr


def test_words_about_the_images_hold_for_the_zero_shot_rows_too(pretend):
    words = ("DATASET.UNREADABLE", "skip", "OPTIM.LR", "1", "DATASET.TEMPLATES", "('a {}.',)")
    _, calls = pretend("scripts/coop_dho.sh", "imagenet", "4", *words, SEEDS="1")
    for call in calls[:4:2]:
        line = " ".join(call)
        assert "DATASET.UNREADABLE skip DATASET.TEMPLATES ('a {}.',)" in line
        assert "OPTIM.LR" not in line


@pytest.mark.parametrize(("dataset", "steps"), [("imagenet", False), ("caltech101", True)])
def test_small_sets_are_not_warmed_up_longer_than_they_train(pretend, dataset, steps):
    _, calls = pretend("scripts/linear_probe_dho.sh", dataset, "4", "OPTIM.WARMUP_STEPS", "7", SEEDS="1")
    line = " ".join(calls[4])
    assert ("OPTIM.WARMUP_STEPS 0 OPTIM.WARMUP_STEPS 7" in line) == steps
    assert line.endswith("OPTIM.WARMUP_STEPS 7")


def test_processes_of_one_run_are_started_together_run_after_run(pretend):
    done, calls = pretend("scripts/coop_dho.sh", "mini", "4", SEEDS="1 2", PROCESSES="8")
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in calls] == ["start", "end"] * 4
    for call in calls[::2]:
        words = " ".join(call[5:])
        assert words.startswith("-m torch.distributed.run --standalone --nproc_per_node 8 -m dho_plugin.train --root")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"PROCESSES": "many"}, "PROCESSES is 'many'"),
        ({"PROCESSES": "2", "GPUS": "0 1"}, "set one of them"),
        ({"JOBS": "auto"}, "JOBS is 'auto'"),
        ({"JOBS": "0"}, "JOBS is '0'"),
        ({"GPUS": "0,1"}, "GPUS is '0,1'; its devices stand with spaces between"),
    ],
)
def test_processes_that_make_no_sense_are_refused(pretend, settings, message):
    done, calls = pretend("scripts/coop_dho.sh", "mini", "4", **settings)
    assert done.returncode == 2
    assert message in done.stderr
    assert not calls
