"""Exported models are plain, compliant, and compute what the module computes."""

import importlib.util

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from trtsparse.errors import ModelError, OutputError, PruneError
from trtsparse.files.model import OnnxModel
from trtsparse.sparsity.pattern import Pattern
from trtsparse.sparsity.validate import validate
from trtsparse.torch import SparsePruner, prune_trained_model

EXPORTERS = [
    pytest.param(False, id="older"),
    pytest.param(
        True,
        id="newer",
        marks=[
            pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed"),
            pytest.mark.slow,
        ],
    ),
]


class Network(nn.Module):
    """Convolutions in one, two and three dims, attention, parametrised and tied weights, normalization."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.conv = parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
        self.conv1 = parametrizations.spectral_norm(nn.Conv1d(8, 8, 3, padding=1))
        self.conv3 = nn.Conv3d(8, 8, 1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.tied = nn.Linear(8, 8, bias=False)
        self.again = nn.Linear(8, 8, bias=False)
        self.again.weight = self.tied.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv(self.norm(self.stem(x)).relu())
        x = self.conv3(x[:, :, None])[:, :, 0]
        x = self.conv1(x.flatten(2)).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        return self.head(self.again(self.tied(x)).mean(dim=1))


def trained(model, shape=(2, 3, 8, 8), **options):
    pruner = SparsePruner(model, **options)
    pruner.attach(optimizer := torch.optim.SGD(model.parameters(), 0.01, momentum=0.9))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(shape)).square().sum().backward()
        optimizer.step()
    return pruner


def outputs(path, x):
    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_an_exported_network_is_compliant_and_computes_the_same(tmp_path, dynamo):
    model = Network()
    pruner = trained(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x, path = torch.randn(2, 3, 8, 8), tmp_path / "model.onnx"
    report = pruner.export_onnx(path, (x,), dynamo=dynamo, input_names=["image"])
    assert report.compliant
    assert report.model == str(path)
    assert report.to_dict() == validate(path).to_dict()
    assert [site.op for site in report.sites if site.eligible].count("Conv") == 3
    assert report.by_sites.eligible >= 8
    assert [path] == list(tmp_path.iterdir())
    proto = onnx.load(path)
    assert [value.name for value in proto.graph.input] == ["image"]
    assert not [tensor.name for tensor in proto.graph.initializer if tensor.data_type == onnx.TensorProto.BOOL]
    assert model.training  # exporting changes nothing
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert pruner.sparse_state().compliant
    with torch.no_grad():
        np.testing.assert_allclose(outputs(path, x), model.eval()(x).numpy(), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="onnxscript is not installed")
def test_the_newer_exporter_is_the_default_and_takes_dynamic_shapes(tmp_path):
    pruner = trained(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), (2, 8))
    path = tmp_path / "model.onnx"
    shapes = ({0: torch.export.Dim.DYNAMIC},)
    assert pruner.export_onnx(path, (torch.randn(2, 8),), dynamic_shapes=shapes).compliant
    assert onnx.load(path).producer_name == "pytorch"
    assert outputs(path, torch.randn(5, 8)).shape == (5, 4)


def test_without_onnxscript_the_older_exporter_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    seen = {}
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **options: seen.update(options))
    pruner = trained(nn.Linear(8, 8), (2, 8))
    with pytest.raises(ModelError):  # nothing was written
        pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(1, 8),))
    assert seen["dynamo"] is False
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_the_older_weight_norm_is_exported_as_a_plain_weight(tmp_path):
    model = nn.Sequential(nn.utils.weight_norm(nn.Conv1d(8, 8, 3)), nn.ReLU(), nn.Conv1d(8, 4, 1))
    pruner = trained(model, (2, 8, 9))
    x, path = torch.randn(2, 8, 9), tmp_path / "model.onnx"
    report = pruner.export_onnx(path, (x,), dynamo=False)
    assert report.compliant
    assert report.by_sites.eligible == 2
    assert "0.weight_v" in dict(model.named_parameters())
    np.testing.assert_allclose(outputs(path, x), model(x).detach().numpy(), atol=1e-5)


def test_weights_that_were_left_alone_are_reported_and_no_error(tmp_path):
    pruner = trained(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)), (2, 8), exclude=["1"])
    report = pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(1, 8),), dynamo=False)
    assert [site.compliant for site in report.sites] == [True, False]
    assert not report.compliant


def test_another_pattern_is_the_one_that_is_validated(tmp_path):
    pruner = trained(nn.Linear(8, 8), (2, 8), pattern=Pattern(1, 4))
    report = pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(1, 8),), dynamo=False)
    assert (report.pattern, report.compliant) == ("1:4", True)


def test_a_copy_after_finalize_is_the_same_file(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    pruner = trained(model, (2, 8))
    x = torch.randn(1, 8)
    pruner.export_onnx(tmp_path / "masked.onnx", (x,), dynamo=False)
    pruner.finalize()
    torch.onnx.export(model, (x,), tmp_path / "plain.onnx", dynamo=False)
    assert (tmp_path / "masked.onnx").read_bytes() == (tmp_path / "plain.onnx").read_bytes()


def test_a_bfloat16_network_is_exported_compliant(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).bfloat16()
    pruner = SparsePruner(model)
    report = pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(1, 8).bfloat16(),), dynamo=False)
    assert report.compliant
    assert {site.dtype for site in report.sites} == {"bfloat16"}


class Hidden(nn.Module):
    """Multiplies by a parameter that belongs to no layer."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return self.layer(x) @ self.matrix


