# Right answers to problem set 5, each written differently: every one must earn full marks.
# ruff: noqa: F706, F821

# %% train_step: gradients set to zeros right before backward, the loss copied first
x = batch.to(device, non_blocking=True)
loss = model(x)
before = loss.detach().clone()
optimizer.zero_grad(set_to_none=False)
loss.backward()
optimizer.step()
return before


# %% train_step: a closure, which the optimizer calls
def train_step(model, batch, optimizer, device):
    x = batch.to(device=device)

    def closure():
        optimizer.zero_grad()
        loss = model(x)
        loss.backward()
        return loss

    return optimizer.step(closure).detach()


# %% train_step: gradients from torch.autograd.grad put in place of the old ones
loss = model(batch.to(device))
parameters = [p for group in optimizer.param_groups for p in group["params"]]
for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
    parameter.grad = gradient
optimizer.step()
return loss.detach()

# %% train_step: the model's zero_grad at both ends, gradients switched on explicitly
model.zero_grad()
with torch.enable_grad():
    loss = model(torch.as_tensor(batch, device=device))
    loss.sum().backward()
optimizer.step()
model.zero_grad()
return loss.data

# %% train_step: the batch copied into a new tensor on the device, old gradients removed by hand
x = torch.empty_like(batch, device=device).copy_(batch)
for parameter in model.parameters():
    parameter.grad = None
loss = model(x)
loss.backward()
optimizer.step()
with torch.no_grad():
    return loss * 1

# %% epoch_indices: the order in which uniform numbers are sorted
keys = torch.rand(num_examples, generator=generator, dtype=torch.float64, device=generator.device)
full = num_examples - num_examples % batch_size
return keys.argsort()[:full].view(-1, batch_size).to(device)

# %% epoch_indices: a draw without replacement of as many as are needed
weights = torch.ones(num_examples, device=generator.device)
drawn = torch.multinomial(weights, num_batches * batch_size, replacement=False, generator=generator)
torch.reshape(drawn, (num_batches, batch_size)).to(device=device)

