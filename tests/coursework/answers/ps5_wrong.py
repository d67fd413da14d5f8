# Wrong answers to problem set 5, from mistakes that are made: every one must lose its task's points.
# ruff: noqa: B018, F706, F821, F841

# %% train_step
def train_step(model, batch, optimizer, device):
    loss = model(batch.to(device))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# %% train_step: the batch is not moved
loss = model(batch)

# %% train_step: the moved batch is thrown away
batch.to(device)
loss = model(batch)

# %% train_step: the model is moved to the batch
model = model.to(batch.device)
loss = model(batch)
loss.detach().to(device)

# %% train_step: cuda if there is one, whatever device was passed
device = "cuda" if torch.cuda.is_available() else "cpu"

# %% train_step: the batch is moved with .cuda()
loss = model(batch.cuda())

# %% train_step: loss.item()
loss.item()

# %% train_step: a new tensor from loss.item()
torch.tensor(loss.item(), dtype=torch.float64, device=device)

# %% train_step: the loss is printed in each step
{"return": 'print(f"loss {loss.item():.4f}", end="\\r")\nreturn'}

# %% train_step: a step is skipped if the loss is not finite, which asks for its value
{
    "loss.backward()": "if torch.isfinite(loss):\n    loss.backward()",
    "optimizer.step()": "    optimizer.step()",
}

# %% train_step: the loss is fetched to the CPU
loss.detach().cpu()

# %% train_step: the loss is not detached
loss

# %% train_step: nothing is returned
{"return loss.detach()": ""}

# %% train_step: the loss is a tensor with one dimension
loss.detach().reshape(1)

# %% train_step: gradients are never cleared
{"optimizer.zero_grad()": ""}

# %% train_step: gradients are cleared between backward and step
{"optimizer.zero_grad()": "loss.backward()", "loss.backward()": "optimizer.zero_grad()"}

# %% train_step: gradients are cleared only after the step, those of before count
{"optimizer.zero_grad()": "", "optimizer.step()": "optimizer.step()\noptimizer.zero_grad()"}

# %% train_step: the step comes before backward
{"optimizer.zero_grad()": "optimizer.step()\noptimizer.zero_grad()", "optimizer.step()": ""}

# %% train_step: no step is taken
{"optimizer.step()": ""}

# %% train_step: the step is taken twice
{"optimizer.step()": "optimizer.step()\noptimizer.step()"}

# %% train_step: the loss after the update
batch = batch.to(device)
optimizer.zero_grad()
model(batch).backward()
optimizer.step()
with torch.no_grad():
    return model(batch)

# %% train_step: the loss is computed anew after the update, for backward as well
{
    "loss = model(batch.to(device))": "batch = batch.to(device)",
    "loss.backward()": "model(batch).backward()",
    "return": "optimizer.zero_grad()\nloss = model(batch)\nloss.backward()\nreturn",
}

# %% train_step: the sum of the losses of all steps so far
{
    "step()": 'step()\ntrain_step.total = getattr(train_step, "total", 0) + loss.detach()',
    "loss.detach()": "train_step.total",
}

# %% train_step: the loss times the size of the batch
loss = model(batch.to(device)) * len(batch)

# %% train_step: gradients are clipped to norm 1
{"optimizer.step()": "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)\noptimizer.step()"}

# %% train_step: a new optimizer in each step, without a memory
settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
optimizer = type(optimizer)(model.parameters(), **settings)
loss = model(batch.to(device))

# %% train_step: plain gradient descent in place of the optimizer
{
    "optimizer.step()": "with torch.no_grad():\n    for parameter in model.parameters():\n"
    '        parameter -= optimizer.param_groups[0]["lr"] * parameter.grad'
}

# %% train_step: the batch is rounded to 16 bits on its way
loss = model(batch.half().double().to(device))

# %% train_step: the batch is centred in place
batch -= batch.mean(0)


