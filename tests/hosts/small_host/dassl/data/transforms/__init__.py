from torchvision import transforms as T


def build_transform(cfg, is_train=True):
    node = cfg.INPUT
    steps = [T.Resize(tuple(node.SIZE), T.InterpolationMode(node.INTERPOLATION), antialias=True)]
    if is_train and "random_flip" in node.TRANSFORMS:
        steps.append(T.RandomHorizontalFlip())
    steps.append(T.ToTensor())
    if "normalize" in node.TRANSFORMS:
        steps.append(T.Normalize(node.PIXEL_MEAN, node.PIXEL_STD))
    return T.Compose(steps)
