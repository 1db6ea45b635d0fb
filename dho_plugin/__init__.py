"""dho-plugin: Dual-Head Optimization for prompt-tuning codebases and compact students."""

__version__ = "0.1.0"
