"""What a CLIP's name and tag mean: hosts' names, open_clip's names, and the facts that belong to published weights."""

import difflib
from dataclasses import dataclass

import open_clip

from dho_plugin.errors import ConfigError

HOST_NAMES = {
    "RN50": "RN50",
    "RN101": "RN101",
    "RN50x4": "RN50x4",
    "RN50x16": "RN50x16",
    "RN50x64": "RN50x64",
    "ViT-B/32": "ViT-B-32",
    "ViT-B/16": "ViT-B-16",
    "ViT-L/14": "ViT-L-14",
    "ViT-L/14@336px": "ViT-L-14-336",
}
PREPROCESS_FIELDS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Source:
    """An architecture of open_clip and the tag of its weights ("" where a local file brings them).

    Attributes:
        arch: open_clip's name of the architecture.
        tag: open_clip's tag of the weights, or "".
        key: config prefix that error messages name.
    """

    arch: str
    tag: str
    key: str

    @property
    def openai(self) -> bool:
        """Whether the weights are OpenAI's."""
        return self.tag == "openai"


def resolve(name: str, tag: str, key: str) -> Source:
    """Return the architecture and tag behind a name; a host's name without a tag means OpenAI's weights.

    Args:
        name: a host's name (`ViT-L/14@336px`) or open_clip's (`ViT-H-14-378-quickgelu`).
        tag: open_clip's pretrained tag, or "".
        key: config prefix for messages, such as MODEL.BACKBONE.

    Raises:
        ConfigError: unknown name, or a tag that this architecture does not have.
    """
    tag = tag.lower().replace("-", "_")  # as open_clip writes them
    if name in HOST_NAMES:
        tag = tag or "openai"
        arch = HOST_NAMES[name] + ("-quickgelu" if tag == "openai" else "")
    elif name in open_clip.list_models():
        arch = name
    else:
        raise ConfigError(_unknown_name(name, key))
    if tag and not open_clip.is_pretrained_cfg(arch, tag):
        raise ConfigError(f"{key}.TAG: {name} has no weights tagged {tag!r}; {_known_tags(arch)}")
    return Source(arch, tag, key)


def weights_facts(source: Source) -> dict:
    """Return the preprocessing fields and `quick_gelu` that belong to a set of weights.

    Without a tag they are what all published weights of the architecture have in common; `quick_gelu` then follows the
    architecture's own name where its weights differ.

    Raises:
        ConfigError: no tag is given and the published weights differ in their preprocessing.
    """
    published = open_clip.list_pretrained_tags_by_model(source.arch)
    tags = [source.tag] if source.tag else published
    configs = [open_clip.get_pretrained_cfg(source.arch, tag) for tag in tags]
    facts = [{k: c[k] for k in PREPROCESS_FIELDS if c.get(k) is not None} for c in configs]
    if any(f != facts[0] for f in facts):
        raise ConfigError(
            f"{source.key}.TAG is empty, but the weights of {source.arch} differ in their preprocessing: say which one "
            f"{source.key}.CKPT holds; {_known_tags(source.arch)}"
        )
    by_name = bool(open_clip.get_model_config(source.arch).get("quick_gelu", False))
    by_tag = bool(configs) and all(c.get("quick_gelu", False) for c in configs)
    return {**(facts[0] if facts else {}), "quick_gelu": by_name or by_tag}


def require_tag(source: Source) -> None:
    """Raise ConfigError unless the source says which weights to download."""
    if not source.tag:
        raise ConfigError(
            f"{source.key}.TAG and {source.key}.CKPT are both empty, so {source.arch} has no weights: set CKPT to a "
            f"local file, or TAG; {_known_tags(source.arch)}"
        )


def _known_tags(arch: str) -> str:
    tags = open_clip.list_pretrained_tags_by_model(arch)
    return f"tags of {arch}: {', '.join(tags)}" if tags else f"open_clip knows no tags of {arch}"


def _unknown_name(name: str, key: str) -> str:
    lowered = {known.lower(): known for known in open_clip.list_models()}
    close = difflib.get_close_matches(name.lower().replace("/", "-"), lowered, n=5, cutoff=0.5)
    near = f"; close names of open_clip: {', '.join(lowered[c] for c in close)}" if close else ""
    return (
        f"{key}.NAME: unknown CLIP {name!r}. Known: {', '.join(HOST_NAMES)}, mini-student, mini-teacher, and "
        f"open_clip's {len(lowered)} names{near}"
    )
