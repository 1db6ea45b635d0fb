from PIL import Image
from torch.utils.data import DataLoader, Dataset

from .datasets import build_dataset
from .transforms import build_transform


class DatasetWrapper(Dataset):
    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg, self.data_source, self.transform, self.is_train = cfg, data_source, transform, is_train

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, index):
        item = self.data_source[index]
        out = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": index}
        image = Image.open(item.impath).convert("RGB")
        several = self.transform if isinstance(self.transform, list | tuple) else [self.transform]
        for number, transform in enumerate(several, start=1):
            out["img" if number == 1 else f"img{number}"] = transform(image)
        return out


class DataManager:
    def __init__(self, cfg):
        self.dataset, loader = build_dataset(cfg), cfg.DATALOADER
        self.num_classes, self.lab2cname = self.dataset.num_classes, self.dataset.lab2cname
        train = DatasetWrapper(cfg, self.dataset.train_x, build_transform(cfg, is_train=True), is_train=True)
        test = DatasetWrapper(cfg, self.dataset.test, build_transform(cfg, is_train=False))
        self.train_loader_x = DataLoader(train, loader.TRAIN_X.BATCH_SIZE, shuffle=True, drop_last=True)
        self.test_loader = DataLoader(test, loader.TEST.BATCH_SIZE)
