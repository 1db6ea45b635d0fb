"""The gradient scaler of fp16, on a CPU in place of a GPU, and activations that are computed again under autocast."""

import pytest
import torch

from dho_plugin.engine.registry import TRAINER_REGISTRY


@pytest.fixture
def build(command, started):
    return lambda trainer, *options: started(command(trainer, "run", *options))


def first_batches(run):
    return [next(stream) for stream in run.streams]


def with_scaler(run, scale=1024.0):
    """Give a run the gradient scaler that fp16 has on a GPU."""
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return run


def parameters(run):
    """Return what learns, by the names of its checkpoints."""
    return {name: torch.cat([p.detach().flatten() for p in m.parameters()]) for name, m in run._models.items()}


def test_scaled_gradients_move_both_heads_as_far_as_unscaled_ones(build):
    plain, scaled = build("PromptSRC_DHO"), with_scaler(build("PromptSRC_DHO"))
    before = parameters(plain)
    for run in (plain, scaled):
        run.forward_backward(*first_batches(run))
    for name, values in parameters(scaled).items():
        assert not torch.equal(values, before[name])
        torch.testing.assert_close(values, parameters(plain)[name], rtol=1e-6, atol=1e-7)


def test_an_overflow_keeps_what_it_hits_where_it_is_and_lowers_the_scale(build):
    run = with_scaler(build("CoOp_DHO"))
    before, batches = parameters(run), first_batches(run)
    hook = run.student.prompt_learner.ctx.register_hook(lambda gradient: gradient * torch.inf)
    run.forward_backward(*batches)
    hook.remove()
    after = parameters(run)
    assert torch.equal(after["prompt_learner"], before["prompt_learner"])
    assert not torch.equal(after["kd_head"], before["kd_head"])
    assert run.accelerator.scaler.get_scale() == 512
    run.forward_backward(*batches)
    assert not torch.equal(parameters(run)["prompt_learner"], before["prompt_learner"])


def test_a_resumed_run_goes_on_with_the_scale_of_the_gradients(build, tmp_path):
    run = with_scaler(build("CoOp"), 512.0)
    run.forward_backward(*first_batches(run))  # a scaler that has not scaled has no state
    run.save_model(1, tmp_path / "saved", run.checkpoint_meta())
    resumed = with_scaler(build("CoOp"))
    assert resumed.resume_model_if_exist(tmp_path / "saved") == 1
    resumed.forward_backward(*first_batches(resumed))
    assert resumed.accelerator.scaler.get_scale() == 512


@pytest.mark.parametrize("trainer", ["CoOp", "PromptSRC_DHO", "VPT_DHO"])
def test_activations_are_computed_again_in_the_precision_they_had(build, trainer):
    node, gradients = TRAINER_REGISTRY.get(trainer).cfg_node, []
    again = ("MODEL.TEXT_CHECKPOINTING", "True", "MODEL.IMAGE_CHECKPOINTING", "True")
    for options in ((), again):
        run = build(trainer, f"TRAINER.{node}.PREC", "bf16", *options)
        run.forward_backward(*first_batches(run))
        gradients.append(torch.cat([p.grad.flatten() for m in run._models.values() for p in m.parameters()]))
    assert torch.equal(*gradients)
