from .defaults import _C


def get_cfg_default():
    return _C.clone()
