import pytest

from dho_plugin.models.templates import templates_for

# As Tip-Adapter's code has them, one file a data set (its `template`).
TIP_ADAPTER = {
    "ImageNet": (
        "itap of a {}.",
        "a bad photo of the {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "Caltech101": ("a photo of a {}.",),
    "OxfordPets": ("a photo of a {}, a type of pet.",),
    "StanfordCars": ("a photo of a {}.",),
    "OxfordFlowers": ("a photo of a {}, a type of flower.",),
    "Food101": ("a photo of {}, a type of food.",),
    "FGVCAircraft": ("a photo of a {}, a type of aircraft.",),
    "SUN397": ("a photo of a {}.",),
    "DescribableTextures": ("{} texture.",),
    "EuroSAT": ("a centered satellite photo of {}.",),
    "UCF101": ("a photo of a person doing {}.",),
}


@pytest.mark.parametrize("name", TIP_ADAPTER)
def test_the_templates_are_tip_adapters(name):
    assert templates_for(name) == TIP_ADAPTER[name]


@pytest.mark.parametrize("name", ["ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"])
def test_the_shifted_sets_have_imagenets(name):
    assert templates_for(name) == TIP_ADAPTER["ImageNet"]


@pytest.mark.parametrize("name", TIP_ADAPTER)
def test_coops_single_template_differs_on_imagenet_only(name):
    single = "a photo of a {}." if name == "ImageNet" else TIP_ADAPTER[name][0]
    assert templates_for(name, ensemble=False) == (single,)


def test_any_other_data_set_has_the_plain_one():
    assert templates_for("ImageFolder") == ("a photo of a {}.",)
