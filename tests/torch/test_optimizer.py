"""No optimizer revives a pruned weight, whatever it remembers from dense training."""

import copy

import pytest
import torch
from torch import nn

from trtsparse.errors import ConfigError
from trtsparse.torch import SparsePruner, prune_trained_model

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "SGD one by one": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, foreach=False),
    "SGD foreach": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, foreach=True),
    "SGD fused": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, fused=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.01, amsgrad=True, weight_decay=1e-3),
    "Adam fused": lambda p: torch.optim.Adam(p, 0.01, fused=True),
    "Adam without epsilon": lambda p: torch.optim.Adam(p, 0.01, eps=0),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 0.003, momentum=0.9, centered=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, 0.05, initial_accumulator_value=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p, 1.0),
    "Adamax": lambda p: torch.optim.Adamax(p, 0.01),
    "NAdam": lambda p: torch.optim.NAdam(p, 0.01),
    "RAdam": lambda p: torch.optim.RAdam(p, 0.03),
    "ASGD": lambda p: torch.optim.ASGD(p, 0.05, t0=5),
    "Rprop": lambda p: torch.optim.Rprop(p, 0.01),
    "Adafactor": lambda p: torch.optim.Adafactor(p, 0.05),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.5, max_iter=4, history_size=5),
    "LBFGS with line search": lambda p: torch.optim.LBFGS(p, line_search_fn="strong_wolfe", max_iter=4),
}


def network():
    return nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, 3))


def task():
    """Inputs and the outputs of a fixed network."""
    torch.manual_seed(1)
    x = torch.randn(64, 16)
    return x, network()(x).detach()


def train(model, optimizer, steps, check=lambda: None):
    """Train with a closure, as every optimizer allows; return the losses."""
    x, y = task()
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(steps):
        losses.append(optimizer.step(closure).item())
        check()
    return losses


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_loss_falls_while_masks_stay_and_no_pruned_weight_revives(kind):
    model = network()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, 5)  # dense: momentum points to pruned weights
    pruner = prune_trained_model(model, optimizer)
    masks = {name: mask.clone() for name, mask in pruner.masks.items()}
    assert list(masks) == ["0.weight", "2.weight", "4.weight"]

    def check():
        assert pruner.masks.keys() == masks.keys()
        for name, mask in pruner.masks.items():
            parameter = model.get_parameter(name)
            assert torch.equal(mask, masks[name])
            assert not parameter[~mask].any()
            assert parameter[mask].all()
            for value in optimizer.state[parameter].values():
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    assert not value[~mask].any()

    losses = train(model, optimizer, 40, check)
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    assert pruner.sparse_state().compliant


def test_muon_which_mixes_rows_and_columns_revives_nothing():
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.Tanh(), nn.Linear(32, 3, bias=False))
    pruner = prune_trained_model(model, optimizer := torch.optim.Muon(model.parameters(), lr=0.02))
    losses = train(model, optimizer, 20)
    assert losses[-1] < losses[0]
    assert pruner.sparse_state().compliant


def test_a_closure_sees_masked_weights_and_leaves_masked_gradients():
    model = network()
    pruner = prune_trained_model(model, optimizer := torch.optim.LBFGS(model.parameters(), max_iter=5))
    x, y = task()
    seen = []

    def closure():
        seen.extend(bool(model.get_parameter(name)[~mask].any()) for name, mask in pruner.masks.items())
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure=closure)
    assert len(seen) > 9
    assert not any(seen)
    assert not any(model.get_parameter(name).grad[~mask].any() for name, mask in pruner.masks.items())


def test_infinities_and_nan_in_gradients_of_pruned_weights_leave_nothing_behind():
    model = network()
    pruner = prune_trained_model(model, optimizer := torch.optim.Adam(model.parameters()))
    for value in (float("inf"), float("nan")):
        model(torch.ones(1, 16)).sum().backward()
        for name, mask in pruner.masks.items():
            model.get_parameter(name).grad[~mask] = value
        optimizer.step()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        optimizer.zero_grad()


def test_gradients_can_be_masked_before_their_norm_is_clipped():
    model = network()
    pruner = prune_trained_model(model, torch.optim.SGD(model.parameters()))
    model(torch.ones(4, 16)).square().sum().backward()
    before = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
    pruner.mask_gradients()
    assert torch.nn.utils.get_total_norm([p.grad for p in model.parameters()]) < before
    for name, mask in pruner.masks.items():
        assert not model.get_parameter(name).grad[~mask].any()


