"""Imports of the server that forks processes."""

import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel  # noqa: F401
from peft import LoraConfig  # noqa: F401
from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401

import sdpo.cli.main
import sdpo.report
import sdpo.rewards.models.colorfulness
import sdpo.trainer  # noqa: F401

torch.set_num_threads(1)
