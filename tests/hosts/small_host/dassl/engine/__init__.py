from dassl.utils import Registry, check_availability

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg):
    check_availability(cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)


from .trainer import SimpleTrainer, TrainerX  # noqa: E402, F401
