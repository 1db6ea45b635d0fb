import pytest

from dho_plugin.engine.data import ClassInfo, DatasetBase, Datum
from dho_plugin.engine.identity import check_classes, check_data, data_identity
from dho_plugin.errors import CheckpointError

CLASSES = [ClassInfo("n1", "cat"), ClassInfo("n2", "dog")]


def dataset(root="/a", labeled=(0, 3), changed=None, extra=()):
    train = [Datum(f"{root}/{'cat' if i < 3 else 'dog'}/{i}.jpg", int(i >= 3), index=i) for i in range(6)]
    if changed is not None:
        train[2] = changed
    pool = [item for i, item in enumerate(train) if i not in labeled]
    return DatasetBase([train[i] for i in labeled], [*pool, *extra], test=train[:1], classes=CLASSES)


def test_neither_the_place_nor_the_order_of_the_draw_counts():
    one = data_identity(dataset())
    assert one == data_identity(dataset(root="/elsewhere", labeled=(3, 0)))
    assert {part: count for part, (count, _) in one.items()} == {"labeled": 2, "training": 6, "test": 1}


def test_other_shots_of_the_same_data_differ_in_the_labeled_part_alone():
    one, other = data_identity(dataset()), data_identity(dataset(labeled=(1, 4)))
    assert [part for part in one if one[part] != other[part]] == ["labeled"]


@pytest.mark.parametrize("changed", [Datum("/a/cat/new.jpg", 0, index=2), Datum("/a/cat/2.jpg", 1, index=2)])
def test_another_file_or_another_label_is_other_data(changed):
    one, other = data_identity(dataset()), data_identity(dataset(changed=changed))
    assert [part for part in one if one[part] != other[part]] == ["training"]


def test_a_changed_part_is_named_with_its_counts():
    more = [Datum("/a/cat/9.jpg", -1, index=6)]
    saved, own = data_identity(dataset()), data_identity(dataset(extra=more))
    check_data(saved, saved, "run")
    check_data({}, own, "run")  # a checkpoint from before
    with pytest.raises(CheckpointError, match=r"run: the data have changed .*\(training images: 6 then, 7 now; equal"):
        check_data(saved, own, "run")


def test_other_classes_are_named():
    check_classes([("n1", "cat"), ("n2", "dog")], CLASSES, "run")
    check_classes([], CLASSES, "run")
    with pytest.raises(CheckpointError, match=r"knows 2 classes, the data set 2; .*\('n2', 'wolf'\) there"):
        check_classes([["n1", "cat"], ["n2", "wolf"]], CLASSES, "run")
    with pytest.raises(CheckpointError, match="knows 1 classes, the data set 2; first differences: only the number"):
        check_classes([["n1", "cat"]], CLASSES, "run")
