import os
import pickle
import sys

import pytest

from dho_plugin.data.coop_pickle import Named, read_shots_pickle
from dho_plugin.errors import DataError

HOST = "dassl.data.datasets.base_dataset"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return a function that pickles something and returns the file; afterwards the host's module is gone."""

    def write(content, protocol=pickle.HIGHEST_PROTOCOL):
        path = tmp_path / "shot_2-seed_1.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        monkeypatch.delitem(sys.modules, HOST, raising=False)
        return path

    return write


class Call:
    """Pickles as a call of something."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4, pickle.HIGHEST_PROTOCOL])
def test_coops_records_are_read_in_order(host_datum, written, protocol):
    train = [host_datum("/there/b.jpg", 1, 0, "Größe"), host_datum("/there/a.jpg", 0, 0, "cat")]
    path = written({"train": train, "val": [host_datum("/there/v.jpg", 1)]}, protocol)
    assert read_shots_pickle(path) == {
        "train": [Named("/there/b.jpg", 1), Named("/there/a.jpg", 0)],
        "val": [Named("/there/v.jpg", 1)],
    }
    assert HOST not in sys.modules


def test_imagenets_pickle_has_no_validation_images(host_datum, written):
    assert read_shots_pickle(written({"train": [host_datum("a", 3)]})) == {"train": [Named("a", 3)]}


def hostile(directory):
    """Yield what asks for more than Datum, each with what the message must name; all would leave a trace."""
    trace = f"open({str(directory / 'trace')!r}, 'w').close()"
    system = Call(os.system, f"touch {directory / 'trace'}")
    yield system, f"{os.system.__module__}.system"
    yield {"train": [system]}, "system"
    yield {"train": [], "val": {"deep": [(1, {2: Call(eval, trace)})]}}, "builtins.eval"
    yield {"train": [Call(getattr, (), "__class__")]}, "builtins.getattr"
    yield {"train": [Call(__import__, "os")]}, "builtins.__import__"
    by_dots = b"\x80\x04\x8c" + bytes([len(HOST)]) + HOST.encode() + b"\x8c\x0eDatum.__init__\x93."
    yield by_dots, "Datum.__init__"
    yield b"c" + HOST.encode() + b"\nos\n.", f"{HOST}.os"
    yield b"cdassl.data.datasets\nDatum\n.", "dassl.data.datasets.Datum"
    yield b"\x80\x02Pobject\n.", "PERSID"
    yield b"\x80\x04\x8c\x06objectQ.", "BINPERSID"
    yield b"\x80\x02\x82\x01.", "EXT1"
    yield bytearray(b"x"), "BYTEARRAY8"
    yield b"\x80\x02}(" + b")" + b"\x85" * 1_000_000 + b"K\x01u.", "TUPLE1"  # hashing it would overflow the stack
    yield b"\x80\x02Nr\xff\xff\xff\x7f.", "NONE"
    yield b"\x80\x02}r\xff\xff\xff\x7f.", "2,147,483,647 places"


@pytest.mark.parametrize("number", range(15))
def test_whatever_asks_for_more_is_refused_and_never_run(tmp_path, written, number):
    content, named = list(hostile(tmp_path))[number]
    path = written(content)
    with pytest.raises(DataError) as error:
        read_shots_pickle(path)
    assert str(error.value).startswith(f"{path} is refused: ")
    assert named in str(error.value)
    assert "SHOTS_FROM draw" in str(error.value)
    assert not (tmp_path / "trace").exists()


def test_the_hostile_files_would_leave_a_trace(tmp_path):
    pickle.loads(pickle.dumps(next(hostile(tmp_path))[0]))
    assert (tmp_path / "trace").exists()


def word(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


DATUM = word(HOST) + word("Datum") + b"\x93"
FIELDS = word("_impath") + word("a") + word("_label") + b"K\x01" + word("_domain") + b"K\x00" + word("_classname")
STATE = b"}(" + FIELDS + word("c") + b"u"


def in_train(item):
    return b"\x80\x04}" + word("train") + b"](" + item + b"es."


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (DATUM, "train[0] is no Datum record"),  # the class itself
        (DATUM + STATE + b"b", "TypeError"),  # a state for the class itself
        (DATUM + b")\x81", "train[0] is no Datum record"),  # a record without a state
        (DATUM + b")\x81]b", "train[0] is no Datum record"),
        (DATUM + word("a") + b"\x85R", f"TUPLE1 (last class asked for: {HOST}.Datum)"),  # a call
        (DATUM + b")R", f"REDUCE (last class asked for: {HOST}.Datum)"),
        (DATUM + b")\x81" + STATE[:-1] + word("more") + b"K\x01ub", "train[0] has not just the fields"),
        (word("a"), "train[0] is no Datum record"),
    ],
)
def test_odd_uses_of_the_record_are_refused(written, item, named):
    assert read_shots_pickle(written(in_train(DATUM + b")\x81" + STATE + b"b"))) == {"train": [Named("a", 1)]}
    with pytest.raises(DataError) as error:
        read_shots_pickle(written(in_train(item)))
    assert named in str(error.value)


@pytest.mark.parametrize("field", ["_impath", "_label", "_domain", "_classname"])
@pytest.mark.parametrize("value", [["a"], {}])
def test_fields_are_plain_words_and_numbers(host_datum, written, field, value):
    item = host_datum("a", 1, 0, "c")
    setattr(item, field, value)
    with pytest.raises(DataError, match=r"train\[1\] has not just the fields _impath, _label"):
        read_shots_pickle(written({"train": [host_datum("b", 0), item]}))


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "a list, not a dict"),
        ({"train": None}, "NONE"),
        ({"test": []}, "not a dict with the shots under 'train'"),
        ({"train": ()}, "'train' is a tuple, not a list"),
        ({"train": [], "val": {}}, "'val' is a dict, not a list"),
        (b"", "ValueError"),
        (b"not a pickle", "ValueError"),
        (pickle.dumps({"train": ["a" * 100]})[:50], "ValueError"),
        (b"\x80\x02" + b"]" * 100_000 + b".", "a list, not a dict"),
        (b"\x80\x02e.", "UnpicklingError"),
    ],
)
def test_other_contents_are_named(written, content, named):
    with pytest.raises(DataError) as error:
        read_shots_pickle(written(content))
    assert named in str(error.value)
