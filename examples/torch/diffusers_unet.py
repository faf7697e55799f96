"""Diffusers' training loop on a tiny UNet with random weights: python examples/torch/diffusers_unet.py"""

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from torch.nn import functional

import graft_lora


def train(accelerated: bool = True, steps: int = 20) -> tuple[list[float], torch.nn.Module]:
    """The losses of each step, and the model."""
    set_seed(0)
    accelerator = Accelerator()
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=8,
        norm_num_groups=8,
    ).requires_grad_(False)
    projections = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=projections))
    if accelerated:
        graft_lora.accelerate(unet)  # The one line.
    noiser = DDPMScheduler(num_train_timesteps=100)
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], 1e-2)
    unet, optimizer = accelerator.prepare(unet, optimizer)
    latents, captions = torch.randn(2, 4, 16, 16), torch.randn(2, 7, 32)
    latents, captions = latents.to(accelerator.device), captions.to(accelerator.device)
    losses = []
    for _ in range(steps):
        noise = torch.randn_like(latents)
        times = torch.randint(100, (len(latents),), device=latents.device)
        found = unet(noiser.add_noise(latents, noise, times), times, captions).sample
        loss = functional.mse_loss(found.float(), noise)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, unet


if __name__ == "__main__":
    losses, model = train()
    print(f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} after {len(losses)} steps")
    graft_lora.report(model)
