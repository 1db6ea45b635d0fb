"""Learning rates against torch's own schedulers stepped as Dassl steps them; optimizers against hand-made ones."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR, StepLR
from torch.testing import assert_close

from dho_plugin.engine.model_store import ModelStore
from dho_plugin.engine.optim import build_lr_scheduler, build_optimizer, learning_rate, step_learning_rate
from dho_plugin.errors import ConfigError

pytestmark = pytest.mark.filterwarnings("ignore:Detected call of")
BASE_RATES = (0.002, 0.05)
DEFAULTS = {
    "NAME": "sgd",
    "LR": 0.002,
    "WEIGHT_DECAY": 5e-4,
    "MOMENTUM": 0.9,
    "SGD_DAMPNING": 0,
    "SGD_NESTEROV": False,
    "RMSPROP_ALPHA": 0.99,
    "ADAM_BETA1": 0.9,
    "ADAM_BETA2": 0.999,
    "STAGED_LR": False,
    "NEW_LAYERS": (),
    "BASE_LR_MULT": 0.1,
    "LR_SCHEDULER": "cosine",
    "STEPSIZE": (-1,),
    "GAMMA": 0.1,
    "MAX_EPOCH": 10,
    "WARMUP_EPOCH": -1,
    "WARMUP_TYPE": "linear",
    "WARMUP_CONS_LR": 1e-5,
    "WARMUP_MIN_LR": 1e-6,
    "WARMUP_RECOUNT": True,
    "WARMUP_STEPS": 0,
}


def config(**changes):
    return SimpleNamespace(**{**DEFAULTS, **changes})


def two_groups(rates=BASE_RATES):
    return torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": rate} for rate in rates], lr=1.0)


def torch_schedule(optimizer, cfg):
    if cfg.LR_SCHEDULER == "single_step":
        return StepLR(optimizer, cfg.STEPSIZE[-1] if cfg.STEPSIZE[-1] > 0 else cfg.MAX_EPOCH, cfg.GAMMA)
    if cfg.LR_SCHEDULER == "multi_step":
        return MultiStepLR(optimizer, list(cfg.STEPSIZE), cfg.GAMMA)
    return CosineAnnealingLR(optimizer, float(cfg.MAX_EPOCH))


def published_rates(cfg):
    """The published procedure, epoch by epoch: the rates that the optimizer has in epochs 0 .. MAX_EPOCH.

    The inner schedule exists from the start (its construction may already decay the rates). During the warm-up the
    rates are overwritten; at the end of it they are what the inner schedule had at its construction; from then on it is
    stepped and works on the rates it finds. Without recounting its epoch counter starts at WARMUP_EPOCH.
    """
    optimizer = two_groups()
    inner = torch_schedule(optimizer, cfg)
    first = list(inner.get_last_lr())
    if cfg.WARMUP_EPOCH > 0 and not cfg.WARMUP_RECOUNT:
        inner.last_epoch = cfg.WARMUP_EPOCH
    rates = []
    for epoch in range(cfg.MAX_EPOCH + 1):
        if epoch > max(cfg.WARMUP_EPOCH, 0):
            inner.step()
        else:
            for group, base, start in zip(optimizer.param_groups, BASE_RATES, first, strict=True):
                if epoch >= cfg.WARMUP_EPOCH:
                    group["lr"] = start
                elif cfg.WARMUP_TYPE == "constant":
                    group["lr"] = cfg.WARMUP_CONS_LR
                else:
                    group["lr"] = base * epoch / cfg.WARMUP_EPOCH if epoch else cfg.WARMUP_MIN_LR
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


def our_rates(cfg):
    optimizer = two_groups()
    scheduler = build_lr_scheduler(optimizer, cfg)
    rates = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(cfg.MAX_EPOCH):
        optimizer.step()
        scheduler.step()
        assert scheduler.get_last_lr() == [group["lr"] for group in optimizer.param_groups]
        rates.append(scheduler.get_last_lr())
    return rates


SCHEDULES = [
    ("single_step", (-1,)),
    ("single_step", (3,)),
    ("single_step", (9, 2)),
    ("multi_step", (2, 5)),
    ("multi_step", (0, 4)),
    ("multi_step", (4, 4, 9)),
    ("cosine", (-1,)),
]


@pytest.mark.parametrize(("name", "steps"), SCHEDULES)
@pytest.mark.parametrize("recount", [True, False])
@pytest.mark.parametrize("kind", ["linear", "constant"])
def test_rates_equal_the_published_procedure(name, steps, recount, kind):
    for warmup, max_epoch in itertools.product([-1, 0, 1, 2, 5, 7, 12], [1, 5, 10, 50]):
        cfg = config(
            LR_SCHEDULER=name,
            STEPSIZE=steps,
            MAX_EPOCH=max_epoch,
            WARMUP_EPOCH=warmup,
            WARMUP_TYPE=kind,
            WARMUP_RECOUNT=recount,
        )
        for ours, published in zip(our_rates(cfg), published_rates(cfg), strict=True):
            assert ours == pytest.approx(published, rel=1e-9, abs=1e-15), (warmup, max_epoch)


def test_coops_schedule_by_hand():
    """CoOp's vit_b16_ep50: lr 0.002, one epoch of 1e-5, then the cosine from its beginning."""
    cfg = config(MAX_EPOCH=50, WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    assert learning_rate(cfg, 0, 0.002) == 1e-5
    assert learning_rate(cfg, 1, 0.002) == 0.002
    assert learning_rate(cfg, 26, 0.002) == pytest.approx(0.001)


def test_past_the_last_epoch_the_rate_stays_a_rate():
    for warmup, recount in itertools.product([-1, 3, 10], [True, False]):
        cfg = config(WARMUP_EPOCH=warmup, WARMUP_RECOUNT=recount)
        assert all(0 <= learning_rate(cfg, epoch, 0.1) <= 0.1 for epoch in range(35))


@pytest.mark.parametrize("name", ["single_step", "multi_step", "cosine"])
def test_resumed_schedule_goes_on_where_it_was(name):
    cfg = config(LR_SCHEDULER=name, STEPSIZE=(3, 6), WARMUP_EPOCH=2, WARMUP_RECOUNT=False)
    expected = our_rates(cfg)
    first = two_groups()
    scheduler = build_lr_scheduler(first, cfg)
    for _ in range(4):
        first.step()
        scheduler.step()
    state = scheduler.state_dict()
    assert state == {"last_epoch": 4, "per_step": False, "base_lrs": list(BASE_RATES)}

    # another base rate shows that it is the state, not the new optimizer, that decides
    resumed = two_groups(rates=(1.0, 1.0))
    scheduler = build_lr_scheduler(resumed, cfg)
    scheduler.load_state_dict(state)
    for rates in expected[4:]:
        assert [group["lr"] for group in resumed.param_groups] == rates
        assert scheduler.get_last_lr() == rates
        resumed.step()
        scheduler.step()


@pytest.mark.parametrize("scheduler_first", [True, False])
def test_order_of_restoring_does_not_matter(scheduler_first):
    cfg = config(WARMUP_EPOCH=1, WARMUP_TYPE="constant")
    old = two_groups()
    schedule = build_lr_scheduler(old, cfg)
    for _ in range(3):
        old.step()
        schedule.step()
    optimizer_state, schedule_state = old.state_dict(), schedule.state_dict()
    new = two_groups()
    schedule = build_lr_scheduler(new, cfg)
    loads = [lambda: schedule.load_state_dict(schedule_state), lambda: new.load_state_dict(optimizer_state)]
    for load in loads if scheduler_first else reversed(loads):
        load()
    new.step()
    schedule.step()
    assert schedule.get_last_lr() == [learning_rate(cfg, 4, base) for base in BASE_RATES]


def rate_by_hand(step, warmup, total):
    """Linear from 0 to 1 over the warm-up, then half a cosine to 0 at the end."""
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


@pytest.mark.parametrize(("warmup", "total"), [(1, 12), (5, 12), (11, 12), (5000, 100_080)])
def test_a_warm_up_in_steps_then_a_cosine(warmup, total):
    for step in {0, 1, warmup - 1, warmup, warmup + 1, total // 2, total - 1, total}:
        expected = 5e-5 * rate_by_hand(step, warmup, total)
        assert step_learning_rate(step, warmup, total, 5e-5) == pytest.approx(expected, rel=1e-9, abs=1e-18)


def step_schedule(optimizer, warmup=3, total=10):
    cfg = config(WARMUP_STEPS=warmup)
    scheduler = build_lr_scheduler(optimizer, cfg, lambda: total)
    assert scheduler.per_step
    return scheduler


@pytest.mark.parametrize(
    ("changes", "by_step"),
    [({}, True), ({"LR_SCHEDULER": "multi_step", "STEPSIZE": (2,)}, False), ({"WARMUP_EPOCH": 1}, False)],
)
def test_a_cosine_may_count_steps_without_a_warm_up(changes, by_step):
    optimizer = two_groups()
    scheduler = build_lr_scheduler(optimizer, config(**changes), lambda: 10, by_step=True)
    assert getattr(scheduler, "per_step", False) == by_step
    for _ in range(4 * by_step):
        optimizer.step()
        scheduler.step()
    if by_step:
        half = (1 + math.cos(math.pi * 4 / 10)) / 2
        assert scheduler.get_last_lr() == pytest.approx([rate * half for rate in BASE_RATES], rel=1e-9)


def test_the_schedule_of_steps_sets_every_groups_rate():
    optimizer = two_groups()
    scheduler, rates = step_schedule(optimizer), []
    for _ in range(11):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    expected = [[base * rate_by_hand(step, 3, 10) for base in BASE_RATES] for step in range(11)]
    for ours, by_hand in zip(rates, expected, strict=True):
        assert ours == pytest.approx(by_hand, rel=1e-9, abs=1e-15)
    assert rates[0] == [0, 0]
    assert rates[3] == list(BASE_RATES)


def test_a_resumed_schedule_of_steps_goes_on_where_it_was():
    first, second = two_groups(), two_groups(rates=(1.0, 1.0))
    through, again = step_schedule(first), step_schedule(second)
    for _ in range(5):
        first.step()
        through.step()
    again.load_state_dict(through.state_dict())
    for _ in range(4):
        assert [g["lr"] for g in second.param_groups] == [g["lr"] for g in first.param_groups]
        for optimizer, scheduler in ((first, through), (second, again)):
            optimizer.step()
            scheduler.step()


def test_schedules_count_either_epochs_or_steps():
    assert not build_lr_scheduler(two_groups(), config()).per_step
    store = ModelStore()
    for name, warmup in (("prompts", 3), ("head", 0)):
        optimizer = two_groups()
        store.register_model(
            name, nn.Identity(), optimizer, build_lr_scheduler(optimizer, config(WARMUP_STEPS=warmup), lambda: 10)
        )
    for _ in range(4):
        store.update_lr(per_step=True)
    store.update_lr()
    assert [sched.last_epoch for sched in store._scheds.values()] == [4, 1]


@pytest.mark.parametrize("changes", [{"LR_SCHEDULER": "single_step"}, {"WARMUP_EPOCH": 1}])
def test_a_warm_up_in_steps_needs_the_cosine_and_no_warm_up_in_epochs(changes):
    with pytest.raises(ConfigError, match=r"OPTIM\.WARMUP_STEPS is 5: .*LR_SCHEDULER cosine.*WARMUP_EPOCH"):
        build_lr_scheduler(two_groups(), config(WARMUP_STEPS=5, **changes), lambda: 10)


def train(optimizer, model, steps=20):
    images = torch.linspace(-1, 1, 12).view(3, 4)
    for _ in range(steps):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))


OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9)),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), amsgrad=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1, momentum=0.7, nesterov=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, weight_decay=0.1, momentum=0.7, alpha=0.95),
    "radam": lambda p: torch.optim.RAdam(p, 0.01, (0.8, 0.9), weight_decay=0.1, decoupled_weight_decay=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_uses_its_keys(name):
    cfg = config(
        NAME=name,
        LR=0.01,
        WEIGHT_DECAY=0.1,
        MOMENTUM=0.7,
        SGD_NESTEROV=True,
        RMSPROP_ALPHA=0.95,
        ADAM_BETA1=0.8,
        ADAM_BETA2=0.9,
    )
    ours, by_hand = small_model(), small_model()
    trained = train(build_optimizer(ours, cfg), ours)
    assert_close(trained, train(OPTIMIZERS[name](by_hand.parameters()), by_hand), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "adamw"])
def test_adam_takes_its_step_in_one_kernel(name):
    assert build_optimizer(small_model(), config(NAME=name)).param_groups[0]["fused"]


def test_where_there_is_no_such_kernel_the_plain_one_is_taken():
    model = torch.nn.Linear(2, 2, device="meta")
    assert not build_optimizer(model, config(NAME="adamw")).param_groups[0]["fused"]


def test_sgd_dampening():
    cfg = config(SGD_DAMPNING=0.5)
    assert build_optimizer(small_model(), cfg).param_groups[0]["dampening"] == 0.5


