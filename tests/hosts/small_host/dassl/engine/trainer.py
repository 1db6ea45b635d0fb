import os
from collections import OrderedDict

import torch

from dassl.data import DataManager
from dassl.utils import load_checkpoint, resume_from_checkpoint, save_checkpoint


class TrainerBase:
    def __init__(self):
        self._models, self._optims, self._scheds = OrderedDict(), OrderedDict(), OrderedDict()

    def register_model(self, name="model", model=None, optim=None, sched=None):
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names=None):
        return list(self._models) if names is None else names

    def save_model(self, epoch, directory, model_name=""):
        for name in self.get_model_names():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": self._models[name].state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": None,
            }
            save_checkpoint(state, os.path.join(directory, name), model_name)

    def resume_model_if_exist(self, directory):
        names = self.get_model_names()
        if not all(os.path.exists(os.path.join(directory, name)) for name in names):
            print("No checkpoint found, train from scratch")
            return 0
        for name in names:
            folder = os.path.join(directory, name)
            start = resume_from_checkpoint(folder, self._models[name], self._optims[name], self._scheds[name])
        return start

    def load_model(self, directory, epoch=None):
        if not directory:
            return
        for name in self.get_model_names():
            file = "model-best.pth.tar" if epoch is None else f"model.pth.tar-{epoch}"
            state = load_checkpoint(os.path.join(directory, name, file))["state_dict"]
            state.pop("names", None)  # of the classes that were trained
            self._models[name].load_state_dict(state, strict=False)

    def set_model_mode(self, mode="train"):
        for model in self._models.values():
            model.train(mode == "train")

    def update_lr(self):
        for sched in self._scheds.values():
            sched.step()

    def model_backward_and_update(self, loss):
        for optim in self._optims.values():
            optim.zero_grad()
        loss.backward()
        for optim in self._optims.values():
            optim.step()


class SimpleTrainer(TrainerBase):
    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(cfg)
        self.cfg, self.device = cfg, torch.device("cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch, self.output_dir = cfg.OPTIM.MAX_EPOCH, cfg.OUTPUT_DIR
        self.dm = DataManager(cfg)
        self.train_loader_x, self.test_loader = self.dm.train_loader_x, self.dm.test_loader
        self.num_classes, self.lab2cname = self.dm.num_classes, self.dm.lab2cname
        self.build_model()

    def check_cfg(self, cfg):
        pass

    def train(self):
        self.before_train()
        for epoch in range(self.start_epoch, self.max_epoch):
            self.epoch = epoch
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_train(self):
        self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME or self.output_dir)
        self.losses = []

    def after_epoch(self):
        if self.epoch + 1 == self.max_epoch or (self.epoch + 1) % max(1, self.cfg.TRAIN.CHECKPOINT_FREQ) == 0:
            self.save_model(self.epoch, self.output_dir)

    def after_train(self):
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            self.test()

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        self.outputs, labels = [], []
        for batch in self.test_loader:
            self.outputs.append(self.model_inference(batch["img"].to(self.device)))
            labels.append(batch["label"])
        right = torch.cat(self.outputs).argmax(1) == torch.cat(labels)
        print(f"=> result\n* accuracy: {100 * right.float().mean():.1f}%")
        return 100 * right.float().mean().item()

    def model_inference(self, images):
        return self.model(images)


class TrainerX(SimpleTrainer):
    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        for batch_idx, batch in enumerate(self.train_loader_x):
            self.batch_idx = batch_idx
            self.losses.append(self.forward_backward(batch))
