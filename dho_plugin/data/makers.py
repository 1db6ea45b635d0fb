"""Making the split of a fine-grained data set from what its publishers give, as CoOp does.

CoOp draws with Python's global random state, which its train.py has seeded with the run's --seed, from folders listed
in whatever order the disk gives. Here a split never depends on a run's seed: it is drawn from the sorted listing with
`random.Random(1)`, which is what CoOp's first run with --seed 1 draws from a sorted listing. Each maker takes the data
set's own folder and that generator.
"""

import json
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

from dho_plugin.data.folders import HOW_TO, class_folders
from dho_plugin.data.listing import image_names
from dho_plugin.data.zhou import Entry, Split
from dho_plugin.errors import DataError

Maker = Callable[[Path, Random], Split]
T = TypeVar("T")

FLOWERS = ("imagelabels.mat", "cat_to_name.json")
PETS = ("annotations/trainval.txt", "annotations/test.txt")
CARS = ("devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat", "devkit/cars_meta.mat")
SUN = ("ClassName.txt", "Training_01.txt", "Testing_01.txt")
UCF = ("ucfTrainTestlist/classInd.txt", "ucfTrainTestlist/trainlist01.txt", "ucfTrainTestlist/testlist01.txt")
AIRCRAFT = ("variants.txt", "images_variant_train.txt", "images_variant_val.txt", "images_variant_test.txt")


def from_folders(
    home: Path, generator: Random, images: str, ignored: Sequence[str] = (), renamed: Mapping[str, str] | None = None
) -> Split:
    """Split class folders into 50% train, 20% val and 30% test, class by class.

    Args:
        home: the data set's own folder.
        generator: shuffles each class's images.
        images: the image folder below it; labels follow its sorted class folders.
        ignored: class folders that are no classes.
        renamed: class names of folders that are called otherwise.

    Raises:
        DataError: the folder is missing, or a class has too few images.
    """
    folder = home / images
    folders = [name for name in class_folders(folder, "a folder a class with its images") if name not in ignored]
    classes = {}
    for label, name in enumerate(folders):
        classname = (renamed or {}).get(name, name)
        classes[name] = [Entry(f"{name}/{image}", label, classname) for image in image_names(folder / name)]
    return _split_classes(classes, generator, folder)


def flowers(home: Path, generator: Random) -> Split:
    """Split Flowers102, class by class, by its table of labels.

    Raises:
        DataError: a file is missing or not what it should be, or a class has too few images.
    """
    path, names_path = (home / name for name in FLOWERS)
    labels = _from_mat(path, lambda mat: mat["labels"].ravel().astype(int).tolist())
    names = _read(names_path, lambda text: dict(json.loads(text)), "one JSON object {number: class name}")
    classes: dict[int, list[Entry]] = {}
    for number, label in enumerate(labels, start=1):
        if str(label) not in names:
            raise DataError(f"{names_path}: has no name for class {label} of {path}")
        entry = Entry(f"image_{number:05d}.jpg", label - 1, names[str(label)])
        classes.setdefault(label, []).append(entry)
    return _split_classes(classes, generator, path)


def pets(home: Path, generator: Random) -> Split:
    """Split OxfordPets' trainval images; its test images are given.

    Raises:
        DataError: a file is missing or not what it should be, or a class has too few images.
    """

    def entry(line: str) -> Entry:
        image, label, _species, _breed = line.split()
        return Entry(f"{image}.jpg", int(label) - 1, image.rpartition("_")[0].lower())

    trainval, test = (_rows(home / name, entry, "Abyssinian_100 1 1 1") for name in PETS)
    return Split(*split_trainval(trainval, generator, home / PETS[0]), test)


def cars(home: Path, generator: Random) -> Split:
    """Split StanfordCars' training images; its test images are given. A class is named with its year first.

    Raises:
        DataError: a file is missing or not what it should be, or a class has too few images.
    """
    names = _from_mat(home / CARS[2], lambda mat: [name.item() for name in mat["class_names"].ravel()])
    years_first = [" ".join([*name.split(" ")[-1:], *name.split(" ")[:-1]]) for name in names]

    def entries(annotations: str, folder: str) -> list[Entry]:
        def read(mat: Mapping) -> list[Entry]:
            rows = [(row["fname"].item(), int(row["class"].item()) - 1) for row in mat["annotations"].ravel()]
            return [Entry(f"{folder}/{image}", label, years_first[label]) for image, label in rows]

        return _from_mat(home / annotations, read)

    train, val = split_trainval(entries(CARS[0], "cars_train"), generator, home / CARS[0])
    return Split(train, val, entries(CARS[1], "cars_test"))