def test_master_weights_are_masked_with_their_gradients_and_state():
    model = network().bfloat16()
    masters = {name: nn.Parameter(p.detach().float()) for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(masters.values(), lr=0.1, momentum=0.9)
    pruner = SparsePruner(model)
    pruner.attach(optimizer, master_weights=masters)
    for step in range(3):
        model.zero_grad()
        model(torch.randn(8, 16, dtype=torch.bfloat16)).square().sum().backward()
        for name, parameter in model.named_parameters():
            masters[name].grad = parameter.grad.float()
        optimizer.step()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(masters[name])
        for name, mask in pruner.masks.items():
            assert not masters[name].grad[~mask].any()
            assert not masters[name][~mask].any(), step
            assert not optimizer.state[masters[name]]["momentum_buffer"][~mask].any()
    assert pruner.sparse_state().compliant


def test_a_float_copy_of_the_weights_in_the_state_is_masked():
    class KeepsMaster(torch.optim.SGD):
        """As optimizers for half precision do: the weights proper are in the state."""

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    master = self.state[p].setdefault("master", torch.ones(p.shape))
                    master.add_(p.grad.float(), alpha=-0.1)
                    p.data.copy_(master)
            return closure

    model = nn.Linear(8, 8).half()
    pruner = prune_trained_model(model, optimizer := KeepsMaster(model.parameters()))
    model.weight.grad, model.bias.grad = torch.ones_like(model.weight), torch.ones_like(model.bias)
    optimizer.step()
    mask = pruner.masks["weight"]
    assert not optimizer.state[model.weight]["master"][~mask].any()
    assert optimizer.state[model.weight]["master"][mask].all()
    assert pruner.sparse_state().compliant


def test_states_of_8_bit_optimizers_are_left_alone():
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0)
    codes = torch.full((8, 8), 7, dtype=torch.uint8)  # a code, whose number is in a table
    optimizer.state[model.weight]["state1"] = codes
    prune_trained_model(model, optimizer)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    assert (codes == 7).all()


def test_other_arguments_of_a_step_reach_the_optimizer_as_they_are():
    class Wants(torch.optim.SGD):
        """Takes more than a closure, among it a function."""

        def step(self, closure=None, metric=None, *, report=None):
            self.seen = (closure, metric, report)
            return super().step()

    model = network()
    prune_trained_model(model, optimizer := Wants(model.parameters()))
    optimizer.step(None, len, report=print)
    assert optimizer.seen == (None, len, print)


def test_several_optimizers_of_one_model_are_held():
    model = network()
    optimizers = [torch.optim.Adam(layer.parameters(), 0.1) for layer in (model[0], model[2])]
    pruner = SparsePruner(model)
    for optimizer in optimizers:
        pruner.attach(optimizer)
    for _ in range(3):
        model(torch.randn(4, 16)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    assert pruner.sparse_state().compliant


def test_schedulers_copies_and_saved_states_of_an_optimizer_work_as_before():
    model = network()
    prune_trained_model(model, optimizer := torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    train(model, optimizer, 3, scheduler.step)
    optimizer.load_state_dict(optimizer.state_dict())
    copied = copy.deepcopy(optimizer)
    assert not copied._optimizer_step_pre_hooks
    train(model, optimizer, 1)


@pytest.mark.parametrize(
    ("attach", "message"),
    [
        (
            lambda pruner: pruner.attach(object()),
            "not an optimizer\n  got: object\n  expected: a torch.optim.Optimizer",
        ),
        (
            lambda pruner: pruner.attach(torch.optim.SGD(network().parameters())),
            (
                "the optimizer updates none of the pruned weights\n  where: SGD\n"
                "  expected: 0.weight, 2.weight, 4.weight among its parameters\n"
                "  to fix: make it from the parameters of this model, after wrapping; "
                "give copies that it updates instead as master_weights"
            ),
        ),
        (
            lambda pruner: pruner.attach(
                torch.optim.SGD(network().parameters()), master_weights={"0.weight": torch.ones(4)}
            ),
            (
                "a master weight has another shape than its parameter\n  where: '0.weight'\n  got: (4,)\n"
                "  expected: (32, 16)"
            ),
        ),
    ],
)
def test_what_cannot_be_attached_is_refused(attach, message):
    with pytest.raises(ConfigError) as caught:
        attach(SparsePruner(network()))
    assert str(caught.value) == message


@pytest.mark.parametrize("optimizer", [None, torch.optim.SGD([torch.ones(2, requires_grad=True)])])
def test_a_wrong_optimizer_is_refused_before_the_model_is_pruned(optimizer):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ConfigError):
        prune_trained_model(model, optimizer)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