# %% epoch_indices
def epoch_indices(num_examples, batch_size, generator, device):
    num_batches = num_examples // batch_size
    order = torch.randperm(num_examples, generator=generator)
    full = num_examples // batch_size * batch_size
    return order[: num_examples // batch_size * batch_size].reshape(-1, batch_size).to(device)


# %% epoch_indices: with replacement
shape = (num_examples // batch_size, batch_size)
torch.randint(num_examples, shape, generator=generator, device=generator.device).to(device)

# %% epoch_indices: each batch without replacement, but batches share examples
rows = [
    torch.randperm(num_examples, generator=generator)[:batch_size] for _ in range(num_examples // batch_size)
]
torch.stack(rows).to(device)

# %% epoch_indices: not shuffled
torch.arange(full, device=device).reshape(-1, batch_size)

# %% epoch_indices: the old order from a random start
start = torch.randint(num_examples, (), generator=generator, device=generator.device)
order = (torch.arange(num_examples, device=generator.device) + start) % num_examples

# %% epoch_indices: batches are shuffled, but always the same ones
rows = torch.arange(num_batches * batch_size).reshape(num_batches, batch_size)
rows[torch.randperm(num_batches, generator=generator)].to(device)

# %% epoch_indices: shuffled within batches only
keys = torch.rand(num_batches, batch_size, generator=generator)
starts = batch_size * torch.arange(num_batches)
(keys.argsort(1) + starts[:, None]).to(device)

# %% epoch_indices: the last examples never come
order = torch.randperm(num_batches * batch_size, generator=generator)
order.reshape(num_batches, batch_size).to(device)

# %% epoch_indices: the global generator
order = torch.randperm(num_examples)

# %% epoch_indices: the global generator, which gets the generator's seed
torch.manual_seed(generator.initial_seed())
order = torch.randperm(num_examples)

# %% epoch_indices: the global generator, which gets a seed drawn as a Python number
torch.manual_seed(torch.randint(2**31, (), generator=generator).item())
order = torch.randperm(num_examples)

# %% epoch_indices: the order of the batches comes from the global generator
order = torch.randperm(num_examples, generator=generator)[: num_batches * batch_size]
order.reshape(num_batches, batch_size)[torch.randperm(num_batches)].to(device)

# %% epoch_indices: a fixed seed, so that all epochs are alike
generator.manual_seed(0)
order = torch.randperm(num_examples, generator=generator)

# %% epoch_indices: the generator starts again in each epoch
generator.manual_seed(generator.initial_seed())
order = torch.randperm(num_examples, generator=generator)

# %% epoch_indices: a copy of the generator, whose state does not move on
copy = torch.Generator(generator.device)
copy.set_state(generator.get_state())
order = torch.randperm(num_examples, generator=copy)

# %% epoch_indices: drawn on the device of the result, which CUDA refuses
order = torch.randperm(num_examples, generator=generator, device=device)
order[: num_examples // batch_size * batch_size].reshape(-1, batch_size)

# %% epoch_indices: left on the generator's device
order = torch.randperm(num_examples, generator=generator, device=generator.device)
order[: num_examples // batch_size * batch_size].reshape(-1, batch_size)

# %% epoch_indices: int32
order = torch.randperm(num_examples, generator=generator, dtype=torch.int32)

# %% epoch_indices: floating-point numbers
order = torch.randperm(num_examples, generator=generator).double()

# %% epoch_indices: the last incomplete batch is filled up with the first examples
num_batches = -(-num_examples // batch_size)
order = torch.randperm(num_examples, generator=generator)
order = torch.cat([order, order])[: num_batches * batch_size]
order.reshape(num_batches, batch_size).to(device)

# %% epoch_indices: a tuple of batches, with the last incomplete one
torch.randperm(num_examples, generator=generator).to(device).split(batch_size)

# %% epoch_indices: the incomplete batch is wrapped into the table as if it were full
order = torch.randperm(num_examples, generator=generator).to(device)
order.resize_(-(-num_examples // batch_size), batch_size) % num_examples

# %% epoch_indices: rows and columns are exchanged
order[: num_examples // batch_size * batch_size].reshape(batch_size, -1).to(device)

# %% epoch_indices: one flat list
order[: num_examples // batch_size * batch_size].to(device)

# %% epoch_indices: indices count from 1
order = 1 + torch.randperm(num_examples, generator=generator)

# %% epoch_indices: random.shuffle
import random

order = list(range(num_examples))
random.shuffle(order)
full = num_examples // batch_size * batch_size
torch.tensor(order[:full], device=device).reshape(-1, batch_size)

# %% epoch_indices: a list of Python numbers, shuffled by hand
draws = torch.rand(num_examples, generator=generator).tolist()
order = list(range(num_examples))
for i in range(num_examples - 1, 0, -1):
    j = int(draws[i] * (i + 1))
    order[i], order[j] = order[j], order[i]
full = num_examples // batch_size * batch_size
torch.tensor(order[:full], device=device).reshape(-1, batch_size)

# %% epoch_indices: the samplers of torch.utils.data, one Python number for each example
from torch.utils.data import BatchSampler, RandomSampler

sampler = RandomSampler(range(num_examples), generator=generator)
torch.tensor(list(BatchSampler(sampler, batch_size, drop_last=True)), device=device)

# %% epoch_indices: the permutation becomes a list, and a tensor again
order = torch.randperm(num_examples, generator=generator).tolist()
torch.tensor(order[:full], device=device).reshape(-1, batch_size)


# %% kl_in_float32
def kl_in_float32(loc, log_scale):
    posterior = Normal(loc.float(), log_scale.float().exp())
    loc, log_scale = loc.float(), log_scale.float()
    return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)


# %% kl_in_float32: the inputs' dtype is kept
return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)

# %% kl_in_float32: the result is cast
return (0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()

# %% kl_in_float32: cast before the sum, after the difference
return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).float().sum(1)

# %% kl_in_float32: every term is cast, after it was computed
variance = torch.exp(2 * log_scale).float()
return 0.5 * ((loc**2).float() + variance - 1 - 2 * log_scale.float()).sum(1)

# %% kl_in_float32: only loc is cast
loc = loc.float()
return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).float().sum(1)

# %% kl_in_float32: only bfloat16 is cast
if loc.dtype == torch.bfloat16:
    loc, log_scale = loc.float(), log_scale.float()
return (0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()

# %% kl_in_float32: cast only where autocast is on
if torch.is_autocast_enabled("cpu"):
    loc, log_scale = loc.float(), log_scale.float()
return (0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()

# %% kl_in_float32: float64 inputs give a float64 result
if loc.dtype in (torch.bfloat16, torch.float16):
    loc, log_scale = loc.float(), log_scale.float()
return 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)

# %% kl_in_float32: in float64
loc, log_scale = loc.double(), log_scale.double()

# %% kl_in_float32: in bf16 on purpose
loc, log_scale = loc.bfloat16(), log_scale.bfloat16()
(0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()

# %% kl_in_float32: autocast is switched off, but nothing is cast
with torch.autocast(loc.device.type, enabled=False):
    return (0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)).float()

# %% kl_in_float32: autocast is switched off for CUDA only, and a product is used
with torch.autocast("cuda", enabled=False):
    loc, log_scale = loc.float(), log_scale.float()
    squares = torch.einsum("bk,bk->b", loc, loc).float()
    return 0.5 * (squares + (torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1))

# %% kl_in_float32: einsum, which autocast carries out in bf16
squares = torch.einsum("bk,bk->b", loc, loc)
0.5 * (squares + (torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1))

# %% kl_in_float32: summed by a product with ones, which autocast carries out in bf16
terms = 0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale)
F.linear(terms, torch.ones(1, terms.shape[1])).float()[:, 0]

# %% kl_in_float32: matmul of rows and columns, which autocast carries out in bf16
loc, scale = loc.float(), log_scale.float().exp()
squares = loc[:, None] @ loc[:, :, None] + scale[:, None] @ scale[:, :, None]
return 0.5 * squares.float().flatten() - (log_scale.float() + 0.5).sum(1)

# %% kl_in_float32: the half is missing
(loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1)

# %% kl_in_float32: log_scale is taken for the log-variance
0.5 * (loc**2 + torch.exp(log_scale) - 1 - log_scale).sum(1)

# %% kl_in_float32: the mean over latents
0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).mean(1)

# %% kl_in_float32: the mean over the batch
0.5 * (loc**2 + torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1).mean()

# %% kl_in_float32: log_scale is clamped to [-4, 4] for safety
loc, log_scale = loc.float(), log_scale.float().clamp(-4, 4)

# %% kl_in_float32: the approximation near the prior, used everywhere
(log_scale**2 + 0.5 * loc**2).sum(1)

# %% kl_in_float32: distributions of the inputs as they are, and the result is cast
posterior = Independent(Normal(loc, log_scale.exp()), 1)
prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
return kl_divergence(posterior, prior).float()

# %% kl_in_float32: the divergence of the prior from the posterior
kl_divergence(Normal(0.0, 1.0), posterior).sum(1)

# %% kl_in_float32: one draw in place of the closed form
z = posterior.rsample()
(posterior.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum(1)


# %% ddp_equivalent_learning_rate
def ddp_equivalent_learning_rate(learning_rate, world_size, loss_reduction):
    return learning_rate * (world_size if loss_reduction == "sum" else 1)


# %% ddp_equivalent_learning_rate: nothing is changed
learning_rate

# %% ddp_equivalent_learning_rate: times the number of processes, always
learning_rate * world_size

# %% ddp_equivalent_learning_rate: mean and sum are exchanged
learning_rate * (world_size if loss_reduction == "mean" else 1)

# %% ddp_equivalent_learning_rate: divided for a sum, as if DDP added gradients of too many
learning_rate / world_size if loss_reduction == "sum" else learning_rate

# %% ddp_equivalent_learning_rate: divided for a mean, as if DDP summed
learning_rate / world_size if loss_reduction == "mean" else learning_rate

# %% ddp_equivalent_learning_rate: right for a sum, and divided for a mean
learning_rate * world_size if loss_reduction == "sum" else learning_rate / world_size

# %% ddp_equivalent_learning_rate: the square root
learning_rate * (math.sqrt(world_size) if loss_reduction == "sum" else 1)

# %% ddp_equivalent_learning_rate: the square
learning_rate * (world_size**2 if loss_reduction == "sum" else 1)

# %% ddp_equivalent_learning_rate: a root for means, a rule for batches that grow
learning_rate * (world_size if loss_reduction == "sum" else math.sqrt(world_size))

# %% ddp_equivalent_learning_rate: only the other processes are counted
learning_rate * (max(world_size - 1, 1) if loss_reduction == "sum" else 1)

# %% ddp_equivalent_learning_rate: for one node of eight at most
learning_rate * (min(world_size, 8) if loss_reduction == "sum" else 1)

# %% ddp_equivalent_learning_rate: never above 1
min(learning_rate * (world_size if loss_reduction == "sum" else 1), 1.0)

# %% ddp_equivalent_learning_rate: the factor in place of the rate
float(world_size if loss_reduction == "sum" else 1)

# %% ddp_equivalent_learning_rate: rounded to four digits
round(learning_rate * (world_size if loss_reduction == "sum" else 1), 4)

# %% ddp_equivalent_learning_rate: a misspelt reduction
learning_rate * (world_size if loss_reduction == "Sum" else 1)


# %% save_state
def save_state(path, model, optimizer, generator):
    aside = path.with_suffix(".new")
    torch.save([model.state_dict(), optimizer.state_dict(), generator.get_state()], aside)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    m, o, g = torch.load(path)
    model.load_state_dict(m)
    optimizer.load_state_dict(o)
    generator.set_state(g)


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
{
    'aside = path.with_suffix(".new")': 'if path.exists():\n    path.replace(path.with_suffix(".bak"))',
    "], aside)": "], path)",
    "aside.replace(path)": "",
}

# %% save_state: the old file is removed before the new one is written
{"aside =": "path.unlink(missing_ok=True)\naside =", "aside.replace": "aside.rename"}

# %% save_state: renamed in any case, also if writing has failed
{
    "torch.save": 'try:\n    with aside.open("wb") as file:\n        torch.save',
    "], aside)": "], file)",
    "aside.replace": "finally:\n    aside.replace",
}

# %% save_state: the error is swallowed, and half a file renamed
{
    "aside =": "import contextlib\nimport pickle\n\naside =",
    "torch.save([": "with contextlib.suppress(OSError):\n    aside.write_bytes(pickle.dumps((",
    "], aside)": ")))",
    "m, o, g = torch.load(path)": "import pickle\n\nm, o, g = pickle.loads(path.read_bytes())",
}

# %% save_state: the file aside never gets the name
{"aside.replace(path)": ""}

# %% save_state: both use the file aside, and nothing is ever at path
{"aside.replace(path)": "", "torch.load(path)": 'torch.load(path.with_suffix(".new"))'}

# %% save_state: a file that is there already is never replaced
{"aside.replace": "if not path.exists():\n    aside.rename"}

# %% save_state: the rest of a save that failed keeps all later ones from working
{"torch.save": 'with aside.open("xb") as file:\n    torch.save', "], aside)": "], file)"}

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
{", generator.get_state()": "", "m, o, g": "m, o", "generator.set_state(g)": ""}

# %% save_state: the global generator in place of the one that is passed
{"generator.get_state": "torch.get_rng_state", "generator.set_state": "torch.set_rng_state"}

# %% save_state: the generator's state is loaded into the global generator
{"generator.set_state": "torch.set_rng_state"}

# %% save_state: the generator's seed in place of its state
{"get_state()": "initial_seed()", "m, o, g": "m, o, seed", "set_state(g)": "manual_seed(seed)"}

# %% save_state: without the optimizer
{", optimizer.state_dict()": "", "m, o, g": "m, g", "optimizer.load_state_dict(o)": ""}

# %% save_state: the optimizer's averages, but not its settings
{
    "torch.save": 'averages = optimizer.state_dict()["state"]\ntorch.save',
    " optimizer.state_dict()": " averages",
    "m, o, g": "m, averages, g",
    "(o)": '({"state": averages, "param_groups": optimizer.state_dict()["param_groups"]})',
}

# %% save_state: the optimizer's settings, but not its averages
{
    "torch.save": 'rates = [group["lr"] for group in optimizer.param_groups]\ntorch.save',
    " optimizer.state_dict()": " rates",
    "m, o, g": "m, rates, g",
    "optimizer.load_state_dict(o)": "for group, rate in zip(optimizer.param_groups, rates, strict=True):\n"
    '    group["lr"] = rate',
}


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
{"model.load_state_dict(m)": "model.state_dict().update(m)"}

# %% save_state: the names have DDP's prefix, and strict=False loads nothing
{
    'new")': 'new")\nweights = {f"module.{name}": weight for name, weight in model.state_dict().items()}',
    "[model.state_dict()": "[weights",
    "(m)": "(m, strict=False)",
}

# %% save_state: loading gives the model new weights, and the optimizer keeps the old ones
{"(m)": "(m, assign=True)"}

# %% save_state: loading binds the names of its arguments to other objects
{
    "m, o, g": "model, optimizer, generator",
    "model.load_state_dict(m)": "",
    "optimizer.load_state_dict(o)": "",
    "generator.set_state(g)": "return model, optimizer, generator",
}

# %% save_state: loading works on copies, and returns them
{
    "m, o, g": "import copy\n\nm, o, g",
    "model.load": "model, optimizer = copy.deepcopy((model, optimizer))\nmodel.load",
    "generator.set": "generator = torch.Generator()\ngenerator.set",
    "(g)": "(g)\nreturn model, optimizer, generator",
}

# %% save_state: weights in float32
{
    'new")': 'new")\nweights = {name: weight.float() for name, weight in model.state_dict().items()}',
    "[model.state_dict()": "[weights",
}

# %% save_state: saving rounds the weights of the run itself to 16 bits
{"[model.state_dict()": "[model.half().state_dict()", "], aside)": "], aside)\nmodel.double()"}

# %% save_state: the name of the file aside is drawn from the run's generator
{
    "aside =": "number = torch.randint(10**6, (), generator=generator).item()\naside =",
    '".new"': 'f".{number}"',
}

# %% save_state: a path is taken for text
{
    'aside = path.with_suffix(".new")': 'import pathlib\n\naside = path + ".new"',
    "aside.replace": "pathlib.Path(aside).replace",
}


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