# %% epoch_indices: the permutation is moved first, then cut and shaped in two steps
order = torch.empty(num_examples, dtype=torch.int64, device=generator.device)
torch.randperm(num_examples, generator=generator, out=order)
order = order.to(device)
return order.narrow(0, 0, batch_size * (num_examples // batch_size)).unflatten(0, (-1, batch_size))

# %% epoch_indices: one row for each chunk, without the last incomplete one
order = torch.randperm(num_examples, generator=generator, device=generator.device)
rows = order.split(batch_size)
return torch.stack(rows[: num_examples // batch_size]).to(device)

# %% epoch_indices: windows of the permutation, which do not overlap
order.unfold(0, batch_size, batch_size).contiguous().to(device, torch.long)

# %% epoch_indices: batch by batch, stacked
order = torch.randperm(num_examples, generator=generator, device=generator.device)
batches = range(num_examples // batch_size)
return torch.stack([order[i * batch_size : (i + 1) * batch_size] for i in batches]).to(device)

# %% epoch_indices: a table that is filled batch by batch
order = torch.randperm(num_examples, generator=generator, device=generator.device)
table = torch.empty(num_examples // batch_size, batch_size, dtype=torch.int64)
for row in range(len(table)):
    start = row * batch_size
    table[row] = order[start : start + batch_size]
return table.to(device)

# %% kl_in_float32: torch.distributions, of inputs that were cast first
kl_divergence(posterior, Normal(0.0, 1.0)).sum(-1)

# %% kl_in_float32: autocast switched off, then any formula is safe, a product too
with torch.autocast(loc.device.type, enabled=False):
    loc, log_scale = loc.to(torch.float32), log_scale.to(torch.float32)
    squares = torch.einsum("bk,bk->b", loc, loc)
    return 0.5 * (squares + (torch.exp(2 * log_scale) - 1 - 2 * log_scale).sum(1))

# %% kl_in_float32: one example at a time, stacked
values = []
for m, s in zip(loc.float(), log_scale.float(), strict=True):
    variance = s.exp() ** 2
    squares = F.mse_loss(m, torch.zeros_like(m), reduction="none")
    values.append(torch.sum(0.5 * (squares + variance - 1) - s))
return torch.stack(values)

# %% kl_in_float32: independent Gaussians, with the prior's parameters as tensors
prior = Independent(Normal(torch.zeros_like(loc), torch.ones_like(loc)), 1)
kl_divergence(Independent(Normal(loc, log_scale.exp()), 1), prior)

# %% kl_in_float32: cast to float32, combined in float64, put out in float32
loc, log_scale = loc.float().double(), log_scale.float().double()
kl = (loc.square() + torch.exp(2 * log_scale)).div(2).sub(0.5).sub(log_scale)
return kl.sum(dim=1).to(torch.float32)

# %% ddp_equivalent_learning_rate: two cases
if loss_reduction == "mean":
    return learning_rate
return learning_rate * world_size

# %% ddp_equivalent_learning_rate: logarithms
math.exp(math.log(learning_rate) + {"mean": 0, "sum": 1}[loss_reduction] * math.log(world_size))

# %% ddp_equivalent_learning_rate: a tensor without dimensions
shrunk = {"mean": 1.0, "sum": 1.0 / world_size}[loss_reduction]
return torch.tensor(learning_rate, dtype=torch.float64) / shrunk

# %% ddp_equivalent_learning_rate: measured, with one example for each process and DDP imitated
gradients = torch.arange(1.0, world_size + 1, dtype=torch.float64)
alone = gradients.sum() if loss_reduction == "sum" else gradients.mean()
return (learning_rate * alone / gradients.mean()).item()

# %% save_state: a class of its own, pickled to a file aside
import dataclasses
import os
import pickle


@dataclasses.dataclass
class State:
    model: dict
    optimizer: dict
    generator: torch.Tensor


def save_state(path, model, optimizer, generator):
    aside = path.parent / "aside.pkl"
    state = State(model.state_dict(), optimizer.state_dict(), generator.get_state())
    with open(aside, "wb") as file:
        pickle.dump(state, file)
    os.replace(aside, path)


def load_state(path, model, optimizer, generator):
    with open(path, "rb") as file:
        state = pickle.load(file)
    model.load_state_dict(state.model)
    optimizer.load_state_dict(state.optimizer)
    generator.set_state(state.generator)


# %% save_state: pickled in memory, written aside, renamed
def save_state(path, model, optimizer, generator):
    import pickle

    things = (model.state_dict(), optimizer.state_dict(), generator.get_state())
    content = pickle.dumps(things)
    aside = path.parent / ("new-" + path.name)
    aside.write_bytes(content)
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    import pickle

    weights, settings, numbers = pickle.loads(path.read_bytes())
    model.load_state_dict(weights)
    optimizer.load_state_dict(settings)
    generator.set_state(numbers)


# %% save_state: a temporary file of the same folder, removed if writing fails
def save_state(path, model, optimizer, generator):
    import os
    import tempfile
    from pathlib import Path

    handle, aside = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            state = [list(model.parameters()), optimizer.state_dict(), generator.get_state()]
            torch.save(state, file)
            os.fsync(handle)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink()
        raise


def load_state(path, model, optimizer, generator):
    weights, settings, numbers = torch.load(path)
    with torch.no_grad():
        for mine, saved in zip(model.parameters(), weights, strict=True):
            mine.copy_(saved)
    optimizer.load_state_dict(settings)
    generator.set_state(numbers)


# %% save_state: torch.save into memory, then the bytes aside, os.rename
def save_state(path, model, optimizer, generator):
    import io
    import os

    state = {"m": model.state_dict(), "o": optimizer.state_dict(), "g": generator.get_state()}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    with aside.open("wb") as file:
        file.write(buffer.getbuffer())
    aside.rename(path)


def load_state(path, model, optimizer, generator):
    with path.open("rb") as file:
        state = torch.load(file, weights_only=False)
    generator.set_state(state["g"])
    optimizer.load_state_dict(state["o"])
    model.load_state_dict(state["m"])


# %% save_state: readable text, in which Python's numbers keep all their digits
def save_state(path, model, optimizer, generator):
    import json

    def plain(value):
        if isinstance(value, torch.Tensor):
            return {"dtype": str(value.dtype)[6:], "numbers": value.tolist()}
        if isinstance(value, dict):
            return {"keys": list(value), "values": [plain(v) for v in value.values()]}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    state = [model.state_dict(), optimizer.state_dict(), generator.get_state()]
    aside = path.with_suffix(".aside")
    aside.write_text(json.dumps(plain(state)))
    aside.replace(path)


def load_state(path, model, optimizer, generator):
    import json

    def rebuilt(value):
        if isinstance(value, list):
            return [rebuilt(v) for v in value]
        if not isinstance(value, dict):
            return value
        if "dtype" in value:
            return torch.tensor(value["numbers"], dtype=getattr(torch, value["dtype"]))
        return dict(zip(value["keys"], rebuilt(value["values"]), strict=True))

    weights, settings, numbers = rebuilt(json.loads(path.read_text()))
    model.load_state_dict(weights)
    optimizer.load_state_dict(settings)
    generator.set_state(numbers)
