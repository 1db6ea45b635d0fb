import os

import torch


class Registry:
    def __init__(self, name):
        self._name, self._obj_map = name, {}

    def register(self, obj=None, force=False):
        def add(entry):
            if entry.__name__ in self._obj_map and not force:
                raise KeyError(f"{entry.__name__} was already registered in {self._name}")
            self._obj_map[entry.__name__] = entry
            return entry

        return add if obj is None else add(obj)

    def get(self, name):
        if name not in self._obj_map:
            raise KeyError(f"{name} does not exist in {self._name}")
        return self._obj_map[name]

    def registered_names(self):
        return list(self._obj_map)


def check_availability(requested, available):
    if requested not in available:
        raise ValueError(f"[{requested}] is none of {available}")


def save_checkpoint(state, folder, model_name=""):
    os.makedirs(folder, exist_ok=True)
    name = model_name or f"model.pth.tar-{state['epoch']}"
    torch.save(state, os.path.join(folder, name))
    with open(os.path.join(folder, "checkpoint"), "w") as file:
        file.write(name + "\n")


def load_checkpoint(path):
    return torch.load(path, map_location="cpu")


def resume_from_checkpoint(folder, model, optimizer=None, scheduler=None):
    with open(os.path.join(folder, "checkpoint")) as file:
        checkpoint = load_checkpoint(os.path.join(folder, file.readline().strip()))
    model.load_state_dict(checkpoint["state_dict"])
    if optimizer is not None:
        optimizer.load_state_dict(checkpoint["optimizer"])
    if scheduler is not None:
        scheduler.load_state_dict(checkpoint["scheduler"])
    return checkpoint["epoch"]
