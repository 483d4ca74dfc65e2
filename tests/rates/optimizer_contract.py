"""The common optimizer test: what any optimizer of the kit must keep, as checks that tests call by name.

A subject is `attach(model, lr) -> [optimizer, ...]`: whatever has a state_dict, the one with `step` first. An attachment
that acts through hooks (a projection, say) lists itself after the torch optimizer that it hooks into.
"""

import copy
import io

import torch
from torch import nn

from normkit.rng import stream

LR = 0.05


def network():
    """A float64 net with a conv, a BatchNorm, a LayerNorm, vectors and matrices; always the same weights."""
    draws = torch.Generator().manual_seed(int(stream(0, "contract", "weights").integers(2**63)))
    parts = [
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.LayerNorm(8),
        nn.Tanh(),
    ]
    model = nn.Sequential(*parts, nn.Linear(8, 3)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=draws, dtype=p.dtype) / p[0].numel() ** 0.5)
    return model


def batch(step):
    draws = stream(0, "contract", "batch", step)
    x = torch.from_numpy(draws.normal(size=(12, 1, 4, 4)))
    return x, x[:, 0, 0, :3].argmax(1)


def loss_of(model, step):
    x, y = batch(step)
    return nn.functional.cross_entropy(model(x), y)


def backward(model, step):
    model.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    return loss.item()


def train(model, optimizer, steps):
    losses = []
    for step in steps:
        losses.append(backward(model, step))
        optimizer.step()
    return losses


def weights(model):
    return {name: p.detach().clone() for name, p in model.state_dict().items()}


def equal(a, b):
    """Bit for bit, through dicts, lists and tuples."""
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def check_it_trains_and_repeats(attach):
    runs = []
    for _ in range(2):
        model = network()
        runs.append((train(model, attach(model, LR)[0], range(60)), weights(model)))
    (first, w), (again, v) = runs
    assert first == again and equal(w, v)
    assert sum(first[-10:]) < 0.999 * sum(
        first[:10]
    )  # labels are noise: BatchNorm and drift, but the mean can be learnt
    assert not equal(w, weights(network()))


def check_resume_is_identical(attach):
    """8 steps at once, and 5 steps, a checkpoint through a file into fresh objects, 3 steps: the same bits."""
    whole = network()
    train(whole, attach(whole, LR)[0], range(8))

    model = network()
    parts = attach(model, LR)
    train(model, parts[0], range(5))
    saved = through_a_file([model.state_dict(), *(part.state_dict() for part in parts)])

    fresh = network()
    if len(saved) > 1:
        fresh.load_state_dict(saved[0])
    resumed = attach(fresh, 123.0)  # the rate, too, must come from the checkpoint
    for part, state in zip(resumed, saved[1:], strict=True):
        part.load_state_dict(state)
    train(fresh, resumed[0], range(5, 8))
    assert equal(weights(fresh), weights(whole))


def check_state_dict_round_trip(attach):
    model = network()
    parts = attach(model, LR)
    train(model, parts[0], range(3))
    for part, other in zip(parts, attach(copy.deepcopy(model), LR), strict=True):
        state = copy.deepcopy(part.state_dict())
        other.load_state_dict(part.state_dict())
        assert equal(other.state_dict(), state)


def check_closure(attach):
    by_hand, by_closure = network(), network()
    one, two = attach(by_hand, LR)[0], attach(by_closure, LR)[0]
    losses, calls = train(by_hand, one, range(4)), []
    with torch.no_grad():  # the closure must get its gradients back
        for step in range(4):

            def closure(step=step):
                calls.append(step)
                by_closure.zero_grad()
                loss = loss_of(by_closure, step)
                loss.backward()
                return loss

            assert two.step(closure).item() == losses[step]
    assert calls == [0, 1, 2, 3]  # once a step
    assert equal(weights(by_hand), weights(by_closure))
    assert one.step() is None


def check_missing_gradients(attach):
    model = network()
    optimizer = attach(model, LR)[0]
    frozen = weights(model)["7.weight"]
    optimizer.step()  # no gradient anywhere
    backward(model, 0)
    model[7].weight.grad = None
    optimizer.step()
    assert torch.equal(model[7].weight, frozen)
    assert not torch.equal(model[4].weight, network()[4].weight)
    assert model[7].weight not in optimizer.state or not optimizer.state[model[7].weight]


def check_gradients_are_only_read(attach):
    model = network()
    optimizer = attach(model, LR)[0]
    for step in range(3):
        backward(model, step)
        before = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def check_zero_rate_moves_nothing(attach, rtol=0.0):
    """rtol: what rounding an attachment may add, as a projection to the norm that is already there does."""
    model = network()
    optimizer = attach(model, 0.0)[0]
    for step in range(3):
        backward(model, step)
        optimizer.step()
    for p, start in zip(model.parameters(), network().parameters(), strict=True):
        torch.testing.assert_close(p, start, rtol=rtol, atol=0)


def check_groups_keep_their_own_settings(build):
    """build(params, lr) -> optimizer. The second group, added later, has rate 0 and stays."""
    model = network()
    *body, head_weight, head_bias = model.parameters()
    optimizer = build(body, LR)
    optimizer.add_param_group({"params": [head_weight, head_bias], "lr": 0.0})
    one_group = network()
    alone = build(list(one_group.parameters())[:-2], LR)
    for step in range(3):
        for net, each in ((model, optimizer), (one_group, alone)):
            backward(net, step)
            each.step()
    assert equal(weights(model), weights(one_group))
    assert torch.equal(head_weight, network()[7].weight)
    assert not torch.equal(body[0], network()[0].weight)


def check_schedulers_work(attach):
    """A schedule of zeros from step 2 on freezes the weights there."""
    model = network()
    optimizer = attach(model, LR)[0]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 2))
    for step in range(4):
        if step == 2:
            frozen = [p.detach().clone() for p in model.parameters()]
        backward(model, step)
        optimizer.step()
        schedule.step()
    for p, then in zip(model.parameters(), frozen, strict=True):
        torch.testing.assert_close(p, then, rtol=1e-14, atol=0)


ATTACHED = (
    check_it_trains_and_repeats,
    check_resume_is_identical,
    check_state_dict_round_trip,
    check_closure,
    check_missing_gradients,
    check_gradients_are_only_read,
    check_zero_rate_moves_nothing,
    check_schedulers_work,
)
