"""Encoders kept as files, embeddings as means over crops, and principal components."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from safetensors.torch import load_file, save_file
from test_self_supervised import noise

from elfs_lib.artifacts import Store
from elfs_lib.cli import commands as cli
from elfs_lib.embedding import emp_ssl
from elfs_lib.embedding.embed import Embedder, Views, embed, fit_reduction, frozen_embedder
from elfs_lib.embedding.emp_ssl import EmpSslConfig, train_emp_ssl
from elfs_lib.embedding.encoder_file import (
    Expanded,
    PreparedNetwork,
    load_encoder_file,
    save_encoder,
)
from elfs_lib.embedding.encoders import (
    TRAINING,
    about_encoder,
    describe,
    find_checkpoint,
    is_encoder_file,
)
from elfs_lib.embedding.pca import principal_axes
from elfs_lib.embedding.self_supervised import SelfSupervisedConfig, TrainedEncoder, train_encoder
from elfs_lib.errors import ElfsError
from elfs_lib.params import Params
from elfs_lib.stages import Run
from elfs_lib.stages.embedding import encoder_training

SMALL = EmpSslConfig(epochs=1, batch=16, crops=2, network="convnet_tiny", expander=24, projection=8)
PLAIN = SelfSupervisedConfig(epochs=1, batch=16, network="convnet_tiny", projection=8)
CPU = {"device": "cpu", "precision": "float32"}


def features(encoder: PreparedNetwork, images: np.ndarray) -> torch.Tensor:
    with torch.inference_mode():
        return encoder.network(encoder.prepare(torch.from_numpy(images) / 255))


@pytest.fixture(scope="module")
def trained() -> dict[str, TrainedEncoder]:
    """A small encoder of each method."""
    images = noise(32)
    return {
        "contrastive": train_encoder(images, PLAIN, **CPU),
        "emp_ssl": train_emp_ssl(images, SMALL, **CPU),
    }


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["contrastive", "emp_ssl"])
def test_a_file_gives_back_the_encoder_to_the_bit(trained, method, tmp_path: Path):
    encoder, path, images = trained[method], tmp_path / "own.safetensors", noise(7)
    about = encoder.about | {"images": "noise", "saw_labels": False}
    save_encoder(encoder, path, about)
    assert is_encoder_file(path) and about_encoder(path) == about
    again = load_encoder_file(path, (12, 12))
    assert isinstance(again.network, Expanded) == (method == "emp_ssl")
    for name, value in encoder.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    torch.testing.assert_close(features(again, images), features(encoder, images))
    facts = describe("self_supervised", path)
    assert facts["pretraining"] == f"{encoder.about['method']} on noise"
    assert facts["saw_labels"] is False


@pytest.mark.parametrize("method", ["contrastive", "emp_ssl"])
def test_files_in_float16_and_files_that_say_nothing(trained, method, tmp_path: Path):
    encoder, path, images = trained[method], tmp_path / "own.safetensors", noise(7)
    save_encoder(encoder, path, encoder.about)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in load_file(path).items()}
    save_file(halves, path)
    assert about_encoder(path) == {}
    again = load_encoder_file(path, (12, 12))
    assert all(v.dtype == torch.float32 for v in again.network.state_dict().values() if v.ndim)
    torch.testing.assert_close(
        features(again, images), features(encoder, images), rtol=0.02, atol=0.02
    )
    assert describe("self_supervised", path)["saw_labels"] is None  # nobody knows
    save_file(halves, path, {"method": "supervised classification"})
    assert describe("self_supervised", path)["saw_labels"] is None
    save_file(halves, path, {"method": TRAINING[method]})
    assert describe("self_supervised", path)["saw_labels"] is False


def test_images_of_another_size_are_resized_to_that_of_the_training(trained, tmp_path: Path):
    path = tmp_path / "own.safetensors"
    save_encoder(trained["contrastive"], path, trained["contrastive"].about)
    large = noise(4, side=24)
    found = embed(large, "self_supervised", checkpoint=path, **CPU)
    small = torch.nn.functional.interpolate(
        torch.from_numpy(large) / 255, (12, 12), mode="bilinear", antialias=True
    )
    with torch.inference_mode():
        encoder = trained["contrastive"]
        want = encoder.network((small - encoder.prepare.mean) / encoder.prepare.std)
    np.testing.assert_allclose(found, want.numpy(), atol=1e-5)


def test_files_that_hold_no_encoder_are_one_sentence(trained, tmp_path: Path):
    path = tmp_path / "own.safetensors"
    save_encoder(trained["contrastive"], path, {})
    tensors = load_file(path)
    tensors["backbone.surplus"] = torch.ones(1)
    save_file(tensors, path)
    with pytest.raises(ElfsError, match="holds none of the networks convnet_large"):
        load_encoder_file(path, (12, 12))
    save_file({"conv.weight": torch.ones(1)}, path)
    assert not is_encoder_file(path)
    with pytest.raises(ElfsError, match="holds no encoder that was trained here"):
        Params.make({"encoder": "self_supervised", "encoder_checkpoint": str(path)})
    path.write_bytes(b"noise")
    assert not is_encoder_file(path)
    with pytest.raises(ElfsError, match="cannot be read"):
        Params.make({"encoder": "self_supervised", "encoder_checkpoint": str(path)})


@pytest.mark.parametrize("encoder", ["self_supervised", "efficientnet_lite0"])
def test_parameters_may_name_a_file_of_another_machine_but_no_run_starts_without(
    encoder: str, tmp_path: Path
):
    params = Params.make({"encoder": encoder, "encoder_checkpoint": "absent.safetensors"})
    with pytest.raises(ElfsError, match="absent.safetensors does not exist"):
        Run(params, Store(tmp_path)).check()


def test_checkpoints_are_found_in_the_folder_of_encoders(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ELFS_ENCODER_DIR", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "own.safetensors").touch()
    assert find_checkpoint("own.safetensors") == tmp_path / "shared" / "own.safetensors"
    (tmp_path / "own.safetensors").touch()  # the path as it is given comes first
    assert find_checkpoint("own.safetensors") == Path("own.safetensors")
    assert find_checkpoint("absent.safetensors") == Path("absent.safetensors")
    monkeypatch.delenv("ELFS_ENCODER_DIR")
    monkeypatch.setenv("ELFS_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "own.safetensors").unlink()
    (tmp_path / "shared").rename(tmp_path / "encoders")
    assert find_checkpoint("own.safetensors") == tmp_path / "encoders" / "own.safetensors"


# --- the command ----------------------------------------------------------------------------------

OWN = {
    "contrastive": {"encoder": "self_supervised", "encoder_network": "convnet_tiny"},
    "emp_ssl": {"encoder": "self_supervised", "encoder_network": "convnet_tiny"}
    | {"encoder_method": "emp_ssl"},
    "adapted": {"encoder": "adapted_efficientnet_lite0", "encoder_size": 32},
}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch) -> dict:
    """Parameters of a folder of 40 images, with an expander that is trained in a moment."""
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(noise(40, side=16).transpose(0, 2, 3, 1)):
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    tiny = functools.partial(EmpSslConfig, crops=2, batch=16, expander=24, projection=8)
    monkeypatch.setattr(emp_ssl, "EmpSslConfig", tiny)
    values = TINY | {"dataset": "image_folder", "data_path": str(tmp_path / "photos")}
    return values | {"image_size": 16, "classes": 2, "encoder_epochs": 1, "budgets": (0.1,)}


def call(monkeypatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["elfs", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return stop.value.code or 0


@pytest.mark.parametrize("method", OWN)
def test_a_kept_file_gives_another_run_the_same_embeddings(
    photos, method, tmp_path: Path, monkeypatch, capsys
):
    values, out = photos | OWN[method] | CPU, tmp_path / "own.safetensors"
    (tmp_path / "own.yaml").write_text(
        "".join(f"{k}: {list(v) if isinstance(v, tuple) else v}\n" for k, v in values.items())
    )
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    assert call(monkeypatch, "train-encoder", tmp_path / "own.yaml", "--out", out) == 0
    said = capsys.readouterr().out
    assert str(out) in said and about_encoder(out)["method"] in said
    assert about_encoder(out)["saw_labels"] is (method == "adapted")  # Lite0 saw ImageNet's
    assert not list(tmp_path.glob(".*"))  # nothing half written is left

    first = Run(Params.make(values), Store(tmp_path / "artifacts"))
    assert out.read_bytes() == (first.encoder.folder / "encoder.safetensors").read_bytes()
    given = Params.make(values | {"encoder_checkpoint": str(out), "seed": 5})
    again = Run(given, Store(tmp_path / "others"))
    assert again.encoder is None  # nothing is trained
    a, b = (run.embeddings.array("embeddings") for run in (first, again))
    assert a.shape[1] == {"contrastive": 32, "emp_ssl": 24, "adapted": 1280}[method]
    assert np.array_equal(a, b)
    for run in (first, again):
        facts = run.embeddings.manifest["encoder"]
        assert facts["saw_labels"] is (method == "adapted")
        assert ("EMP-SSL" in facts["pretraining"]) == (method == "emp_ssl")
        assert ("ImageNet" in facts["pretraining"]) == (method == "adapted")


def test_the_command_refuses_what_it_cannot_do_before_it_works(
    photos, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.setenv("ELFS_ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    (tmp_path / "own.yaml").write_text(
        f"dataset: image_folder\ndata_path: {photos['data_path']}\nclasses: 2\nimage_size: 16\n"
        "encoder: pixels\nneighbors: 5\n"
    )
    for out, told in (
        ("own.pth", "name a .safetensors file"),
        ("absent/own.safetensors", "in a folder that exists"),
        ("own.safetensors", "Encoder 'pixels' trains 0 networks"),
    ):
        words = ["train-encoder", tmp_path / "own.yaml", "--out", tmp_path / out]
        assert call(monkeypatch, *words) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "artifacts" / "encoder").exists()
    assert call(monkeypatch, "train-encoder", "--help") == 0
    assert "cifar10_encoder.yaml" in capsys.readouterr().out


def test_the_method_decides_how_the_encoder_is_trained(photos, tmp_path: Path):
    def run(**changes: object) -> Run:
        params = Params.make(photos | OWN["contrastive"] | changes)
        return Run(params, Store(tmp_path / "artifacts"))

    own, crops = run(), run(encoder_method="emp_ssl", encoder_epochs=3, flip=True)
    assert isinstance(encoder_training(own.params), SelfSupervisedConfig)
    found = encoder_training(crops.params)
    assert isinstance(found, EmpSslConfig) and (found.epochs, found.flip) == (3, True)
    default = run(encoder_method="emp_ssl", encoder_network=None)
    assert encoder_training(default.params).network == "resnet18"
    keys = [each.call("encoder").key_params for each in (own, run(encoder_method="emp_ssl"))]
    assert keys[0] != keys[1]


# --- crops ----------------------------------------------------------------------------------------


class Flat(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


def embedder(views: Views | None = None, batch: int | None = None) -> Embedder:
    network = PreparedNetwork(Flat(), lambda x: x - 0.3)
    return Embedder("flat", network, torch.device("cpu"), torch.float32, batch, views)


def test_one_crop_of_the_whole_image_is_the_plain_embedding_at_length_1():
    images = noise(9)
    plain = embedder()(images)
    found = embedder(Views(1, 1.0))(images)
    want = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_the_mean_over_crops_does_not_depend_on_the_batch_or_the_other_images():
    images, views = noise(11, side=16), Views(5, 0.25)
    found = embedder(views, batch=11)(images)
    for batch in (1, 4):
        np.testing.assert_allclose(embedder(views, batch)(images), found, atol=1e-6)
    np.testing.assert_allclose(embedder(views)(images[3:5]), found[3:5], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)


def test_crops_by_hand():
    x = torch.from_numpy(noise(2, side=16)).float() / 255
    crops = list(Views(4, 0.25, mirror=True).of(x))
    assert all(crop.shape == x.shape for crop in crops)
    middle = torch.nn.functional.interpolate(x[:, :, 4:12, 4:12], (16, 16), mode="bilinear")
    assert torch.equal(crops[0], middle)  # the first is that of the middle
    plain = list(Views(4, 0.25, mirror=False).of(x))
    for number, (crop, other) in enumerate(zip(crops, plain)):
        assert torch.equal(crop, other.flip(3) if number % 2 else other)
    unit = torch.nn.functional.normalize
    want = unit(sum(unit((crop - 0.3).flatten(1)) for crop in crops))
    found = embedder(Views(4, 0.25))(noise(2, side=16))
    np.testing.assert_allclose(found, want.numpy(), atol=1e-6)


def test_crops_spread_evenly_over_the_image():
    x = torch.arange(64.0).expand(1, 1, 64, 64)
    lefts = [float(crop.min()) for crop in Views(32, 0.25, mirror=False).of(x)]
    tops = [float(crop.min()) for crop in Views(32, 0.25, mirror=False).of(x.mT)]
    for corners in (lefts, tops):
        assert min(corners) >= 0 and max(corners) <= 32
        counts, _ = np.histogram(corners, bins=4, range=(0, 32))
        assert counts.min() >= 6 and counts.max() <= 10


def test_crops_out_of_range_are_one_sentence():
    with pytest.raises(ElfsError, match="count is 0"):
        Views(0)
    for area in (0, 1.5):
        with pytest.raises(ElfsError, match="area is"):
            Views(3, area)


def test_embedding_in_parts_equals_embedding_at_once(trained, tmp_path: Path):
    path, images, views = tmp_path / "own.safetensors", noise(9), Views(3, 0.5)
    save_encoder(trained["emp_ssl"], path, trained["emp_ssl"].about)
    whole = embed(images, "self_supervised", checkpoint=path, views=views, **CPU)
    parts = frozen_embedder("self_supervised", (12, 12), checkpoint=path, views=views, **CPU)
    found = np.concatenate([parts(images[:4]), parts(images[4:])])
    np.testing.assert_allclose(found, whole, atol=1e-5)


# --- principal components -------------------------------------------------------------------------


def test_principal_axes_are_those_of_the_singular_value_decomposition(monkeypatch):
    monkeypatch.setattr("elfs_lib.embedding.pca.BLOCK", 64)  # several blocks, the last one short
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(200, 12)) * np.geomspace(10, 0.1, 12) + 5).astype(np.float32)
    mean = rows.mean(0)
    found = principal_axes(torch.from_numpy(rows), torch.from_numpy(mean), 5).numpy()
    _, _, axes = np.linalg.svd(rows.astype(np.float64) - rows.astype(np.float64).mean(0))
    signs = np.sign(axes[np.arange(5), np.abs(axes[:5]).argmax(1)])
    np.testing.assert_allclose(found, (axes[:5] * signs[:, None]).T, atol=1e-4)
    np.testing.assert_allclose(found.T @ found, np.eye(5), atol=1e-5)


def test_a_reduction_keeps_the_variance_and_takes_new_rows_the_same_way():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(90, 3)) @ rng.normal(size=(3, 20)) + 2).astype(np.float32)
    reduction = fit_reduction(features, 3)
    found = reduction(features)
    assert found.shape == (90, 3) and found.dtype == np.float32
    centred = features - features.mean(0)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose((found**2).sum(), (centred**2).sum(), rtol=1e-4)
    variances = found.var(0)
    assert (np.diff(variances) <= 0).all()
    np.testing.assert_allclose(found @ reduction.axes.T + reduction.mean, features, atol=1e-4)
    np.testing.assert_allclose(reduction(features[7:9]), found[7:9], atol=1e-5)
    with pytest.raises(ElfsError, match="encoder_pca is 21 but 90 images of 20 features"):
        fit_reduction(features, 21)


def test_a_run_reduces_the_test_images_by_the_components_of_the_training_images(
    tiny_params, tmp_path: Path
):
    changes = {"encoder_pca": 4, "encoder_views": 2, "encoder": "pixels"}
    run = Run(tiny_params.model_copy(update=changes), Store(tmp_path))
    assert run.embeddings.array("embeddings").shape == (run.n, 4)
    mean, axes = (run.embeddings.array(f"pca_{name}") for name in ("mean", "axes"))
    want = (embed(run.test_images, "pixels") - mean) @ axes
    np.testing.assert_allclose(run.test_embeddings.array("embeddings"), want, atol=1e-5)


def test_an_encoder_is_written_the_same_byte_for_byte(trained, tmp_path: Path):
    """Else the same training would give embeddings another key."""
    found = set()
    for number in range(8):  # the order of metadata differed in most
        save_encoder(trained["emp_ssl"], tmp_path / f"{number}", trained["emp_ssl"].about)
        found.add((tmp_path / f"{number}").read_bytes())
    assert len(found) == 1