def test_a_weight_that_no_layer_owns_is_an_error_that_names_it(tmp_path):
    pruner = SparsePruner(Hidden())
    assert pruner.sparse_state().weights[0].reason == "Hidden is not known to multiply by it: `layers` can say so"
    with pytest.raises(PruneError) as caught:
        pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(2, 8),), dynamo=False)
    assert str(caught.value) == (
        "the model multiplies by weights that have no mask\n  where: MatMul '/MatMul', weight 'matrix'\n"
        "  got: 1 of 2 eligible sites are not compliant\n"
        "  to fix: name their layers in SparsePruner(..., layers={Layer: {'weight': axis}}), "
        "or prune the file with `trtsparse prune`"
    )
    assert list(tmp_path.iterdir()) == []
    pruner = SparsePruner(Hidden(), layers={Hidden: {"matrix": 0}})
    assert pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(2, 8),), dynamo=False).compliant


class Spectrum(nn.Module):
    """Multiplies by constants that nobody trains: a buffer, as it is and transposed, and one made on the way."""

    def __init__(self):
        super().__init__()
        self.register_buffer("bank", torch.rand(8, 8))
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x @ self.bank @ self.bank.T) @ torch.arange(1.0, 33.0).reshape(8, 4)


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_constants_that_are_no_parameters_are_reported_and_no_error(tmp_path, dynamo):
    model = Spectrum()
    pruner = SparsePruner(model)
    x, path = torch.randn(2, 8), tmp_path / "model.onnx"
    report = pruner.export_onnx(path, (x,), dynamo=dynamo)
    assert report.to_dict() == validate(path).to_dict()
    assert not report.compliant
    compliant = [site for site in report.sites if site.compliant]
    assert len(compliant) == 1
    assert report.by_sites.eligible > 1
    with torch.no_grad():
        np.testing.assert_allclose(outputs(path, x), model(x).numpy(), rtol=1e-4)


class HiddenTransposed(Hidden):
    """Multiplies by its transpose, which exporters store under another name."""

    def forward(self, x):
        return self.layer(x)[None] @ self.matrix.T


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_a_parameter_is_known_where_it_is_stored_transposed(tmp_path, dynamo):
    with pytest.raises(PruneError, match="1 of 2 eligible sites are not compliant"):
        SparsePruner(HiddenTransposed()).export_onnx(tmp_path / "model.onnx", (torch.randn(2, 8),), dynamo=dynamo)
    assert list(tmp_path.iterdir()) == []


class Folded(Hidden):
    """Multiplies by what an exporter computes from a parameter and stores as a constant of its own."""

    def __init__(self, fold):
        super().__init__()
        self.fold = fold

    def forward(self, x):
        return nn.functional.linear(self.layer(x), self.fold(self.matrix))


FOLDS = {
    "a slice": lambda w: w[:4],
    "a product": lambda w: w * 0.5,
    "a concatenation": lambda w: torch.cat([w, w]),
}
MORE_FOLDS = {"signs": torch.sign, "a direction": lambda w: w / w.norm()}  # which the older exporter leaves alone


@pytest.mark.parametrize(
    ("fold", "dynamo"),
    [
        pytest.param(fold, *exporter.values, id=f"{name}-{exporter.id}", marks=exporter.marks)
        for exporter, folds in ((EXPORTERS[0], FOLDS), (EXPORTERS[1], {**FOLDS, **MORE_FOLDS}))
        for name, fold in folds.items()
    ],
)
def test_a_constant_that_was_folded_from_a_parameter_is_an_error(tmp_path, fold, dynamo):
    pruner = SparsePruner(Folded(fold))
    with pytest.raises(PruneError, match="weights that have no mask") as caught:
        pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(2, 8),), dynamo=dynamo)
    assert caught.value.got == "1 of 2 eligible sites are not compliant"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dynamo", EXPORTERS)
