"""The scripts as README says, with the real trainers on a tiny tree with tiny CLIPs."""

import json

from dho_plugin.engine.logger import locked
from dho_plugin.train import main


def test_a_machine_without_imagenet_is_told_what_must_lie_where(run, tmp_path):
    done = run("scripts/coop_dho.sh", "imagenet", "16", DATA=str(tmp_path), OUTPUT=str(tmp_path / "out"))
    assert done.returncode != 0
    assert f"{tmp_path}/imagenet/images/val: no such folder" in done.stderr
    assert "DATASETS.md" in done.stderr


def test_the_real_data_s_path_from_images_to_both_tables(run, imagenet_tree, tiny_weights, tmp_path):
    tree, out = imagenet_tree(classes=4, train=6, test=2), tmp_path / "out"
    settings = {
        "DATA": str(tree.root), "OUTPUT": str(out), "SEEDS": "2", "JOBS": "2",
        "STUDENT_CKPT": tiny_weights[0], "TEACHER_CKPT": tiny_weights[1],
    }  # fmt: skip
    small = ("OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0")
    words = ("scripts/coop_dho.sh", "imagenet", "2", *small)
    done = run(*words, **settings)
    assert done.returncode == 0, done.stderr
    table = done.stdout[done.stdout.rindex("Method") :]
    assert "CLIP zero-shot ViT-B/16" in table
    assert "CLIP zero-shot ViT-L/14@336px" in table
    assert "CoOp + DHO" in table
    assert (out / "imagenet/CoOp_DHO/vit_b16_ep50_ctxv1_2shots/seed2/results.json").exists()
    again = run(*words, **settings)
    assert again.stdout.count("skipped") == 3
    assert again.stdout[again.stdout.rindex("Method") :] == table

    settings |= {"SEEDS": "1", "METHODS": "VPT-3"}
    words = ("scripts/table13.sh", "imagenet", "2", *small, "TRAINER.VPT.PREC", "fp32", "OPTIM.WARMUP_STEPS", "0")
    words = (*words, "TRAINER.VPT.PROMPT_DEPTH_VISION", "2")  # the tiny CLIP has no third layer
    base = out / "imagenet/VPT/vit_b16_ep20_depth3_2shots/seed1"
    with locked(base):
        done = run(*words, **settings)
    assert done.returncode == 0, done.stderr
    assert f"{base}: another process is at it" in done.stdout
    assert f"{base} was left to another process (not finished yet" in done.stderr
    assert "VPT-2 + DHO" in done.stdout
    again = run(*words, **settings)
    assert again.returncode == 0, again.stderr
    assert (base / "results.json").exists()
    assert again.stdout.count("skipped") == 4  # the zero-shot rows and what the first one did
    assert "left to" not in again.stderr
    table, pairs = again.stdout.rsplit("\n\n", 2)[:2]
    assert len([line for line in table.splitlines() if line.startswith("ours ")]) == 2 + 1 + 3
    assert "66.7" in table  # the paper's zero-shot row
    assert "DHO unlabeled - base" in pairs


def test_evaluation_on_the_shifted_sets_repeats_the_runs_own_numbers(run, command, tmp_path):
    """A run's own options go with it: weights, teacher, the best epoch, alpha and beta chosen on validation images."""
    folder = "out/imagenet/CoOp_DHO/vit_b16_ep50_ctxv1_2shots_labeled/seed1"
    options = ("TRAINER.DHO.UNLABELED", "False", "DATASET.NUM_VAL_SHOTS", "1", "TRAINER.DHO.SEARCH", "True")
    assert main(command("CoOp_DHO", folder, *options, "TEST.FINAL_MODEL", "best_val")) == 0
    settings = {"DATA": str(tmp_path), "OUTPUT": str(tmp_path / "out"), "JOBS": "2", "SETS": "imagenetv2 imagenet_r"}
    done = run("scripts/eval_ood.sh", "CoOp_DHO", "imagenet", "2", **settings)
    assert done.returncode == 0, done.stderr
    own = json.loads((tmp_path / folder / "results.json").read_text())
    home = tmp_path / "out/evaluation/CoOp_DHO/vit_b16_ep50_ctxv1_2shots_labeled"
    for name in ("imagenetv2", "imagenet_r"):
        again = json.loads((home / name / "seed1/results.json").read_text())
        assert again["metrics"] == {name: own["metrics"][name]}
        assert (again["alpha"], again["beta"], again["unlabeled"]) == (own["alpha"], own["beta"], False)
    header, _, row = done.stdout[done.stdout.rindex("Method") :].strip().splitlines()
    assert header.split()[-6:] == ["V2", "Sketch", "R", "A", "OOD", "Seeds"]
    assert row.startswith("CoOp + DHO")
    accuracies = [f"{own['metrics'][name]['accuracy']:.1f}" for name in ("imagenetv2", "imagenet_r")]
    assert row.split()[-6:] == [accuracies[0], "-", accuracies[1], "-", "-", "1"]
