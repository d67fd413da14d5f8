# Wrong answers to problem set 5, each with a mistake of the field: every one must lose its task.
import math

import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal, kl_divergence


# %% train_step: the batch is not moved
def train_step(model, batch, optimizer, device):
    loss = model(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% train_step: the moved batch is thrown away
def train_step(model, batch, optimizer, device):
    batch.to(device)
    loss = model(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% train_step: the model is moved to the batch
def train_step(model, batch, optimizer, device):
    model = model.to(batch.device)
    loss = model(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach().to(device)


# %% train_step: cuda if there is one, whatever device was passed
def train_step(model, batch, optimizer, device):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% train_step: the batch is moved with .cuda()
def train_step(model, batch, optimizer, device):
    loss = model(batch.cuda())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% train_step: loss.item()
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


# %% train_step: a new tensor from loss.item()
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return torch.tensor(loss.item(), dtype=torch.float64, device=device)


# %% train_step: the loss is printed in each step
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"loss {loss.item():.4f}", end="\r")
    return loss.detach()


# %% train_step: a step is skipped if the loss is not finite, which asks for its value
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    if torch.isfinite(loss):
        loss.backward()
        optimizer.step()
    return loss.detach()


# %% train_step: the loss is fetched to the CPU
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach().cpu()


# %% train_step: the loss is not detached
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


# %% train_step: nothing is returned
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# %% train_step: the loss is a tensor with one dimension
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach().reshape(1)


# %% train_step: gradients are never cleared
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% train_step: gradients are cleared between backward and step
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss.detach()


# %% train_step: gradients are cleared only after the step, those of before count
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


# %% train_step: the step comes before backward
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    return loss.detach()


# %% train_step: no step is taken
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    return loss.detach()


# %% train_step: the step is taken twice
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    optimizer.step()
    return loss.detach()


# %% train_step: the loss after the update
def train_step(model, batch, optimizer, device):
    batch = batch.to(device)
    optimizer.zero_grad()
    model(batch).backward()
    optimizer.step()
    with torch.no_grad():
        return model(batch)


# %% train_step: the loss is computed anew after the update, for backward as well
def train_step(model, batch, optimizer, device):
    batch = batch.to(device)
    optimizer.zero_grad()
    model(batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    loss = model(batch)
    loss.backward()
    return loss.detach()


# %% train_step: the sum of the losses of all steps so far
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    train_step.total = getattr(train_step, "total", 0) + loss.detach()
    return train_step.total


# %% train_step: the loss times the size of the batch
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device)) * len(batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% train_step: gradients are clipped to norm 1
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.detach()


# %% train_step: a new optimizer in each step, without a memory
def train_step(model, batch, optimizer, device):
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    optimizer = type(optimizer)(model.parameters(), **settings)
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% train_step: plain gradient descent in place of the optimizer
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= optimizer.param_groups[0]["lr"] * parameter.grad
    return loss.detach()


# %% train_step: the batch is rounded to 16 bits on its way
def train_step(model, batch, optimizer, device):
    loss = model(batch.half().double().to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% train_step: the batch is centred in place
def train_step(model, batch, optimizer, device):
    batch -= batch.mean(0)
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% epoch_indices: with replacement
def epoch_indices(num_examples, batch_size, generator, device):
    shape = (num_examples // batch_size, batch_size)
    return torch.randint(num_examples, shape, generator=generator, device=generator.device).to(device)


# %% epoch_indices: each batch without replacement, but batches share examples
def epoch_indices(num_examples, batch_size, generator, device):
    rows = [
        torch.randperm(num_examples, generator=generator)[:batch_size]
        for _ in range(num_examples // batch_size)
    ]
    return torch.stack(rows).to(device)


# %% epoch_indices: not shuffled
def epoch_indices(num_examples, batch_size, generator, device):
    full = num_examples // batch_size * batch_size
    return torch.arange(full, device=device).reshape(-1, batch_size)


# %% epoch_indices: the old order from a random start
def epoch_indices(num_examples, batch_size, generator, device):
    start = torch.randint(num_examples, (), generator=generator, device=generator.device)
    order = (torch.arange(num_examples, device=generator.device) + start) % num_examples
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: batches are shuffled, but always the same ones
def epoch_indices(num_examples, batch_size, generator, device):
    num_batches = num_examples // batch_size
    rows = torch.arange(num_batches * batch_size).reshape(num_batches, batch_size)
    return rows[torch.randperm(num_batches, generator=generator)].to(device)


# %% epoch_indices: shuffled within batches only
def epoch_indices(num_examples, batch_size, generator, device):
    num_batches = num_examples // batch_size
    keys = torch.rand(num_batches, batch_size, generator=generator)
    starts = batch_size * torch.arange(num_batches)
    return (keys.argsort(1) + starts[:, None]).to(device)


# %% epoch_indices: the last examples never come
def epoch_indices(num_examples, batch_size, generator, device):
    num_batches = num_examples // batch_size
    order = torch.randperm(num_batches * batch_size, generator=generator)
    return order.reshape(num_batches, batch_size).to(device)


# %% epoch_indices: the global generator
def epoch_indices(num_examples, batch_size, generator, device):
    order = torch.randperm(num_examples)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: the global generator, which gets the generator's seed
def epoch_indices(num_examples, batch_size, generator, device):
    torch.manual_seed(generator.initial_seed())
    order = torch.randperm(num_examples)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: the global generator, which gets a seed drawn as a Python number
def epoch_indices(num_examples, batch_size, generator, device):
    torch.manual_seed(torch.randint(2**31, (), generator=generator).item())
    order = torch.randperm(num_examples)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: the order of the batches comes from the global generator
def epoch_indices(num_examples, batch_size, generator, device):
    num_batches = num_examples // batch_size
    order = torch.randperm(num_examples, generator=generator)[: num_batches * batch_size]
    return order.reshape(num_batches, batch_size)[torch.randperm(num_batches)].to(device)


# %% epoch_indices: a fixed seed, so that all epochs are alike
def epoch_indices(num_examples, batch_size, generator, device):
    generator.manual_seed(0)
    order = torch.randperm(num_examples, generator=generator)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: the generator starts again in each epoch
def epoch_indices(num_examples, batch_size, generator, device):
    generator.manual_seed(generator.initial_seed())
    order = torch.randperm(num_examples, generator=generator)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: a copy of the generator, whose state does not move on
def epoch_indices(num_examples, batch_size, generator, device):
    copy = torch.Generator(generator.device)
    copy.set_state(generator.get_state())
    order = torch.randperm(num_examples, generator=copy)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: drawn on the device of the result, which CUDA refuses
def epoch_indices(num_examples, batch_size, generator, device):
    order = torch.randperm(num_examples, generator=generator, device=device)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size)


# %% epoch_indices: left on the generator's device
def epoch_indices(num_examples, batch_size, generator, device):
    order = torch.randperm(num_examples, generator=generator, device=generator.device)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size)


# %% epoch_indices: int32
def epoch_indices(num_examples, batch_size, generator, device):
    order = torch.randperm(num_examples, generator=generator, dtype=torch.int32)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: floating-point numbers
def epoch_indices(num_examples, batch_size, generator, device):
    order = torch.randperm(num_examples, generator=generator).double()
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: the last incomplete batch is filled up with the first examples
def epoch_indices(num_examples, batch_size, generator, device):
    num_batches = -(-num_examples // batch_size)
    order = torch.randperm(num_examples, generator=generator)
    order = torch.cat([order, order])[: num_batches * batch_size]
    return order.reshape(num_batches, batch_size).to(device)


# %% epoch_indices: a tuple of batches, with the last incomplete one
def epoch_indices(num_examples, batch_size, generator, device):
    return torch.randperm(num_examples, generator=generator).to(device).split(batch_size)


# %% epoch_indices: the incomplete batch is wrapped into the table as if it were full
def epoch_indices(num_examples, batch_size, generator, device):
    order = torch.randperm(num_examples, generator=generator).to(device)
    return order.resize_(-(-num_examples // batch_size), batch_size) % num_examples


# %% epoch_indices: rows and columns are exchanged
def epoch_indices(num_examples, batch_size, generator, device):
    order = torch.randperm(num_examples, generator=generator)
    return order[: num_examples // batch_size * batch_size].reshape(batch_size, -1).to(device)


# %% epoch_indices: one flat list
def epoch_indices(num_examples, batch_size, generator, device):
    order = torch.randperm(num_examples, generator=generator)
    return order[: num_examples // batch_size * batch_size].to(device)


# %% epoch_indices: indices count from 1
def epoch_indices(num_examples, batch_size, generator, device):
    order = 1 + torch.randperm(num_examples, generator=generator)
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: random.shuffle
def epoch_indices(num_examples, batch_size, generator, device):
    import random

    order = list(range(num_examples))
    random.shuffle(order)
    full = num_examples // batch_size * batch_size
    return torch.tensor(order[:full], device=device).reshape(-1, batch_size)


# %% epoch_indices: a list of Python numbers, shuffled by hand
def epoch_indices(num_examples, batch_size, generator, device):
    draws = torch.rand(num_examples, generator=generator).tolist()
    order = list(range(num_examples))
    for i in range(num_examples - 1, 0, -1):
        j = int(draws[i] * (i + 1))
        order[i], order[j] = order[j], order[i]
    full = num_examples // batch_size * batch_size
    return torch.tensor(order[:full], device=device).reshape(-1, batch_size)


# %% epoch_indices: the samplers of torch.utils.data, one Python number for each example
def epoch_indices(num_examples, batch_size, generator, device):
    from torch.utils.data import BatchSampler, RandomSampler

    sampler = RandomSampler(range(num_examples), generator=generator)
    return torch.tensor(list(BatchSampler(sampler, batch_size, drop_last=True)), device=device)


# %% epoch_indices: the permutation becomes a list, and a tensor again
def epoch_indices(num_examples, batch_size, generator, device):
    order = torch.randperm(num_examples, generator=generator).tolist()
    full = num_examples // batch_size * batch_size
    return torch.tensor(order[:full], device=device).reshape(-1, batch_size)


# %% kl_in_float32: the inputs' dtype is kept
def kl_in_float32(loc, log_scale):
    return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)


# %% kl_in_float32: the result is cast
def kl_in_float32(loc, log_scale):
    return (0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()


# %% kl_in_float32: cast before the sum, after the difference
def kl_in_float32(loc, log_scale):
    return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).float().sum(1)


# %% kl_in_float32: every term is cast, after it was computed
def kl_in_float32(loc, log_scale):
    variance = torch.exp(2 * log_scale).float()
    return 0.5 * ((loc**2).float() + variance - 1 - 2 * log_scale.float()).sum(1)


# %% kl_in_float32: only loc is cast
def kl_in_float32(loc, log_scale):
    loc = loc.float()
    return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).float().sum(1)


# %% kl_in_float32: only bfloat16 is cast
def kl_in_float32(loc, log_scale):
    if loc.dtype == torch.bfloat16:
        loc, log_scale = loc.float(), log_scale.float()
    return (0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()


# %% kl_in_float32: cast only where autocast is on
def kl_in_float32(loc, log_scale):
    if torch.is_autocast_enabled("cpu"):
        loc, log_scale = loc.float(), log_scale.float()
    return (0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()


# %% kl_in_float32: float64 inputs give a float64 result
def kl_in_float32(loc, log_scale):
    if loc.dtype in (torch.bfloat16, torch.float16):
        loc, log_scale = loc.float(), log_scale.float()
    return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)


# %% kl_in_float32: in float64
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.double(), log_scale.double()
    return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)


# %% kl_in_float32: in bf16 on purpose
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.bfloat16(), log_scale.bfloat16()
    return (0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()


# %% kl_in_float32: autocast is switched off, but nothing is cast
def kl_in_float32(loc, log_scale):
    with torch.autocast(loc.device.type, enabled=False):
        return (0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()


# %% kl_in_float32: autocast is switched off for CUDA only, and a product is used
def kl_in_float32(loc, log_scale):
    with torch.autocast("cuda", enabled=False):
        loc, log_scale = loc.float(), log_scale.float()
        squares = torch.einsum("bk,bk->b", loc, loc).float()
        return 0.5 * (squares + (torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1))


# %% kl_in_float32: einsum, which autocast carries out in bf16
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.float(), log_scale.float()
    squares = torch.einsum("bk,bk->b", loc, loc)
    return 0.5 * (squares + (torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1))


# %% kl_in_float32: summed by a product with ones, which autocast carries out in bf16
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.float(), log_scale.float()
    terms = 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale)
    return F.linear(terms, torch.ones(1, terms.shape[1])).float()[:, 0]


# %% kl_in_float32: matmul of rows and columns, which autocast carries out in bf16
def kl_in_float32(loc, log_scale):
    loc, scale = loc.float(), log_scale.float().exp()
    squares = loc[:, None] @ loc[:, :, None] + scale[:, None] @ scale[:, :, None]
    return 0.5 * squares.float().flatten() - (log_scale.float() + 0.5).sum(1)


# %% kl_in_float32: the half is missing
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.float(), log_scale.float()
    return (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)


# %% kl_in_float32: log_scale is taken for the log-variance
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.float(), log_scale.float()
    return 0.5 * (loc**2 + torch.exp(log_scale) - 1 - log_scale).sum(1)


# %% kl_in_float32: the mean over latents
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.float(), log_scale.float()
    return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).mean(1)


# %% kl_in_float32: the mean over the batch
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.float(), log_scale.float()
    return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1).mean()


# %% kl_in_float32: log_scale is clamped to [-4, 4] for safety
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.float(), log_scale.float().clamp(-4, 4)
    return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)


# %% kl_in_float32: the approximation near the prior, used everywhere
def kl_in_float32(loc, log_scale):
    loc, log_scale = loc.float(), log_scale.float()
    return (log_scale**2 + 0.5 * loc**2).sum(1)


# %% kl_in_float32: distributions of the inputs as they are, and the result is cast
def kl_in_float32(loc, log_scale):
    posterior = Independent(Normal(loc, log_scale.exp()), 1)
    prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
    return kl_divergence(posterior, prior).float()


# %% kl_in_float32: the divergence of the prior from the posterior
def kl_in_float32(loc, log_scale):
    posterior = Normal(loc.float(), log_scale.float().exp())
    return kl_divergence(Normal(0.0, 1.0), posterior).sum(1)


# %% kl_in_float32: one draw in place of the closed form
def kl_in_float32(loc, log_scale):
    posterior = Normal(loc.float(), log_scale.float().exp())
    z = posterior.rsample()
    return (posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)


# %% ddp_equivalent_learning_rate: nothing is changed
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate


# %% ddp_equivalent_learning_rate: times the number of processes, always
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * world_size


# %% ddp_equivalent_learning_rate: mean and sum are exchanged
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * (world_size if loss_reduction == "mean" else 1)


# %% ddp_equivalent_learning_rate: divided for a sum, as if DDP added gradients of too many
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate / world_size if loss_reduction == "sum" else learning_rate


# %% ddp_equivalent_learning_rate: divided for a mean, as if DDP summed
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate / world_size if loss_reduction == "mean" else learning_rate


# %% ddp_equivalent_learning_rate: right for a sum, and divided for a mean
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * world_size if loss_reduction == "sum" else learning_rate / world_size


# %% ddp_equivalent_learning_rate: the square root
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * (math.sqrt(world_size) if loss_reduction == "sum" else 1)


# %% ddp_equivalent_learning_rate: the square
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * (world_size**2 if loss_reduction == "sum" else 1)


# %% ddp_equivalent_learning_rate: a root for means, a rule for batches that grow
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * (world_size if loss_reduction == "sum" else math.sqrt(world_size))


# %% ddp_equivalent_learning_rate: only the other processes are counted
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * (max(world_size - 1, 1) if loss_reduction == "sum" else 1)


# %% ddp_equivalent_learning_rate: for one node of eight at most
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * (min(world_size, 8) if loss_reduction == "sum" else 1)


# %% ddp_equivalent_learning_rate: never above 1
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return min(learning_rate * (world_size if loss_reduction == "sum" else 1), 1.0)


# %% ddp_equivalent_learning_rate: the factor in place of the rate
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return float(world_size if loss_reduction == "sum" else 1)


# %% ddp_equivalent_learning_rate: rounded to four digits
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return round(learning_rate * (world_size if loss_reduction == "sum" else 1), 4)


# %% ddp_equivalent_learning_rate: a misspelt reduction
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * (world_size if loss_reduction == "Sum" else 1)


# %% save_state: torch.save over the old file
def save_state(path, model, optimizer, generator):
    state = {"m": model.state_dict(), "o": optimizer.state_dict(), "g": generator.get_state()}
    torch.save(state, path)


def load_state(path, model, optimizer, generator):
    state = torch.load(path)
    model.load_state_dict(state["m"])
    optimizer.load_state_dict(state["o"])
    generator.set_state(state["g"])


# %% save_state: serialised in memory first, then written over the old file
def save_state(path, model, optimizer, generator):
    import pickle

    path.write_bytes(pickle.dumps((model.state_dict(), optimizer.state_dict(), generator.get_state())))


def load_state(path, model, optimizer, generator):
    import pickle

    m, o, g = pickle.loads(path.read_bytes())
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: the old file is kept as a backup, the new one written in its place
def save_state(path, model, optimizer, generator):
    if path.exists():
        path.replace(path.with_suffix(".bak"))
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: the old file is removed before the new one is written
def save_state(path, model, optimizer, generator):
    path.unlink(missing_ok=True)
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    aside.rename(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: renamed in any case, also if writing has failed
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    try:
        with aside.open("wb") as file:
            torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], file)
    finally:
        aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: the error is swallowed, and half a file renamed
def save_state(path, model, optimizer, generator):
    import contextlib
    import pickle

    aside = path.with_suffix(".new")
    with contextlib.suppress(OSError):
        aside.write_bytes(pickle.dumps((model.state_dict(), optimizer.state_dict(), generator.get_state())))
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    import pickle

    m, o, g = pickle.loads(path.read_bytes())
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: the file aside never gets the name
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: both use the file aside, and nothing is ever at path
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path.with_suffix(".new"))
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: a file that is there already is never replaced
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    if not path.exists():
        aside.rename(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: the rest of a save that failed keeps all later ones from working
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    with aside.open("xb") as file:
        torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], file)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: a dictionary in memory in place of a file
kept = {}


def save_state(path, model, optimizer, generator):
    import copy

    state = (model.state_dict(), optimizer.state_dict(), generator.get_state())
    kept[path] = copy.deepcopy(state)
    path.touch()


def load_state(path, model, optimizer, generator):
    m, o, g = kept[path]
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: without the generator
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)