def test_frozen_parameters_are_left_out():
    model = small_model()
    model[0].requires_grad_(False)
    for source in (model, model.parameters(), [{"params": model.parameters(), "lr": 0.5}]):
        groups = build_optimizer(source, config()).param_groups
        assert [id(p) for p in groups[0]["params"]] == [id(p) for p in model[1].parameters()]
    assert groups[0]["lr"] == 0.5
    model.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter"):
        build_optimizer(model, config())


def test_staged_rates():
    model = small_model()
    model.register_parameter("scale", nn.Parameter(torch.ones(())))
    optimizer = build_optimizer(model, config(STAGED_LR=True, NEW_LAYERS=("1",)))
    base, new = optimizer.param_groups
    assert (base["lr"], new["lr"]) == (pytest.approx(0.0002), 0.002)
    assert {id(p) for p in new["params"]} == {id(p) for p in model[1].parameters()}
    assert {id(p) for p in base["params"]} == {id(model.scale), *(id(p) for p in model[0].parameters())}
    scheduler = build_lr_scheduler(optimizer, config(MAX_EPOCH=2))
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([0.0001, 0.001])


def test_a_module_without_layers_has_no_stages():
    (group,) = build_optimizer(nn.Linear(2, 2), config(STAGED_LR=True, NEW_LAYERS=("1",))).param_groups
    assert (group["lr"], len(group["params"])) == (0.002, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NAME": "lion"}, r"OPTIM.NAME is 'lion'; allowed: adam, amsgrad, sgd, rmsprop, radam or adamw"),
        ({"STAGED_LR": True}, r"OPTIM.NEW_LAYERS is \[\].*0, 1"),
        ({"STAGED_LR": True, "NEW_LAYERS": "head"}, r"\['head'\].*0, 1"),
        ({"LR_SCHEDULER": "step"}, r"OPTIM.LR_SCHEDULER is 'step'; allowed: single_step, multi_step or cosine"),
        ({"WARMUP_EPOCH": 1, "WARMUP_TYPE": "cosine"}, r"OPTIM.WARMUP_TYPE is 'cosine'; allowed: constant or linear"),
        ({"LR_SCHEDULER": "multi_step", "STEPSIZE": (2.5,)}, r"OPTIM.STEPSIZE is \(2.5,\)"),
        ({"LR_SCHEDULER": "single_step", "STEPSIZE": ()}, r"OPTIM.STEPSIZE is \(\)"),
    ],
)
def test_bad_settings_name_key_and_choices(changes, message):
    cfg = config(**changes)
    with pytest.raises(ConfigError, match=message):
        build_lr_scheduler(build_optimizer(small_model(), cfg), cfg)


def test_staged_rates_need_a_module():
    with pytest.raises(ConfigError, match="STAGED_LR"):
        build_optimizer(small_model().parameters(), config(STAGED_LR=True, NEW_LAYERS=("1",)))