def test_of_a_folded_parameter_and_a_folded_buffer_only_the_parameter_is_an_error(tmp_path, dynamo):
    model = Folded(lambda w: w * 0.5)
    model.register_buffer("bank", torch.rand(8, 8))
    model.layer = nn.Sequential(model.layer, Bank(model.bank))
    state = {name: value.clone() for name, value in SparsePruner(model).model.state_dict().items()}
    with pytest.raises(PruneError) as caught:
        SparsePruner(model).export_onnx(tmp_path / "model.onnx", (torch.randn(2, 8),), dynamo=dynamo)
    assert caught.value.got == "1 of 3 eligible sites are not compliant"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.fold = lambda _: model.bank[:4]
    report = SparsePruner(model).export_onnx(tmp_path / "model.onnx", (torch.randn(2, 8),), dynamo=dynamo)
    assert [site.compliant for site in report.sites] == [True, False, False]


class Bank(nn.Module):
    """Multiplies by half a buffer."""

    def __init__(self, bank):
        super().__init__()
        self.register_buffer("bank", bank)

    def forward(self, x):
        return x @ (self.bank * 0.5)


class Careful(Spectrum):
    """Refuses parameters that are not what they were when it was made."""

    def __init__(self):
        super().__init__()
        self.known = self.layer.bias.detach().clone()

    def forward(self, x):
        if not torch.equal(self.layer.bias, self.known):
            raise ValueError("other values")
        return super().forward(x)


def test_where_nothing_is_known_about_a_dense_constant_it_is_an_error(tmp_path):
    with pytest.raises(PruneError, match="weights that have no mask"):
        SparsePruner(Careful()).export_onnx(tmp_path / "model.onnx", (torch.randn(2, 8),), dynamo=False)
    assert list(tmp_path.iterdir()) == []


class Gated(nn.Module):
    """Has a branch that is left out while its gate is zero, and a constant."""

    def __init__(self):
        super().__init__()
        self.layer, self.branch = nn.Linear(8, 8), nn.Linear(8, 8)
        self.gate = nn.Parameter(torch.zeros(1))
        self.register_buffer("bank", torch.randn(8, 8))

    def forward(self, x):
        y = self.layer(x)
        if float(self.gate.detach()) != 0:
            y = y + self.gate * self.branch(x)
        return y @ self.bank


def test_a_buffer_is_known_by_its_name_where_other_parameters_take_another_way(tmp_path):
    report = SparsePruner(Gated()).export_onnx(tmp_path / "m.onnx", (torch.randn(2, 8),), dynamo=False)
    assert [(site.tensor, site.compliant) for site in report.sites if not site.compliant] == [("bank", False)]


class Eigenvalues(nn.Linear):
    """Uses an operator that ONNX does not have."""

    def forward(self, x):
        return torch.linalg.eigvals(super().forward(x)).real


def test_what_pytorch_cannot_export_is_a_model_error(tmp_path):
    pruner = SparsePruner(Eigenvalues(8, 8))
    with pytest.raises(ModelError) as caught:
        pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(8, 8),), dynamo=False)
    assert str(caught.value).startswith("PyTorch cannot export the model\n  where: Eigenvalues\n  got: ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_does_not_exist_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", None)
    with pytest.raises(OutputError):
        SparsePruner(nn.Linear(8, 8)).export_onnx(tmp_path / "none" / "model.onnx", (torch.randn(1, 8),))


def test_large_weights_go_to_a_second_file(tmp_path, monkeypatch):
    monkeypatch.setattr("trtsparse.torch.export._MOST_INLINE", 100)
    pruner = SparsePruner(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
    pytest.importorskip("onnxscript")
    report = pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(1, 64),))
    assert report.compliant
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert OnnxModel.open(tmp_path / "model.onnx").external_files()
    assert validate(tmp_path / "model.onnx").compliant


def test_prune_trained_model_ends_in_a_file(tmp_path):
    model = nn.Linear(8, 8)
    pruner = prune_trained_model(model, torch.optim.SGD(model.parameters()))
    assert pruner.export_onnx(tmp_path / "model.onnx", (torch.randn(1, 8),), dynamo=False).compliant
