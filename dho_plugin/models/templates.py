"""Prompt templates per dataset: CoOp's single ones, Tip-Adapter's ensemble for ImageNet and PromptSRC's sixty."""

import open_clip

DEFAULT_TEMPLATE = "a photo of a {}."
IMAGENET_TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
# PromptSRC averages its fixed text features over the first 60 of the 80 templates that OpenAI published for ImageNet.
PROMPTSRC_TEMPLATES = tuple(template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES[:60])
_SINGLE = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
}
_IMAGENET_FAMILY = ("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")


def templates_for(dataset: str, ensemble: bool = True) -> tuple[str, ...]:
    """Return the prompt templates of a dataset, each with one "{}" for the class name.

    Args:
        dataset: class name of the dataset, such as OxfordPets; any other name gets "a photo of a {}.".
        ensemble: the seven templates of Tip-Adapter for the ImageNet family; False gives CoOp's single one.
    """
    if ensemble and dataset in _IMAGENET_FAMILY:
        return IMAGENET_TEMPLATES
    return (_SINGLE.get(dataset, DEFAULT_TEMPLATE),)