def sun(home: Path, generator: Random) -> Split:
    """Split the training images of SUN397's first partition; its test images are given.

    A class "/a/apse/indoor" is named "indoor apse".

    Raises:
        DataError: a file is missing or not what it should be, or a class has too few images.
    """
    keys = _rows(home / SUN[0], lambda line: line.removeprefix("/"), "/a/abbey")
    labels = {key: label for label, key in enumerate(keys)}

    def entry(line: str) -> Entry:
        image = line.removeprefix("/")
        key = os.path.dirname(image)
        return Entry(image, labels[key], " ".join(reversed(key.split("/")[1:])))

    train, test = (_rows(home / name, entry, f"/a/abbey/sun_1.jpg, of a class of {SUN[0]}") for name in SUN[1:])
    return Split(*split_trainval(train, generator, home / SUN[1]), test)


def ucf(home: Path, generator: Random) -> Split:
    """Split the training videos of UCF101's first list, of which each has one image; its test videos are given.

    Raises:
        DataError: a file is missing or not what it should be, or a class has too few images.
    """

    def number(line: str) -> tuple[str, int]:
        label, action = line.split()
        return action, int(label) - 1

    labels = dict(_rows(home / UCF[0], number, "1 ApplyEyeMakeup"))

    def entry(line: str) -> Entry:
        action, video = line.split(" ")[0].split("/")
        name = "_".join(re.findall("[A-Z][^A-Z]*", action))
        return Entry(f"{name}/{video.replace('.avi', '.jpg')}", labels[action], name)

    form = f"ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi, of a class of {UCF[0]}"
    train, test = (_rows(home / name, entry, form) for name in UCF[1:])
    return Split(*split_trainval(train, generator, home / UCF[1]), test)


def aircraft(home: Path, generator: Random | None = None) -> Split:
    """Read the split that FGVCAircraft is published with; nothing is drawn.

    Raises:
        DataError: a file is missing or not what it should be.
    """
    labels = {name: label for label, name in enumerate(_rows(home / AIRCRAFT[0], str, "707-320"))}

    def entry(line: str) -> Entry:
        image, _, name = line.partition(" ")
        return Entry(f"{image}.jpg", labels[name], name)

    form = f"1025794 707-320, of a class of {AIRCRAFT[0]}"
    return Split(*(_rows(home / name, entry, form) for name in AIRCRAFT[1:]))


def split_trainval(entries: Sequence[Entry], generator: Random, source: Path) -> tuple[list[Entry], list[Entry]]:
    """Split images into 80% train and 20% val, class by class, classes in order of first appearance.

    Args:
        entries: images with labels.
        generator: shuffles each class's images.
        source: where they come from, for the message.

    Raises:
        DataError: a class has fewer than 3 images.
    """
    classes: dict[int, list[Entry]] = {}
    for entry in entries:
        classes.setdefault(entry.label, []).append(entry)
    train, val = [], []
    for group in classes.values():
        count = round(len(group) * 0.2)
        if count == 0:
            raise DataError(f"{source}: class {group[0].name!r} has {len(group)} images; 80% train, 20% val need 3")
        generator.shuffle(group)
        val += group[:count]
        train += group[count:]
    return train, val


def _split_classes(classes: Mapping[Hashable, list[Entry]], generator: Random, source: Path) -> Split:
    split = Split([], [], [])
    for key, entries in classes.items():
        generator.shuffle(entries)
        train, val = round(len(entries) * 0.5), round(len(entries) * 0.2)
        if not 0 < val < len(entries) - train:
            raise DataError(f"{source}: class {key} has {len(entries)} images; 50% train, 20% val, 30% test need 4")
        parts = entries[:train], entries[train : train + val], entries[train + val :]
        for part, some in zip(split, parts, strict=True):
            part.extend(some)
    return split


def _rows(path: Path, parse: Callable[[str], T], example: str) -> list[T]:
    """Parse the lines of a text file; empty ones are passed over."""

    def rows(text: str) -> Iterator[T]:
        for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
            try:
                if line:
                    yield parse(line)
            except (ValueError, KeyError) as error:
                raise DataError(f"{path}, line {number}: {line!r}; lines must be like: {example}") from error

    return _read(path, lambda text: list(rows(text)), "UTF-8 text")


def _read(path: Path, parse: Callable[[str], T], form: str) -> T:
    try:
        return parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file. {HOW_TO}") from error
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); it must be {form}. Get it again") from error


def _from_mat(path: Path, parse: Callable[[Mapping], T]) -> T:
    from scipy.io import loadmat  # takes a while to import, and only the making of two splits needs it

    if not path.is_file():
        raise DataError(f"{path}: no such file. {HOW_TO}")
    try:
        return parse(loadmat(path))
    except Exception as error:  # a damaged file fails in a dozen ways, from zlib's to a missing key
        raise DataError(
            f"{path} is not its publisher's MATLAB file ({type(error).__name__}: {error}). Get it again"
        ) from error
