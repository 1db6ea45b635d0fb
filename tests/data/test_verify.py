import multiprocessing
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dho_plugin.data import looking
from dho_plugin.data.looking import CHUNK, DIED, look_at_all
from dho_plugin.data.verify import SHOWN, Verification
from dho_plugin.engine.data import Datum, ImageList


class Deadly(str):
    """A path that ends the process which receives it."""

    def __reduce__(self):
        return os._exit, (3,)


@pytest.fixture
def children():
    """Return a function that gives the processes that a test has started and that go on."""
    before = set(multiprocessing.active_children())  # other tests' trainers may still hold some
    return lambda: [one for one in multiprocessing.active_children() if one not in before]


@pytest.fixture
def image(tmp_path):
    """Return a function that writes an image of its own content and returns its path."""
    rng = np.random.default_rng(0)

    def write(name: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        return str(path)

    return write


def images(*paths: str, labels=None) -> ImageList:
    return ImageList.of([Datum(path, label) for path, label in zip(paths, labels or [0] * len(paths), strict=True)])


def run(parts: dict, workers: int = 0) -> Verification:
    verification = Verification(parts)
    verification.run(workers)
    return verification


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_decoded_is_named_with_its_reason(image, tmp_path, workers):
    good = [image(f"{number}.jpg") for number in range(3)]
    cut, text, empty = (str(tmp_path / name) for name in ("cut.png", "text.jpg", "empty.png"))
    shutil.copyfile(image("whole.png"), cut)
    os.truncate(cut, 100)
    (tmp_path / "text.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.png").touch()
    gone = str(tmp_path / "gone.jpg")
    found = run(
        {"train": images(good[0], cut, good[1]), "test": images(text, good[2], empty, gone)}, workers
    ).as_plain()
    assert (found["images"], found["read"]) == (7, 7)
    assert [(bad["part"], bad["path"]) for bad in found["unreadable"]] == [
        ("train", cut),
        ("test", text),
        ("test", empty),
        ("test", gone),
    ]
    assert found["unreadable"][-1]["reason"] == "No such file or directory"
    assert all(bad["reason"] for bad in found["unreadable"])
    assert found["unreadable"][1]["reason"] == "cannot identify image file"  # the path stands beside it
    assert found["equal_files"] == {}


def test_a_decoder_that_fails_in_a_way_of_its_own_is_survived(image, monkeypatch):
    path = image("a.png")

    def decode(path):
        raise KeyError("PNG")

    monkeypatch.setattr(looking, "read_image", decode)
    assert run({"test": images(path)}).as_plain()["unreadable"] == [{"part": "test", "path": path, "reason": "'PNG'"}]


@pytest.mark.parametrize("workers", [0, 2])
def test_files_of_equal_content_are_found_where_they_matter(image, workers):
    kept, leak, twin = image("train/a.png"), image("train/b.png"), image("train/c.png")
    copy = {path: str(shutil.copyfile(path, f"{path}.copy.png")) for path in (kept, leak, twin)}
    other, more, bad = image("test/a.png"), str(shutil.copyfile(leak, f"{leak}.more.png")), f"{kept}.bad.png"
    chosen = str(shutil.copyfile(other, f"{other}.copy.png"))
    for path in (bad, f"{bad}2"):
        with open(path, "wb"):
            pass
    parts = {
        "train": images(kept, leak, twin, copy[twin], bad, labels=[0, 0, 1, 2, 0]),
        "unlabeled": images(copy[kept]),  # of training images: harmless
        "val": images(chosen),
        "test": images(other, copy[leak], f"{bad}2"),  # both bad files are empty, and are not equal images
        "test set again": images(more),  # of the test images: harmless; of training images: not
    }
    assert run(parts, workers).as_plain()["equal_files"] == {
        "in train and in test": [[leak, copy[leak]]],
        "in train and in test set again": [[leak, more]],
        "in val and in test": [[chosen, other]],
        "several times in train": [[twin, copy[twin]]],
        "in several classes of train": [[twin, copy[twin]]],
    }


def test_copies_in_one_class_are_no_contradiction(image):
    first = image("a.png")
    second = str(shutil.copyfile(first, f"{first}.copy.png"))
    found = run({"train": images(image("b.png"), second, first, labels=[0, 1, 1])}).as_plain()["equal_files"]
    assert found == {"several times in train": [[second, first]]}


def test_every_image_is_reported_once_and_examples_are_few(tmp_path):
    paths = [str(tmp_path / f"{number}.jpg") for number in range(SHOWN + 7)]
    verification = run({"test": images(*paths)})
    assert [bad["path"] for bad in verification.as_plain()["unreadable"]] == paths
    report = verification.report()
    assert report[0] == "27 images read; 27 cannot be decoded"
    assert [line.split(": ")[1] for line in report[1:-2]] == paths[:SHOWN]
    assert "7 more; --json" in report[-2]
    assert "repair or remove them, or run with DATASET.UNREADABLE skip" in report[-1]


def test_of_a_photo_that_is_too_large_the_limit_is_said(image, monkeypatch):
    path = image("a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)  # twice as many are read; it has 64
    (found,) = run({"test": images(path)}).as_plain()["unreadable"]
    assert found["reason"].startswith("cannot be read as an image (")
    assert "Make it smaller: up to 62 pixels are read" in found["reason"]


def test_few_images_are_listed_ahead_of_those_that_were_read(image, children):
    path, taken = image("a.png"), []

    def paths():
        for number in range(40 * CHUNK):
            taken.append(number)
            yield path

    looks = look_at_all(paths(), workers=1)
    assert len(next(looks)) == CHUNK
    assert len(taken) <= 4 * CHUNK
    looks.close()
    assert not children()


def test_a_process_that_dies_costs_only_the_image_it_died_of(image):
    good = [image(f"{number}.png") for number in range(CHUNK + 2)]
    paths = [*good[:2], Deadly(good[2]), *good[3:]]
    found = [look for chunk in look_at_all(paths, workers=2) for look in chunk]
    expected = [look for chunk in look_at_all(good, workers=0) for look in chunk]
    assert found[2].reason == DIED
    assert found[:2] + found[3:] == expected[:2] + expected[3:]
    assert len({look.digest for look in expected}) == len(good)


def test_workers_whose_team_is_closed_read_no_further_image(image, monkeypatch):
    """After Ctrl-C, each else went on to the end of all that it was given."""
    path, flags = image("a.png"), []
    monkeypatch.setattr(looking, "end_with_parent", lambda: None)
    monkeypatch.setattr(looking, "_stop", looking._stop)  # put back at the end
    monkeypatch.setattr(
        looking, "ProcessPoolExecutor", lambda *args: flags.extend(args[-1]) or ThreadPoolExecutor(args[0])
    )
    looks = look_at_all([path] * 40, workers=1)
    assert len(next(looks)) == CHUNK
    looking._begin(*flags)
    assert len(looking.look_at([path] * 3)) == 3
    looks.close()
    assert looking.look_at([path] * 3) == []


def test_all_processes_are_started_before_the_first_image_is_read(image, children):
    """One that starts while others die of an image would be waited for for ever."""
    looks = look_at_all([image("a.png")], workers=2)
    next(looks)
    assert len(children()) == 2
    looks.close()


def test_a_killed_process_costs_no_image(image, children):
    good = [image(f"{number}.png") for number in range(8)] * CHUNK
    found = []
    for chunk in look_at_all(good, workers=2):
        if not found:
            children()[0].kill()
        found += chunk
    assert found == [look for chunk in look_at_all(good, workers=0) for look in chunk]
    assert not any(look.reason for look in found)


def test_what_was_found_before_an_interruption_is_kept(image, tmp_path, children):
    paths = [str(tmp_path / "gone.jpg"), *[image("a.png")] * (3 * CHUNK)]
    verification = Verification({"train": images(*paths)})

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verification.run(2, stop)
    assert verification.looked_at == CHUNK
    assert len(verification.equal_files()) == 1
    assert verification.report()[0] == f"{CHUNK} images read of {3 * CHUNK + 1}, then interrupted; 1 cannot be decoded"
    assert not children()


def test_a_path_of_any_bytes_can_be_printed(tmp_path):
    path = os.path.join(tmp_path, os.fsdecode(b"caf\xe9.jpg"))
    with open(path, "wb"):
        pass
    found = run({"test": images(path)}).as_plain()["unreadable"]
    assert found[0]["path"] == f"{tmp_path}/caf\\xe9.jpg"
    assert "\n".join(run({"test": images(path)}).report()).encode("utf-8")


def test_no_images_are_no_trouble():
    verification = run({"train": ImageList.of([]), "test": ImageList.of([])})
    assert verification.report() == ["0 images read; 0 cannot be decoded"]
