"""The default values of every config key: Dassl's own names and values first, then this package's."""

_SAMPLER = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}

DEFAULTS = {
    "VERSION": 1,
    "OUTPUT_DIR": "./output",
    "RESUME": "",
    "SEED": -1,  # below 0: a random seed is drawn, logged and stored
    "USE_CUDA": True,
    "VERBOSE": True,
    "INPUT": {
        "SIZE": (224, 224),  # accepted from the hosts' files; size, mean, std and interpolation come with the weights
        "INTERPOLATION": "bilinear",
        "TRANSFORMS": (),
        "NO_TRANSFORM": False,
        "PIXEL_MEAN": [0.485, 0.456, 0.406],
        "PIXEL_STD": [0.229, 0.224, 0.225],
        "CROP_PADDING": 4,
        "RRCROP_SCALE": (0.08, 1.0),
        "CUTOUT_N": 1,
        "CUTOUT_LEN": 16,
        "GN_MEAN": 0.0,
        "GN_STD": 0.15,
        "RANDAUGMENT_N": 2,
        "RANDAUGMENT_M": 10,
        "COLORJITTER_B": 0.4,
        "COLORJITTER_C": 0.4,
        "COLORJITTER_S": 0.4,
        "COLORJITTER_H": 0.1,
        "RGS_P": 0.2,
        "GB_P": 0.5,
        "GB_K": 21,
        "JPEG_GAP": 3.0,  # ours: a JPEG is decoded smaller where its crop stays this many times the input; 0: never
        "UPRIGHT": False,  # ours: turn photos by their EXIF orientation (folder.yaml does, the published sets do not)
        "KEEP_MB": 0,  # ours: up to so many MB of decoded training images stay in memory, a stream and loader process
        "VIEWS": 0,  # ours: pass k over the images shows view k modulo VIEWS; 0: every pass shows another view
        "VIEW_SEED": 0,  # ours: a view is a function of (this seed, image index, view number), the same for all runs
    },
    "DATASET": {
        "ROOT": "",
        "NAME": "",
        "SOURCE_DOMAINS": (),
        "TARGET_DOMAINS": (),
        "NUM_LABELED": -1,
        "NUM_SHOTS": -1,
        "VAL_PERCENT": 0.1,
        "STL10_FOLD": -1,
        "CIFAR_C_TYPE": "",
        "CIFAR_C_LEVEL": 1,
        "ALL_AS_UNLABELED": False,
        "SUBSAMPLE_CLASSES": "all",  # CoOp's
        "PREFIX": "",  # ours: folder below ROOT that holds the data set's own folders ("mini")
        "NUM_VAL_SHOTS": 0,  # ours: validation images a class, from the training images where there is no val
        "LABELED_PERCENT": 0.0,  # ours: percent of the training images that are labeled, in place of NUM_SHOTS
        "SHOTS_FROM": "auto",  # ours: auto (split_fewshot/ beside the data, CoOp's or ours, else drawn) | draw
        "CSV": "",  # ours, of ImageFolder: a file path,label,split below the data set's folder in place of folders
        "TEST_SETS": (),  # ours, of ImageFolder: further test sets, by folder or by name in the CSV's column split
        "UNREADABLE": "error",  # ours: error | skip
        "TEMPLATES": (),  # ours: prompt templates with one {}; empty: the data set's published ones
    },
    "DATALOADER": {
        "NUM_WORKERS": 4,
        "K_TRANSFORMS": 1,
        "RETURN_IMG0": False,
        "TRAIN_X": dict(_SAMPLER),
        "TRAIN_U": {"SAME_AS_X": True, **_SAMPLER},
        "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
    },
    "MODEL": {
        "INIT_WEIGHTS": "",
        "FEATURES": "auto",  # ours, of a frozen image encoder: online | cached | auto | fill
        # PRETRAINED: of a distilled student without text. Ours: TAG (open_clip's), CKPT, SIZE (of that student's input)
        "BACKBONE": {"NAME": "", "PRETRAINED": True, "TAG": "", "CKPT": "", "SIZE": 0},
        "HEAD": {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0},
        "TEXT_TOWER": "auto",  # ours: auto (the cheapest exact way to text features) | plain | truncated | shared
        "TEXT_CHECKPOINTING": False,  # ours: learned prompts' activations are computed again in the backward
        "IMAGE_TOWER": "auto",  # ours: auto (of the last layer only the class token, where that is exact) | plain
        "COMPILE": False,  # ours: frozen image encoders of student and teacher run under torch.compile
        "CHANNELS_LAST": False,  # ours: convolutions of student and teacher keep the channels of a pixel together
        "TOME_R": 0,  # ours, at inference: tokens that each layer of a vision transformer merges (ToMe)
        "IMAGE_CHECKPOINTING": False,  # ours: visual prompts' activations are computed again in the backward
    },
    "OPTIM": {
        "NAME": "adam",
        "LR": 0.0003,
        "WEIGHT_DECAY": 5e-4,
        "MOMENTUM": 0.9,
        "SGD_DAMPNING": 0,
        "SGD_NESTEROV": False,
        "RMSPROP_ALPHA": 0.99,
        "ADAM_BETA1": 0.9,
        "ADAM_BETA2": 0.999,
        "STAGED_LR": False,
        "NEW_LAYERS": (),
        "BASE_LR_MULT": 0.1,
        "LR_SCHEDULER": "single_step",
        "STEPSIZE": (-1,),
        "GAMMA": 0.1,
        "MAX_EPOCH": 10,
        "WARMUP_EPOCH": -1,
        "WARMUP_TYPE": "linear",
        "WARMUP_CONS_LR": 1e-5,
        "WARMUP_MIN_LR": 1e-5,
        "WARMUP_RECOUNT": True,
        "WARMUP_STEPS": 0,  # ours: above 0, warm up over so many steps, then decay by a cosine, step by step
    },
    "TRAIN": {
        "CHECKPOINT_FREQ": 0,
        "PRINT_FREQ": 10,
        "COUNT_ITER": "train_x",
        "ACCUMULATION": 1,  # ours: a step's batch is computed in so many parts: the same step in less memory
    },
    "TEST": {
        "EVALUATOR": "Classification",
        "PER_CLASS_RESULT": False,
        "COMPUTE_CMAT": False,
        "NO_TEST": False,
        "SPLIT": "test",
        "FINAL_MODEL": "last_step",
        "SHIFTED": (),  # ours: further data sets (by registered name) on which the final model is scored
    },
    "TRAINER": {
        "NAME": "",
        "COOP": {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"},
        # Of the CE head: linear | mlp (DHO, Table 14); language | kaiming
        "LINEARPROBE": {"HEAD": "linear", "INIT": "language", "PREC": "fp16"},
        "VPT": {
            "N_CTX_VISION": 2,  # prompts a layer
            "CTX_INIT": "a photo of a",  # words in front of the class names, for HEAD text
            "PREC": "fp16",
            "PROMPT_DEPTH_VISION": 1,  # layers with prompts; 1 is VPT-shallow
            "HEAD": "text",  # ours: text (fixed text features, as in MaPLe's code) | linear (learned, as in DHO)
            "INIT": "language",  # ours, of the linear head: language | kaiming
            "DROPOUT": 0.0,  # ours, on the prompts
        },
        "DISTILL": {  # compact students, all of whose weights learn
            "PREC": "fp32",
            "CE_HEAD": "linear",  # linear | cosine | unit | mlp (non-linear, Table 14)
            "INIT": "kaiming",  # of the CE head: kaiming | language (CLIP students)
            "FEATURE_WEIGHT": 2000.0,  # of the features' squared difference (CLIP-KD's), times D / 512
            "BINARY_WEIGHT": 1.0,  # of DHKD's binary loss (its code: 1 on CIFAR-100, 0.1 on ImageNet)
            "BINARY_T": 2.0,  # temperature of it
            "BINARY_NORM": True,  # BinaryKL-Norm, which DHKD is trained with | BinaryKL
            "SOFT_LABELS": True,  # SSKD: the CE head follows the teacher, too, on labeled images
        },
        "PROMPTSRC": {
            "N_CTX_VISION": 4,
            "N_CTX_TEXT": 4,
            "CTX_INIT": "a photo of a",
            "PREC": "fp16",
            "PROMPT_DEPTH_VISION": 9,
            "PROMPT_DEPTH_TEXT": 9,
            "TEXT_LOSS_WEIGHT": 25.0,
            "IMAGE_LOSS_WEIGHT": 10.0,
            "GPA_MEAN": 15.0,
            "GPA_STD": 1.0,
            "TEMPLATES": (),  # ours: templates of the fixed text features; empty: DATASET.TEMPLATES, else the sixty
        },
        "ZSCLIP": {"PREC": "fp32"},
        "TIPADAPTER": {  # the released code's values for ImageNet; scripts/tip_adapter.sh has those of the other sets
            "ALPHA": 1.17,  # weight of the cache model in training, and where nothing is searched
            "BETA": 1.0,  # sharpness of its affinities
            "PASSES": 10,  # augmented views of each labeled image, of whose mean the keys are made
            "SEARCH": True,  # choose alpha and beta on the validation split, where there is one
            "SEARCH_SCALE": (7.0, 3.0),  # largest beta and alpha of the search
            "SEARCH_STEP": (200, 20),
            "EPS": 1e-4,  # of AdamW
            "PREC": "fp16",
        },
        "DHO": {
            "LAMBDA": 0.5,  # weight of the CE loss (Eq. 6, 7)
            "ZETA": 0.0,  # teacher's CLIP temperature; 0: the one that comes with the weights (OpenAI's: 0.01)
            "ETA": 2.0,  # KD temperature on teacher and KD head
            "ALPHA": 0.5,  # weight of the CE head at inference (Eq. 11)
            "BETA": 1.0,  # temperature of the KD head at inference (Eq. 11)
            "SEARCH": False,  # choose alpha and beta on the validation split instead
            "PROBE_GRADIENTS": 0,  # every so many steps the gradients of L_CE and L_KD are compared; 0: never
            "KD_ETA2": True,  # multiply each KL term by eta^2, as the released code does
            "UNLABELED": True,  # KD also on images drawn from D(l) and D(u) together
            "KD_HEAD": "cosine",  # cosine (Eq. 10) | linear | unit (as released) | mlp (non-linear, Table 14)
            "INIT": "language",  # language-aware | kaiming
            "MLP": {"HIDDEN": 0, "DROPOUT": 0.1},  # of non-linear heads, CE or KD: width (0: the features'), dropout
            "OPTIM": {"NAME": "", "LR": 1e-3, "WEIGHT_DECAY": 0.0},  # of the KD head; empty name: follow OPTIM
            "TEACHER": {
                "TYPE": "zero_shot",  # zero_shot | few_shot | run | placebo (the student's own zero-shot predictions)
                "ADAPTER": "",  # of few_shot: folder of a Tip-Adapter run, or a released file; {seed}: the run's seed
                "RUN": "",  # of run: folder of a finished run, whose predictions are distilled; {seed}: the run's seed
                "NAME": "ViT-L/14@336px",
                "TAG": "",
                "CKPT": "",
                "MODE": "auto",  # online (it looks at every image) | cached (its stored features) | auto | fill
                "CLASSNAMES": "",  # file in classnames.txt's format: the teacher's own names of the same classes
            },
        },
    },
}
