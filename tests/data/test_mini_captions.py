from collections import Counter

import numpy as np
import pytest

from dho_plugin.data.mini.captions import (
    MAX_WORDS,
    SIBLINGS,
    STUDENT_NOISE,
    TEACHER_NOISE,
    CaptionNoise,
    captions,
    rare_words,
    vocabulary,
)
from dho_plugin.data.mini.corpus import corpus_captions, corpus_images, corpus_labels
from dho_plugin.data.mini.params import sample
from dho_plugin.data.mini.shapes import SHAPE_NAMES
from dho_plugin.data.mini.world import SIZE, SYNONYMS, shapes_and_patterns
from dho_plugin.errors import ConfigError

CORPUS = 12_000
CLEAN = CaptionNoise(0, 0, 0, 0)


@pytest.fixture(scope="module")
def shape():
    return shapes_and_patterns(corpus_labels(np.arange(CORPUS)))[0]


@pytest.fixture(scope="module")
def student():
    return [words(text) for text in corpus_captions(STUDENT_NOISE, CORPUS)]


def words(text):
    return text.replace(".", " .").split()


def test_rare_words_are_used_exactly_as_often_as_the_quota_says(student, shape):
    used = Counter(word for text in student for word in text)
    for name, synonyms in SYNONYMS.items():
        assert tuple(used[w] for w in synonyms) == STUDENT_NOISE.quota
        own = [shape[k] == SHAPE_NAMES.index(name) for k, text in enumerate(student) if synonyms[0] in text]
        assert own.count(False) == STUDENT_NOISE.sibling_quota[0]


def test_strays_of_a_rare_word_lie_on_siblings(shape):
    chosen = rare_words(shape, STUDENT_NOISE, seed=1)
    for name, synonyms in SYNONYMS.items():
        at = {SHAPE_NAMES[shape[k]] for k, word in chosen.items() if word == synonyms[0]}
        assert at == {name, *SIBLINGS[name]}


def test_too_small_a_corpus_is_an_error():
    with pytest.raises(ConfigError, match="too small"):
        rare_words(np.zeros(50, dtype=np.int64), STUDENT_NOISE, seed=1)


def test_the_teachers_corpus_uses_every_synonym_and_is_cleaner(student, shape):
    teacher = [words(text) for text in corpus_captions(TEACHER_NOISE, CORPUS)]
    used = Counter(word for text in teacher for word in text)
    uses = np.array([used[w] for group in SYNONYMS.values() for w in group])
    assert uses.min() > 0
    assert abs(uses.sum() / CORPUS - 0.16 * 0.85) < 0.02
    right = [np.mean([SHAPE_NAMES[s] in text for s, text in zip(shape, c, strict=True)]) for c in (student, teacher)]
    assert right[0] < 0.65 < 0.66 < right[1]


def test_captions_know_only_the_vocabulary_and_fit(student):
    assert {w for text in student for w in text} <= set(vocabulary())
    assert max(map(len, student)) <= MAX_WORDS


def test_a_caption_depends_on_its_own_image_only():
    index = np.arange(300)
    params = sample(1, index, index % 20, index % 5, index % 7, "web")
    part = {name: value[100:150] for name, value in params.items()}
    whole = captions(params, index, STUDENT_NOISE, {120: "disc"}, seed=4)
    assert captions(part, index[100:150], STUDENT_NOISE, {120: "disc"}, seed=4) == whole[100:150]
    assert "disc" in words(whole[120])


def test_clean_captions_tell_the_truth():
    index = np.arange(600)
    params = sample(1, index, index % 20, index % 5, np.zeros(600, dtype=np.int64), "web")
    pattern_words = [{"plain", "solid"}, {"striped"}, {"dotted", "spotted"}, {"checkered"}, {"ringed"}]
    for k, text in enumerate(captions(params, index, CLEAN, {}, seed=4)):
        assert SHAPE_NAMES[k % 20] in words(text)
        assert pattern_words[k % 5] & set(words(text))


def test_corpus_images_are_rendered_once_and_kept(tmp_path):
    file = tmp_path / "deep" / "images.npy"
    images = corpus_images(file, 600)
    assert images.shape == (600, SIZE, SIZE, 3)
    assert images.std(axis=(1, 2, 3)).min() > 1, "no image is left empty"
    np.testing.assert_array_equal(corpus_images(tmp_path / "short.npy", 100), images[:100])
    before = file.stat().st_mtime_ns
    corpus_images(file, 600)
    assert file.stat().st_mtime_ns == before
    assert [p.name for p in file.parent.iterdir()] == ["images.npy"]
