"""What the scripts are asked for: their words, and one message where something is wrong with them."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("script", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_bash_can_read_them(run, script):
    assert run("-n", str(script)).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "usage: bash scripts/coop_dho.sh DATASET SHOTS"),
        (("imagnet", "16"), "unknown data set 'imagnet'; there are: "),
        (("imagenet", "many"), "SHOTS is 'many'"),
        (("imagenet", "16", "--compair"), "unknown option '--compair'; there are: --compare"),
        (("imagenet", "16", "compare"), "'compare' is neither an option nor a config key"),
        (("imagenet", "16", "TRAINER.DHO.LAMBDA"), "TRAINER.DHO.LAMBDA has no value"),
        (("imagenet", "16", "--depth", "3"), "unknown option '--depth'"),
    ],
)
def test_bad_words_are_one_message(run, words, said):
    done = run("scripts/coop_dho.sh", *words)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("vpt_dho.sh imagenet 16 --depth 5", "no vit_b16_ep20_depth5.yaml for 'VPT-5'; there are: vit_b16_ep20_depth3"),
        ("vpt_dho.sh imagenet 16 --depth", "--depth is ''"),
        ("table13.sh", "usage: bash scripts/table13.sh DATASET"),
        ("table13.sh mini many", "SHOTS is 'many'"),
        ("table13.sh mini --compare", "unknown option '--compare'; there are: --placebo"),
        ("tip_adapter.sh mini", "usage: bash scripts/tip_adapter.sh DATASET SHOTS"),
        (
            "tip_adapter.sh mini 4 --config vit_b99",
            "there is no configs/trainers/TipAdapterF/vit_b99.yaml; there are: ",
        ),
        ("tip_adapter.sh mini 4 --config", "--config is ''"),
        ("eval_ood.sh CoOp mini", "usage: bash scripts/eval_ood.sh TRAINER DATASET SHOTS"),
        ("eval_ood.sh CoOp imagenet_a 16", "'imagenet_a' has no shifted sets"),
        ("eval_ood.sh CoOp mini 16 --all", "unknown option '--all'; there are: none"),
        ("eval_ood.sh CoOp mini 16", "no finished run is at"),
    ],
)
def test_bad_words_of_the_other_scripts(run, words, said, tmp_path):
    script, *rest = words.split()
    done = run(f"scripts/{script}", *rest, OUTPUT=str(tmp_path))
    assert done.returncode == 2
    assert said in done.stderr
