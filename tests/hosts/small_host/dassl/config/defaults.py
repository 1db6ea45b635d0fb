from yacs.config import CfgNode

_SAMPLING = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32}
_C = CfgNode({
    "OUTPUT_DIR": "./output",
    "RESUME": "",
    "SEED": -1,
    "USE_CUDA": True,
    "VERBOSE": False,
    "INPUT": {
        "SIZE": (32, 32),
        "INTERPOLATION": "bicubic",
        "TRANSFORMS": ("random_flip", "normalize"),
        "PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
        "PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
    },
    "DATASET": {"ROOT": "", "NAME": "", "NUM_SHOTS": -1},
    "DATALOADER": {
        "NUM_WORKERS": 0,
        "K_TRANSFORMS": 1,
        "TRAIN_X": dict(_SAMPLING),
        "TRAIN_U": {"SAME_AS_X": True, **_SAMPLING},
        "TEST": {"BATCH_SIZE": 100},
    },
    "MODEL": {"INIT_WEIGHTS": "", "BACKBONE": {"NAME": "", "PRETRAINED": True}},
    "OPTIM": {
        "NAME": "sgd",
        "LR": 0.05,
        "WEIGHT_DECAY": 5e-4,
        "MOMENTUM": 0.9,
        "MAX_EPOCH": 2,
        "LR_SCHEDULER": "cosine",
        "WARMUP_EPOCH": 0,
    },
    "TRAIN": {"CHECKPOINT_FREQ": 1, "PRINT_FREQ": 1},
    "TEST": {"SPLIT": "test", "FINAL_MODEL": "last_step", "NO_TEST": False},
    "TRAINER": {"NAME": ""},
})  # fmt: skip