# %% save_state: the global generator in place of the one that is passed
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    torch.set_rng_state(g)


# %% save_state: the generator's state is loaded into the global generator
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    torch.set_rng_state(g)


# %% save_state: the generator's seed in place of its state
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.initial_seed()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, seed = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.manual_seed(seed)


# %% save_state: without the optimizer
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, g = torch.load(path)
    model.load_state_dict(m)
    generator.set_state(g)


# %% save_state: the optimizer's averages, but not its settings
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    averages = optimizer.state_dict()["state"]
    torch.save([model.state_dict(), averages, generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, averages, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict({"state": averages, "param_groups": optimizer.state_dict()["param_groups"]})
    generator.set_state(g)


# %% save_state: the optimizer's settings, but not its averages
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    rates = [group["lr"] for group in optimizer.param_groups]
    torch.save([model.state_dict(), rates, generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, rates, g = torch.load(path)
    model.load_state_dict(m)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    generator.set_state(g)


# %% save_state: the averages of Adam by name, which SGD with momentum does not have
def save_state(path, model, optimizer, generator):
    averages = [
        {name: value for name, value in state.items() if name in ("step", "exp_avg", "exp_avg_sq")}
        for state in optimizer.state_dict()["state"].values()
    ]
    aside = path.with_suffix(".new")
    groups = optimizer.state_dict()["param_groups"]
    torch.save([model.state_dict(), averages, groups, generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, averages, groups, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict({"state": dict(enumerate(averages)), "param_groups": groups})
    generator.set_state(g)


# %% save_state: the weights are saved but not loaded
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.state_dict().update(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: the names have DDP's prefix, and strict=False loads nothing
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    weights = {f"module.{name}": weight for name, weight in model.state_dict().items()}
    torch.save([weights, optimizer.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m, strict=False)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: loading gives the model new weights, and the optimizer keeps the old ones
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m, assign=True)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: loading binds the names of its arguments to other objects
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    model, optimizer, generator = torch.load(path)
    return model, optimizer, generator


# %% save_state: loading works on copies, and returns them
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    import copy

    m, o, g = torch.load(path)
    model, optimizer = copy.deepcopy((model, optimizer))
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator = torch.Generator()
    generator.set_state(g)
    return model, optimizer, generator


# %% save_state: weights in float32
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    weights = {name: weight.float() for name, weight in model.state_dict().items()}
    torch.save([weights, optimizer.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: saving rounds the weights of the run itself to 16 bits
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.half().state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    model.double()
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: the name of the file aside is drawn from the run's generator
def save_state(path, model, optimizer, generator):
    number = torch.randint(10**6, (), generator=generator).item()
    aside = path.with_suffix(f".{number}")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: a path is taken for text
def save_state(path, model, optimizer, generator):
    import pathlib

    aside = path + ".new"
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    pathlib.Path(aside).replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


# %% save_state: the model is pickled whole, and nothing of it is loaded in place
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save({"model": model, "optimizer": optimizer, "generator": generator.get_state()}, aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    state = torch.load(path, weights_only=False)
    model, optimizer = state["model"], state["optimizer"]
    generator.set_state(state["generator"])
    return model, optimizer
