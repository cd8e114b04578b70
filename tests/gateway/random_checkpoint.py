"""Writes a checkpoint that ComfyUI takes for one of Stable Diffusion, with random weights and nearly no layers (300 MB, seconds).

Run by ComfyUI's own Python, with its source on PYTHONPATH: random_checkpoint.py FILE. Its pictures are noise, but all that makes a
picture is run: tokenizer, text encoder, U-Net, sampler, decoder.
"""

import math
import sys

import safetensors.torch
import torch


def parts() -> dict[str, torch.nn.Module]:
    """The networks of a checkpoint, by the beginning of their weights' names."""
    from comfy.cli_args import args

    args.cpu = True  # before the others look for a GPU
    from comfy import ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from comfy.sd1_clip import SD1ClipModel
    from comfy.taesd.taesd import TAESD

    # ComfyUI knows Stable Diffusion 1 by its numbers of channels, 320 and 768, and counts the layers in the file.
    unet = UNetModel(
        image_size=32, in_channels=4, out_channels=4, model_channels=320, context_dim=768, num_heads=8, channel_mult=[1],
        num_res_blocks=[1], transformer_depth=[1], transformer_depth_middle=1, transformer_depth_output=[1, 1],
        use_spatial_transformer=True, legacy=False, operations=ops.disable_weight_init,
    )  # fmt: skip
    return {"model.diffusion_model.": unet, "cond_stage_model.": SD1ClipModel(dtype=torch.float32), "first_stage_model.": TAESD()}


def weight(name: str, shape: torch.Size) -> torch.Tensor:
    """Random, and so that numbers neither grow nor vanish on their way through the layers."""
    if len(shape) > 1:
        return torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
    return torch.zeros(shape) if name.endswith(("bias", "shift")) else torch.ones(shape)


torch.manual_seed(0)
weights = {
    prefix + name.removeprefix("clip_l."): weight(name, tensor.shape).half()
    for prefix, part in parts().items()
    for name, tensor in part.state_dict().items()
}
safetensors.torch.save_file(weights, sys.argv[1])
