"""Trainers in the styles of the hosts: frozen image encoder, prompts for both encoders, averaged prompts, others."""

import copy

import torch
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from torch import nn
from torch.nn import functional as F

D = 32


class ImageEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.out = nn.Conv2d(3, 24, 8, 8), nn.Linear(24, D)

    def forward(self, images, prompt=None):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = tokens if prompt is None else tokens + prompt
        return self.out(tokens.tanh().mean(1))


class Prompts(nn.Module):
    def __init__(self, classes, joint):
        super().__init__()
        self.ctx = nn.Parameter(0.3 * torch.randn(D))
        self.to_image = nn.Linear(D, 24) if joint else None
        self.register_buffer("names", torch.randn(classes, D))


class Model(nn.Module):
    def __init__(self, classes, joint):
        super().__init__()
        self.prompt_learner, self.image_encoder = Prompts(classes, joint), ImageEncoder()
        self.mix = nn.Linear(D, D)

    def extra(self):
        learner = self.prompt_learner
        return () if learner.to_image is None else (learner.to_image(learner.ctx),)

    def logits(self, features):
        text = self.mix((self.prompt_learner.names + self.prompt_learner.ctx).tanh())
        return 20 * F.normalize(features, dim=-1) @ F.normalize(text, dim=-1).t()

    def forward(self, images):
        return self.logits(self.image_encoder(images, *self.extra()))


class Small(TrainerX):
    joint = False

    def build_model(self):
        torch.manual_seed(5)  # weights do not depend on what was drawn before
        self.model = Model(self.num_classes, self.joint)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_("prompt_learner" in name)
        learner = self.model.prompt_learner
        self.optim = build_optimizer(learner, self.cfg.OPTIM)
        self.register_model("prompt_learner", learner, self.optim, build_lr_scheduler(self.optim, self.cfg.OPTIM))
        amp = self.cfg.TRAINER.SMALL.PREC == "amp"
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9) if amp else None

    def loss(self, batch):
        return F.cross_entropy(self.model(batch["img"]), batch["label"])

    def end_of_step(self, loss):
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


@TRAINER_REGISTRY.register()
class Frozen(Small):
    """As CoOp: all registered optimizers are stepped in fp32, only its own with a scaler."""

    def forward_backward(self, batch):
        loss = self.loss(batch)
        if self.scaler is None:
            self.model_backward_and_update(loss)
        else:
            self.optim.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optim)
            self.scaler.update()
        return self.end_of_step(loss)


@TRAINER_REGISTRY.register()
class Prompted(Small):
    """As MaPLe: one context for both encoders, handed to the image encoder; only its own optimizer is stepped."""

    joint = True

    def forward_backward(self, batch):
        loss = self.loss(batch) + 0.1 * self.model.prompt_learner.ctx.square().sum()
        scaler = self.scaler or torch.amp.GradScaler("cpu", enabled=False)
        self.optim.zero_grad()
        scaler.scale(loss).backward()
        if self.cfg.TRAINER.SMALL.CLIP:
            scaler.unscale_(self.optim)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.cfg.TRAINER.SMALL.CLIP)
        scaler.step(self.optim)
        scaler.update()
        return self.end_of_step(loss)


@TRAINER_REGISTRY.register()
class Averaged(Prompted):
    """As PromptSRC: the prompts of all epochs are averaged at the end of the last."""

    def build_model(self):
        super().build_model()
        self.gauss = [weight / sum(range(1, self.max_epoch + 1)) for weight in range(1, self.max_epoch + 1)]
        self.step_counter, self.previous_model_gpa = 1, None

    def forward_backward(self, batch):
        summary = super().forward_backward(batch)
        learner = self.model.prompt_learner
        if self.batch_idx + 1 == self.num_batches:
            self.step_counter += 1
            now = {k: v * self.gauss[self.step_counter - 2] for k, v in copy.deepcopy(learner.state_dict()).items()}
            before = self.previous_model_gpa
            self.previous_model_gpa = now if before is None else {k: now[k] + before[k] for k in now}
        if self.step_counter == self.max_epoch + 1:
            learner.load_state_dict(self.previous_model_gpa)
        return summary


@TRAINER_REGISTRY.register()
class OwnTest(Frozen):
    def test(self, split=None):
        return 0.0


@TRAINER_REGISTRY.register()
class NoEncoder(Frozen):
    def build_model(self):
        self.model = nn.Sequential(nn.Flatten(), nn.LazyLinear(self.num_classes))
        self.register_model("model", self.model)


@TRAINER_REGISTRY.register()
class TwoOptimizers(Frozen):
    def build_model(self):
        super().build_model()
        self.register_model("second", self.model.mix, build_optimizer(self.model.mix, self.cfg.OPTIM))


@TRAINER_REGISTRY.register()
class Parallel(Frozen):
    def build_model(self):
        super().build_model()
        self.model = nn.DataParallel(self.model)


@TRAINER_REGISTRY.register()
class StoredFeatures(Frozen):
    def loss(self, batch):
        return F.cross_entropy(self.model.logits(torch.ones(len(batch["img"]), D)), batch["label"])


class ContextLearner(nn.Module):
    def __init__(self, clip, names, tokenize, n_ctx):
        super().__init__()
        self.tokens = tokenize([" ".join(["X"] * n_ctx) + f" {name}." for name in names])
        embedded = clip.token_embedding(self.tokens).detach()
        self.ctx = nn.Parameter(0.02 * torch.randn(n_ctx, embedded.shape[-1]))
        self.register_buffer("token_prefix", embedded[:, :1])
        self.register_buffer("token_suffix", embedded[:, 1 + n_ctx :])

    def forward(self):
        ctx = self.ctx.expand(len(self.tokens), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class PromptedCLIP(nn.Module):
    def __init__(self, clip, learner):
        super().__init__()
        self.prompt_learner, self.image_encoder, self.clip = learner, clip.visual, clip

    def forward(self, images):
        clip, learner = self.clip, self.prompt_learner
        hidden = clip.transformer(learner() + clip.positional_embedding, attn_mask=clip.attn_mask)
        ends = learner.tokens.argmax(-1)
        text = clip.ln_final(hidden)[torch.arange(len(ends)), ends] @ clip.text_projection
        image = self.image_encoder(images)
        return clip.logit_scale.exp() * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).t()


@TRAINER_REGISTRY.register()
class ContextOnCLIP(Frozen):
    """CoOp's model, by its formulas, on a CLIP that open_clip runs."""

    def build_model(self):
        from dho_plugin.models.clip import load_clip

        loaded = load_clip(self.cfg.MODEL.BACKBONE.NAME, ckpt=self.cfg.MODEL.BACKBONE.CKPT)
        learner = ContextLearner(loaded.model, self.dm.dataset.classnames, loaded.tokenizer, 4)
        self.model, self.scaler = PromptedCLIP(loaded.model, learner), None
        self.optim = build_optimizer(learner, self.cfg.OPTIM)
        self.register_model("prompt_learner", learner, self.optim, build_lr_scheduler(self.optim, self.cfg.OPTIM))
