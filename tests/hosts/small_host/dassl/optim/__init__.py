import torch

from .lr_scheduler import ConstantWarmupScheduler


def build_optimizer(model, optim_cfg):
    kinds = {"sgd": (torch.optim.SGD, {"momentum": optim_cfg.MOMENTUM}), "adam": (torch.optim.Adam, {})}
    kind, more = kinds[optim_cfg.NAME]
    return kind(model.parameters(), lr=optim_cfg.LR, weight_decay=optim_cfg.WEIGHT_DECAY, **more)


def build_lr_scheduler(optimizer, optim_cfg):
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, float(optim_cfg.MAX_EPOCH))
    return ConstantWarmupScheduler(optimizer, cosine, 1, 1e-5) if optim_cfg.WARMUP_EPOCH else cosine
