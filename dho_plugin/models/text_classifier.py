"""The classifier that prompt tuning learns: the text features of the prompted class names."""

from __future__ import annotations

from torch import Tensor, nn

from dho_plugin.models.deep_prompts import DeepPrompts
from dho_plugin.models.prompts import PromptLearner
from dho_plugin.models.text_paths import text_features
from dho_plugin.models.text_tower import TextTower


class TextClassifier(nn.Module):
    """Class features f_T(prompt_c) of a frozen text tower; in evaluation they are computed once.

    Args:
        prompt_learner: the prompts of C classes.
        tower: the text tower that encodes them.
        deep: prompts of the tower's deeper layers, or None.

    Attributes:
        path: the way to the features, and why it is taken.

    Raises:
        ConfigError: MODEL.TEXT_TOWER names a way that would change the features.
    """

    def __init__(self, prompt_learner: PromptLearner, tower: TextTower, deep: DeepPrompts | None = None):
        super().__init__()
        self.prompt_learner, self.tower, self.deep = prompt_learner, tower, deep
        self.encode, self.path = text_features(tower, prompt_learner, deep)
        self._features: Tensor | None = None
        self._versions: tuple[int, ...] = ()

    def train(self, mode: bool = True) -> TextClassifier:
        """Set the mode; the tower stays in evaluation mode, and the features are computed anew."""
        super().train(mode)
        self.tower.eval()
        self._features = None
        return self

    def forward(self) -> Tensor:
        """Return the prompts' features (C, D), not normalized."""
        deep = [] if self.deep is None else self.deep.layers()
        versions = tuple(prompts._version for prompts in (self.prompt_learner.ctx, *deep))  # a loaded file changes them
        if self.training or self._features is None or versions != self._versions:
            self._features = self.encode(deep)
            self._versions = versions
        return self._features
