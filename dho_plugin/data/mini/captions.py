"""Captions of the pretraining corpus: templates with nuisance words, synonyms, and the noise of alt texts."""

from dataclasses import dataclass

import numpy as np

from dho_plugin.data.mini.hashing import Stream, uniform
from dho_plugin.data.mini.params import Params
from dho_plugin.data.mini.shapes import SHAPE_NAMES
from dho_plugin.data.mini.world import COLORS, PATTERNS, SYNONYMS
from dho_plugin.errors import ConfigError

SIBLINGS = {
    "circle": ("hexagon", "gear"),
    "square": ("diamond", "house"),
    "triangle": ("tree", "pentagon"),
    "pentagon": ("hexagon", "house"),
    "hexagon": ("pentagon", "circle"),
    "diamond": ("square", "hexagon"),
    "star": ("burst", "flower"),
    "burst": ("star", "gear"),
    "heart": ("flower", "mushroom"),
    "crescent": ("circle", "heart"),
    "cross": ("star", "arrow"),
    "arrow": ("cross", "bolt"),
    "house": ("square", "pentagon"),
    "fish": ("arrow", "crescent"),
    "tree": ("triangle", "arrow"),
    "mushroom": ("cup", "tree"),
    "cup": ("square", "mushroom"),
    "bolt": ("arrow", "diamond"),
    "flower": ("gear", "star"),
    "gear": ("flower", "burst"),
}
_ANY_HYPERNYM = ("shape", "thing", "object", "figure")
_HYPERNYMS = {
    "round": ("circle",),
    "polygon": ("square", "triangle", "pentagon", "hexagon", "diamond"),
    "symbol": ("star", "burst", "heart", "crescent", "cross", "arrow", "bolt"),
    "building": ("house",),
    "animal": ("fish",),
    "plant": ("tree", "mushroom", "flower"),
    "tool": ("cup", "gear"),
}
_HYPERNYM = {shape: word for word, shapes in _HYPERNYMS.items() for shape in shapes}
_STYLE_WORDS = (
    ("photo", "photo", "picture", "image"),
    ("sketch", "drawing"),
    ("cartoon",),
    ("painting",),
    ("mosaic",),
    ("neon sign", "neon"),
    ("blueprint", "drawing"),
)  # in the order of STYLES
_PATTERN_WORDS = (("plain", "solid"), ("striped",), ("dotted", "spotted"), ("checkered",), ("ringed",))
_DETERMINERS = ("a", "the", "the", "one", "my", "a")
_TEMPLATES = ("a {s} of {n}", "a {s} of {n}.", "{s} of {n}", "{n}", "this is a {s} of {n}", "a good {s} of {n}")
# Prompts that CLIP users write (CoOp's one and Tip-Adapter's seven), so that the text towers know their words. Written
# out here: the corpus must stay what the shipped weights were trained on, whatever becomes of the templates in use.
_PROMPTS = (
    "a photo of a {}.",
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
MAX_WORDS = 14  # a context of 16 holds them with the start and end tokens
# Words that say nothing about an image: the bag-of-words loss leaves them out.
FILLERS = frozenset(
    ("a", "the", "of", "on", "in", ".", "my", "one", "this", "is", "background", "good", "bad", "itap", "art")
) | {"photo", "picture", "image"}


@dataclass(frozen=True)
class CaptionNoise:
    """How clean a corpus is, in shares of its captions.

    Attributes:
        wrong: another class altogether.
        sibling: a similar shape's name.
        hypernym: "animal", "thing" in the place of the shape.
        no_pattern: the pattern left unsaid.
        synonym: each of the four synonyms in the place of the shape's common name.
        quota: instead of `synonym`, the number of captions in the whole corpus that use a word, for each synonym.
        sibling_quota: how many of `quota` lie on images of a similar shape.
    """

    wrong: float
    sibling: float
    hypernym: float
    no_pattern: float
    synonym: float = 0.0
    quota: tuple[int, ...] = (0, 0, 0, 0)
    sibling_quota: tuple[int, ...] = (0, 0, 0, 0)


# The class names must be RARE words for the student, or zero-shot recognition leaves nothing to adapt: a fixed number
# of uses a word. The class names are the first synonyms; the others give easier and harder names to study.
STUDENT_NOISE = CaptionNoise(0.08, 0.12, 0.25, 0.25, quota=(12, 10, 15, 20), sibling_quota=(3, 3, 4, 5))
TEACHER_NOISE = CaptionNoise(0.02, 0.04, 0.15, 0.10, synonym=0.04)


def rare_words(shape: np.ndarray, noise: CaptionNoise, seed: int) -> dict[int, str]:
    """Choose the captions that use a rare word.

    Args:
        shape: (N,) int64, the shapes of the whole corpus.
        noise: with the quota of each synonym.
        seed: seed of the choice.

    Returns:
        A dict from caption number to the word to use.

    Raises:
        ConfigError: the corpus is too small.
    """
    order = np.argsort(uniform(seed, np.arange(len(shape)), 1), kind="stable")
    queues = [iter(order[shape[order] == s].tolist()) for s in range(len(SHAPE_NAMES))]
    chosen = {}
    for s, name in enumerate(SHAPE_NAMES):
        siblings = [SHAPE_NAMES.index(other) for other in SIBLINGS[name]]
        for word, uses, strays in zip(SYNONYMS[name], noise.quota, noise.sibling_quota, strict=True):
            for k in range(uses):
                caption = next(queues[siblings[k % 2] if k < strays else s], None)
                if caption is None:
                    raise ConfigError(
                        f"a corpus of {len(shape)} images is too small for the rare words; use 10000 or more"
                    )
                chosen[caption] = word
    return chosen


def captions(params: Params, index: np.ndarray, noise: CaptionNoise, rare: dict[int, str], seed: int) -> list[str]:
    """Write one caption an image; each depends on its own image and number only.

    Args:
        params: the images' rendering parameters (N).
        index: (N,) int, the images' numbers in the corpus.
        noise: how clean the captions are.
        rare: what `rare_words` chose for the whole corpus.
        seed: seed of the captions.
    """
    draw = Stream(seed, index)
    draws = np.stack([draw.uniform() for _ in range(_DRAWS)], 1)
    picture = zip(params["shape"], params["pattern"], params["style"], params["scale"] > 0.68, strict=True)
    colors = zip(params["color_index"], params["behind_index"], strict=True)
    rows = zip(index, picture, colors, draws, strict=True)
    return [_caption(_Draw(u), what, tint, noise, rare.get(int(i), "")) for i, what, tint, u in rows]


_DRAWS = 20


class _Draw:
    """The random numbers of one caption, used up one by one."""

    def __init__(self, numbers: np.ndarray):
        self._next = iter(numbers)

    def unit(self) -> float:
        return next(self._next)

    def chance(self, p: float) -> bool:
        return self.unit() < p

    def pick(self, options):
        return options[int(self.unit() * len(options))]


def _caption(draw: _Draw, picture, colors, noise: CaptionNoise, rare: str) -> str:
    shape, pattern, style, big = picture
    noun, pattern = _noun(draw, SHAPE_NAMES[shape], pattern, noise)
    pattern_word = draw.pick(_PATTERN_WORDS[pattern])
    words = [("big" if big else "small") if draw.chance(0.15) else "", _color(colors[0]) if draw.chance(0.4) else ""]
    words += ["" if draw.chance(noise.no_pattern) else pattern_word, rare or noun]
    phrase = " ".join(word for word in words if word)
    style_word = draw.pick(_STYLE_WORDS[style])
    determined = f"{draw.pick(_DETERMINERS)} {phrase}"
    text = draw.pick(_TEMPLATES).format(s="image" if draw.chance(0.1) else style_word, n=determined)
    prompt, plain = draw.pick(_PROMPTS).format(phrase), draw.chance(0.1)
    text = prompt if plain else text
    where = f" on a {_color(colors[1])} background"
    return text + where if draw.chance(0.25) and len((text + where).replace(".", " .").split()) <= MAX_WORDS else text


def _color(k: int) -> str:
    return list(COLORS)[k]


def _noun(draw: _Draw, shape: str, pattern: int, noise: CaptionNoise) -> tuple[str, int]:
    """The word for the shape, and the pattern, after the noise."""
    kind, other_shape, other_pattern = draw.unit(), draw.pick(SHAPE_NAMES), draw.pick(range(len(PATTERNS)))
    sibling, synonym, stray = draw.pick((0, 1)), draw.unit(), draw.chance(0.25)
    generic, is_hypernym = draw.pick(_ANY_HYPERNYM) if draw.chance(0.3) else "", draw.chance(noise.hypernym)
    if kind < noise.wrong:
        shape, pattern = other_shape, other_pattern
    elif kind < noise.wrong + noise.sibling:
        shape = SIBLINGS[shape][sibling]
    if is_hypernym:
        return generic or _HYPERNYM[shape], pattern
    if synonym < 4 * noise.synonym:
        return SYNONYMS[SIBLINGS[shape][sibling] if stray else shape][int(synonym / noise.synonym)], pattern
    return shape, pattern


def vocabulary() -> list[str]:
    """Return every word that a caption can hold, sorted, and CoOp's placeholder `x`."""
    words = {"x", "big", "small", "on", "a", "background", *COLORS, *_ANY_HYPERNYM, *_HYPERNYM.values(), *_DETERMINERS}
    words |= {*SHAPE_NAMES, *(w for group in (*SYNONYMS.values(), *_PATTERN_WORDS) for w in group)}
    words |= {w for group in _STYLE_WORDS for phrase in group for w in phrase.split()}
    for text in (*_TEMPLATES, *_PROMPTS):
        words |= set(text.format("", s="", n="").replace(".", " .").split())
    return sorted(words)
